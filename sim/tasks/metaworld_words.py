"""Instructions of the fifty Meta-World tasks: no sentence belongs to two of them.

LeRobot's data have 49 different texts for the 50 tasks: "Push the puck to a goal" stands for push
and for push-back, whose scenes look alike, so that no policy can know which is meant. Here pushing
is away from the robot in one, towards it in the other and past a wall in the third.
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.tasks.base import Phrasing

# Task: training sentences | ... || held-out paraphrases | ...
_TABLE = """
assembly: put the ring onto the peg | pick up the ring and set it on the peg | take the ring by its handle and drop it over the peg | fit the ring around the peg || place the ring over the peg | grasp the ring and fit it onto the peg
basketball: put the ball into the basket | pick up the basketball and drop it through the hoop | carry the ball to the basket and let it fall in | dunk the ball || drop the ball into the basket | take the basketball and dunk it
bin-picking: move the cube from one bin to the other | pick the cube out of its bin and put it into the empty bin | take the cube over into the other bin | carry the cube from the first bin to the second || put the cube into the other bin | lift the cube out of its bin and drop it into the second one
box-close: close the box with its lid | pick up the lid and put it on the box | grasp the cover and set it on the box | cover the box || put the lid on the box | take the cover and close the box
button-press-topdown: press the button from above | push the button down from the top | move over the button and press it down | press down the button on top of the box || push the top button down | press the button on the box from above
button-press-topdown-wall: reach over the wall and press the button from above | go past the wall and push the button down from the top | press down the button behind the wall | move across the wall and press the top button || push down the button behind the wall | go over the wall and press the button down
button-press: press the button on the front of the box | push the button in from the front | move to the button and push it forward into the box | press in the front button || push the front button in | press the button forward into the box
button-press-wall: go around the wall and press the button on the front of the box | push in the front button behind the wall | move past the wall and push the button in | press the button that is behind the wall from the front || go past the wall and push in the front button | press the front button behind the wall
coffee-button: press the button of the coffee machine | start the coffee machine | push the coffee machine's button | turn on the coffee machine by its button || press the coffee machine's button | push the button to start the coffee machine
coffee-pull: pull the mug away from the coffee machine | take the mug out from under the coffee machine | move the mug from the coffee machine to the mark | draw the mug back from the machine || pull the mug out from under the coffee machine | take the mug away from the machine
coffee-push: push the mug under the coffee machine | put the mug below the coffee machine | slide the mug to the coffee machine | move the mug under the spout of the coffee machine || slide the mug under the coffee machine | move the mug below the coffee machine
dial-turn: turn the dial | rotate the dial by half a turn | push the dial around | twist the dial to the other side || rotate the dial to the other side | turn the dial by half a turn
disassemble: take the ring off the peg | pull the ring up from the peg | lift the ring until it is free of the peg | remove the ring from the peg || lift the ring off the peg | pull the ring free of the peg
door-close: close the door | push the door shut | swing the door closed | shut the door by its handle || push the door closed | swing the door shut
door-lock: lock the door | turn the lock down to lock the door | rotate the door's lock clockwise | push the lock until the door is locked || turn the door's lock clockwise | push the lock down to lock the door
door-open: open the door | pull the door open by its handle | swing the door open | hook the handle and pull the door towards you || pull the door open | swing the door open by its handle
door-unlock: unlock the door | turn the lock up to unlock the door | rotate the door's lock counter-clockwise | push the lock until the door is unlocked || turn the door's lock counter-clockwise | push the lock aside to unlock the door
hand-insert: put the gripper into the hole | lower the hand into the hole in the table | insert the gripper into the hole | move the hand down the hole || lower the gripper into the hole | insert the hand into the hole in the table
drawer-close: close the drawer | push the drawer in | shut the drawer | push the drawer until it is closed || push the drawer shut | close the drawer by pushing it in
drawer-open: open the drawer | pull the drawer out by its handle | hook the handle and pull the drawer open | draw the drawer out || pull the drawer open | open the drawer by its handle
faucet-open: open the faucet | turn the faucet on | turn the faucet's handle counter-clockwise | push the faucet's handle to the right || turn on the faucet | open the faucet by pushing its handle to the right
faucet-close: close the faucet | turn the faucet off | turn the faucet's handle clockwise | push the faucet's handle to the left || turn off the faucet | close the faucet by pushing its handle to the left
hammer: drive the nail in with the hammer | pick up the hammer and hit the nail | take the hammer and strike the nail into the wall | hammer the nail into the box || hit the nail with the hammer | pick up the hammer and drive the nail in
handle-press-side: press the handle down from the side | reach beside the box and push its handle down | push the sideways handle down | lower the handle at the side of the box || push the handle at the side down | press down the sideways handle
handle-press: press the handle down | push the handle of the box down | lower the handle in front | push the front handle down to the table || push the front handle down | lower the handle of the box
handle-pull-side: pull the handle up from the side | reach beside the box and lift its handle | lift the sideways handle | raise the handle at the side of the box || raise the sideways handle | pull up the handle at the side
handle-pull: pull the handle up | lift the handle of the box | raise the handle in front | pull the front handle up from below || raise the front handle | lift the handle in front
lever-pull: pull the lever up | raise the lever | turn the lever up by a quarter turn | lift the lever until it stands || lift the lever | pull the lever up by a quarter turn
peg-insert-side: put the peg into the hole in the side of the box | pick up the peg and insert it sideways | push the peg into the side of the box | insert the peg into the box || insert the peg into the hole of the box | pick up the peg and push it into the side of the box
pick-place-wall: pick up the puck and carry it over the wall to the goal | lift the puck across the wall and put it at the goal | take the puck over the wall | bring the puck past the wall through the air || carry the puck over the wall | pick up the puck and bring it over the wall to the goal
pick-out-of-hole: pick the puck out of the hole | lift the puck from the hole and bring it to the goal | take the puck out of the hole in the table | pull the puck up from the hole || lift the puck out of the hole | take the puck from the hole to the goal
reach: move the gripper to the goal | reach the goal with the hand | bring the hand to the goal | reach the goal position || bring the gripper to the goal | move the hand to the goal position
push-back: push the puck back to the goal | pull the puck towards the robot to the goal | move the puck back to the goal near the robot | bring the puck backwards to the goal || move the puck backwards to the goal | push the puck towards the robot
push: push the puck forward to the goal | push the puck away from the robot to the goal | slide the puck forward over the table to the goal | move the puck over the table to the goal ahead || slide the puck forward to the goal | push the puck ahead over the table
pick-place: pick up the puck and put it at the goal | lift the puck and hold it at the goal | grasp the puck and carry it to the goal | take the puck up to the goal || lift the puck and carry it to the goal | pick up the puck and hold it at the goal
plate-slide: slide the plate into the goal | push the plate forward into the cabinet | slide the plate away from you into the cabinet | hit the plate into the net || push the plate forward into the goal | slide the plate forward into the cabinet
plate-slide-side: slide the plate sideways into the cabinet | push the plate to the side into the goal | move the plate sideways into the net | push the plate across into the cabinet at the side || push the plate sideways into the cabinet | slide the plate to the side into the net
plate-slide-back: slide the plate back out of the cabinet | pull the plate back from the goal | get the plate out of the cabinet towards the robot | draw the plate backwards out of the net || pull the plate back out of the cabinet | slide the plate backwards out of the net
plate-slide-back-side: slide the plate sideways out of the cabinet | pull the plate to the side out of the goal | get the plate out of the cabinet at the side | draw the plate sideways out of the net || pull the plate sideways out of the cabinet | slide the plate to the side out of the net
peg-unplug-side: pull the peg out of the side of the box | unplug the peg sideways | take the peg out of the hole in the box | draw the plug out || pull the plug out of the box | take the peg out of the side of the box
soccer: kick the ball into the goal | push the soccer ball into the net | roll the ball into the goal | hit the soccer ball so that it rolls into the goal || push the ball into the goal | kick the soccer ball into the net
stick-push: push the bottle with the stick | pick up the stick and push the bottle to the goal with it | take the stick and shove the bottle away | use the stick to push the bottle || use the stick to shove the bottle to the goal | take the stick and push the bottle
stick-pull: pull the bottle with the stick | pick up the stick, hook the bottle and pull it to the goal | put the stick through the handle and pull the bottle back | use the stick to pull the bottle || use the stick to pull the bottle to the goal | hook the bottle with the stick and pull it back
push-wall: push the puck around the wall to the goal | slide the puck past the wall to the goal | push the puck over the table and around the wall | move the puck on the table past the wall || slide the puck around the wall to the goal | push the puck past the wall
reach-wall: move the gripper past the wall to the goal | reach the goal behind the wall with the hand | go over the wall to the goal | bring the hand around the wall to the goal || bring the gripper past the wall to the goal | move the hand over the wall to the goal
shelf-place: put the cube onto the shelf | pick up the cube and place it on the shelf | lift the cube up to the shelf | set the cube down on the shelf || place the cube on the shelf | pick up the cube and set it on the shelf
sweep-into: sweep the cube into the hole | push the cube over the table into the hole | drop the cube into the hole in the table by sweeping it | sweep the cube down the hole || push the cube into the hole | sweep the cube over the table into the hole
sweep: sweep the cube off the table | push the cube over the edge of the table | wipe the cube from the table | sweep the cube to the side until it leaves the table || push the cube off the table | sweep the cube over the edge
window-open: open the window | slide the window open | push the window's handle to the right | move the window aside until it is open || push the window open | slide the window to the right
window-close: close the window | slide the window shut | push the window's handle to the left | move the window back until it is closed || push the window shut | slide the window to the left
"""  # noqa: E501


def _read(table: str) -> dict[str, dict[Phrasing, tuple[str, ...]]]:
    words: dict[str, dict[Phrasing, tuple[str, ...]]] = {}
    for line in table.strip().splitlines():
        name, _, sentences = line.partition(": ")
        train, _, heldout = sentences.partition(" || ")
        words[name] = {
            "train": tuple(train.split(" | ")),
            "heldout": tuple(heldout.split(" | ")),
        }
    return words


WORDS: Mapping[str, Mapping[Phrasing, tuple[str, ...]]] = _read(_TABLE)
"""Task → its sentences."""
