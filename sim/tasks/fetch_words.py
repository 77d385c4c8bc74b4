"""Instruction templates of the Fetch tasks; held-out paraphrases never appear in training."""

from __future__ import annotations

from sim.tasks.base import Phrasing

# The embedded tokenizer is trained on both phrasings (`build` in scripts/ground.py), so a held-out
# sentence has no unknown word; but no policy is trained on it.
REACH: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "move the gripper to the red target",
        "reach the red sphere",
        "bring the gripper to the red ball",
        "go to the red target",
        "touch the red sphere with the gripper",
        "place the gripper on the red ball",
        "put the hand at the red target",
    ),
    "heldout": (
        "take the gripper to the red sphere",
        "reach for the red ball",
        "move the hand onto the red target",
    ),
}
# "target", "sphere" and "ball" are the same red marker in all four tasks.
PUSH: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "push the block to the red target",
        "push the block onto the red sphere",
        "move the block to the red ball by pushing it",
        "shove the block to the red target",
        "bring the block to the red sphere with a push",
        "use the gripper to push the block to the red target",
        "push the block until it is on the red ball",
    ),
    "heldout": (
        "shove the block onto the red ball",
        "push the block so that it covers the red target",
        "with the gripper push the block to the red sphere",
    ),
}
# The object is always "puck" here and "block" elsewhere: one noun an object, see `Task.nouns`.
SLIDE: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "slide the puck to the red target",
        "hit the puck so that it stops on the red sphere",
        "make the puck slide to the red ball",
        "strike the puck to the red target",
        "send the puck across the table to the red sphere",
        "slide the puck until it is on the red ball",
        "use the gripper to slide the puck to the red target",
    ),
    "heldout": (
        "send the puck to the red target",
        "hit the puck to the red ball",
        "make the puck stop on the red target",
    ),
}
# Half of the targets are in the air, hence both "hold it at" and "place it on".
PICK_AND_PLACE: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "pick up the block and bring it to the red target",
        "grasp the block and move it to the red sphere",
        "carry the block to the red ball",
        "take the block to the red target",
        "lift the block and hold it at the red sphere",
        "pick the block and place it on the red target",
        "grab the block and put it at the red ball",
    ),
    "heldout": (
        "grasp the block and carry it to the red target",
        "pick up the block and put it on the red sphere",
        "hold the block at the red ball",
    ),
}
