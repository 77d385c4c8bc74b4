"""A tabletop on which language decides: the same scene, twelve instructions, twelve behaviours.

Three coloured blocks and three coloured zones; "push the red block to the blue zone" (nine such)
or "lift the green block" (three). Nothing in the images tells which instruction holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import mujoco
import numpy as np

from sim import planner_costs
from sim.tasks import tabletop_expert
from sim.tasks.base import Episode, Phrasing, ReferringExpression, Task
from sim.tasks.fetch_arm import FetchArm, FetchArmTask, fetch_robot_spec
from sim.tasks.tabletop_scene import (
    BLOCKS,
    REST_HEIGHT_M,
    ZONES,
    SceneConfig,
    build_spec,
    sample_scene,
)

Verb = Literal["push", "lift"]
VERBS: tuple[Verb, ...] = ("push", "lift")


@dataclass(frozen=True)
class Instruction:
    """What to do; `zone` is None exactly for "lift".

    Raises:
        ValueError: an unknown word, or a zone that the verb does not take.
    """

    verb: Verb
    block: str
    zone: str | None = None

    def __post_init__(self) -> None:
        for role, word, valid in (("verb", self.verb, VERBS), ("block", self.block, BLOCKS)):
            if word not in valid:
                raise ValueError(f"unknown {role} {word!r}; valid: {', '.join(valid)}")
        zones = ZONES if self.verb == "push" else (None,)
        if self.zone not in zones:
            raise ValueError(f"{self.verb!r} takes a zone out of {zones}, not {self.zone!r}")

    @property
    def labels(self) -> dict[str, str]:
        """`Episode.labels`: "verb", "object" and, for a push, "zone"."""
        named = {"verb": self.verb, "object": self.block}
        return named if self.zone is None else {**named, "zone": self.zone}


INSTRUCTIONS: tuple[Instruction, ...] = (
    *(Instruction("push", block, zone) for block in BLOCKS for zone in ZONES),
    *(Instruction("lift", block) for block in BLOCKS),
)


def _axes(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for name in names for axis in "xyz")


def _is_push(episode: Episode) -> bool:
    # From the goal, not from the labels: a planner's unpacked episode has no labels.
    return VERBS[int(episode.goal[3])] == "push"


def _lift_goal(block: str) -> str:
    """Key of `points`: where a block is to be lifted to."""
    return f"lift goal of the {block}"


class Tabletop(FetchArmTask):
    """Push the named block to the named zone, or lift the named block.

    `Episode.goal` is float64 [12]: the target's x, y, z (the zone's centre at a block's height, or
    the point `lift_m` above where the named block stood at reset), then the indices of the verb in
    `VERBS`, of the block in `BLOCKS` and of the zone in `ZONES` (-1 for "lift"), then x, y of every
    block at reset. Everything follows from it, since a packed state keeps the goal but no labels.

    The goal of a lift does not move with the block: policies average what they see of a target over
    the episode. Success asks for the height alone, wherever above the table the block is.

    Attributes:
        push_distance_m: a pushed block's centre counts as in the zone within this distance (xy).
        rest_tolerance_m: and rests on the table if its height differs less than this from rest.
        lifted_m: a block counts as lifted from this height above rest.
        lift_m: the height above rest to which "target" and the expert ask for it.
        home_m: where the gripper begins: between the robot and the blocks.
    """

    name = "Tabletop"
    object_phrases = BLOCKS
    place_phrases = ZONES
    static_points = ("target", *ZONES, *(_lift_goal(block) for block in BLOCKS))
    # Each word occurs in other pairs, so only the combination is new.
    unseen_pairs = (("red block", "purple zone"), ("yellow block", "cyan zone"))
    grounding_frames = 14_000
    # Held-out paraphrases are new combinations of words that training templates contain.
    templates: ClassVar[Mapping[Phrasing, tuple[str, ...]]] = {
        "train": (
            "push the {object} to the {zone}",
            "push the {object} into the {zone}",
            "shove the {object} to the {zone}",
            "move the {object} onto the {zone} by pushing it",
            "use the gripper to push the {object} onto the {zone}",
            "bring the {object} to the {zone} with a push",
            "lift the {object}",
            "pick up the {object}",
            "grasp the {object} and raise it",
            "raise the {object} off the table",
            "use the gripper to lift the {object} up",
            "take the {object} and hold it in the air",
        ),
        "heldout": (
            "shove the {object} onto the {zone}",
            "with the gripper push the {object} into the {zone}",
            "bring the {object} into the {zone} by pushing it",
            "lift the {object} off the table",
            "grasp the {object} and hold it up",
            "with the gripper raise the {object} in the air",
        ),
    }
    # Below the zone's radius of 0.055 m: in success the block's centre lies on the disc.
    push_distance_m: ClassVar[float] = 0.05
    rest_tolerance_m: ClassVar[float] = 0.01
    lifted_m: ClassVar[float] = 0.05
    lift_m: ClassVar[float] = 0.1
    home_m: ClassVar[tuple[float, float, float]] = (1.11, 0.75, 0.5)

    def __init__(self, image_size: int = 96, scene: SceneConfig | None = None):
        self.spec = fetch_robot_spec(image_size)
        self.scene = scene or SceneConfig()
        self.model = build_spec().compile()
        self.arm = FetchArm(self.model, block_gripper=False)
        self._block_bodies = [self.model.body(name).id for name in BLOCKS]
        joints = [self.model.joint(f"{name}:joint") for name in BLOCKS]
        # A free joint has 7 numbers in `qpos` (position, quaternion) but 6 in `qvel`, so the two
        # addresses differ.
        self._block_qpos = [int(joint.qposadr[0]) for joint in joints]
        self._block_dofs = [int(joint.dofadr[0]) for joint in joints]
        self._zone_mocaps = [int(self.model.body(name).mocapid[0]) for name in ZONES]
        words = (*VERBS, *BLOCKS, *ZONES)
        self.privileged_names = (
            *_axes("gripper", "gripper_velocity"),
            *("finger_right", "finger_left"),
            *_axes(*BLOCKS, *(f"{name}_velocity" for name in BLOCKS), *ZONES),
            *_axes("object", "target", "object_from_gripper", "target_from_object"),
            *(f"says_{word}" for word in words),
        )
        self._initial = self._settle()

    def _settle(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Time, positions and velocities with the arm at rest at `home_m`."""
        data = mujoco.MjData(self.model)
        # The base where PickAndPlace has it: three slide joints, x, y, z in metres.
        base = {"robot0:slide0": 0.405, "robot0:slide1": 0.48, "robot0:slide2": 0.0}
        for joint, value in base.items():
            data.joint(joint).qpos[0] = value
        self.arm.settle(data, extra_height_m=0.0)
        for _ in range(80):
            error = np.subtract(self.home_m, self.arm.grip_position(data))
            # Proportional control towards `home_m`, fingers closing (-1).
            self.arm.step(data, np.append(10.0 * error, -1.0))
        # Velocities and time are set to 0, so that every episode begins exactly at rest.
        return 0.0, data.qpos.copy(), np.zeros(self.model.nv)

    def reset(self, data: mujoco.MjData, seed: int, phrasing: Phrasing = "train") -> Episode:
        """The scene of the seed with the instruction of the seed, all twelve equally often."""
        # Scene, instruction and phrasing have a stream each, so that one can change alone.
        # The scene's stream is [seed, 0] (`sample_scene`), the template's [seed, 2] (`say`).
        index = np.random.default_rng([seed, 1]).integers(len(INSTRUCTIONS))
        return self.reset_with(data, seed, INSTRUCTIONS[index], phrasing)

    def reset_with(
        self,
        data: mujoco.MjData,
        seed: int,
        instruction: Instruction,
        phrasing: Phrasing = "train",
    ) -> Episode:
        """The scene of the seed with an instruction of the caller's choice."""
        scene = sample_scene(self.scene, seed)
        self._restore(data)
        for address, (x, y) in zip(self._block_qpos, scene.blocks, strict=True):
            data.qpos[address : address + 7] = (x, y, REST_HEIGHT_M, 1.0, 0.0, 0.0, 0.0)
        # z stays the model's, at which the disc lies on the table.
        data.mocap_pos[self._zone_mocaps, :2] = scene.zones
        # `_goal` reads body positions, which follow `qpos` only after this.
        mujoco.mj_forward(self.model, data)
        return self._episode(data, seed, instruction, phrasing)

    def with_goal(
        self,
        data: mujoco.MjData,
        episode: Episode,
        labels: Mapping[str, str],
        phrasing: Phrasing = "train",
    ) -> Episode:
        """See `Task.with_goal`; every scene has all blocks and zones."""
        verb, block, zone = cast(Verb, labels["verb"]), labels["object"], labels.get("zone")
        return self._episode(data, episode.seed, Instruction(verb, block, zone), phrasing)

    def _episode(
        self, data: mujoco.MjData, seed: int, instruction: Instruction, phrasing: Phrasing
    ) -> Episode:
        return Episode(
            seed=seed,
            instruction=self.say(instruction, seed, phrasing),
            goal=self._goal(data, instruction),
            labels=instruction.labels,
        )

    def say(self, instruction: Instruction, seed: int, phrasing: Phrasing = "train") -> str:
        """The instruction in one of the templates; an equal seed is an equal choice."""
        # A template belongs to "push" exactly if it names a zone, see `Instruction`.
        pushing = instruction.verb == "push"
        templates = [t for t in self.templates[phrasing] if ("{zone}" in t) == pushing]
        choice = np.random.default_rng([seed, 2]).integers(len(templates))
        return templates[choice].format(**instruction.labels)

    def _goal(self, data: mujoco.MjData, instruction: Instruction) -> np.ndarray:
        block = BLOCKS.index(instruction.block)
        starts = data.xpos[self._block_bodies, :2]  # [block, xy]
        if instruction.zone is None:
            zone = -1
            target = (*starts[block], REST_HEIGHT_M + self.lift_m)
        else:
            zone = ZONES.index(instruction.zone)
            x, y, _ = data.mocap_pos[self._zone_mocaps[zone]]
            target = (x, y, REST_HEIGHT_M)
        words = (VERBS.index(instruction.verb), block, zone)
        # [3 + 3 + 6]: target, words, x and y of the three blocks.
        return np.array([*target, *words, *starts.ravel()])

    @classmethod
    def referring_expressions(cls, phrasing: Phrasing) -> tuple[ReferringExpression, ...]:
        """All twelve instructions in all templates of their verb."""
        return tuple(
            ReferringExpression(
                template.format(object=i.block, zone=i.zone),
                i.block,
                i.zone or _lift_goal(i.block),
            )
            for i in INSTRUCTIONS
            for template in cls.templates[phrasing]
            if ("{zone}" in template) == (i.zone is not None)
        )

    def object_position(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Centre of the named block, float64 [3], world, metres (a view)."""
        return data.xpos[self._block_bodies[int(episode.goal[4])]]

    def is_success(self, data: mujoco.MjData, episode: Episode) -> bool:
        """The named block rests in the named zone, or is up in the air."""
        block = self.object_position(data, episode)
        above = block[2] - REST_HEIGHT_M
        if not _is_push(episode):
            return bool(above >= self.lifted_m)
        away = math.dist(block[:2], episode.goal[:2])
        # On the table: a block that is carried over the zone has not been pushed into it.
        return bool(away < self.push_distance_m and abs(above) < self.rest_tolerance_m)

    def cost(self, data: mujoco.MjData, episode: Episode) -> float:
        """Named block to target, plus the gripper's way to where the verb wants it."""
        grip, block = self.arm.grip_position(data), self.object_position(data, episode)
        if _is_push(episode):
            return planner_costs.push(grip, block, episode.goal[:3])
        return planner_costs.pick_and_place(grip, self.arm.fingers(data), block, episode.goal[:3])

    def privileged(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Positions in metres, velocities in m/s, world frame; then the instruction's words."""
        grip, target = self.arm.grip_position(data), episode.goal[:3]
        block = self.object_position(data, episode)
        # MuJoCo's spatial velocity: angular [:3], then linear [3:]; the last argument 0 asks for
        # the world's orientation, centred at the site.
        velocity = np.empty(6)
        mujoco.mj_objectVelocity(
            self.model, data, mujoco.mjtObj.mjOBJ_SITE, self.arm.grip_site, velocity, 0
        )
        parts = [grip, velocity[3:], self.arm.fingers(data)]
        parts += [data.xpos[body] for body in self._block_bodies]
        # The first three numbers of a free joint's velocity are linear and in the world frame.
        parts += [data.qvel[dof : dof + 3] for dof in self._block_dofs]
        parts += [data.mocap_pos[mocap] for mocap in self._zone_mocaps]
        parts += [block, target, block - grip, target - block]
        # One-hot words: the critic is not to learn that one index lies between two others.
        chosen = episode.goal[3:6].astype(int)  # verb, block, zone
        for index, words in zip(chosen, (VERBS, BLOCKS, ZONES), strict=True):
            # An index of -1 (no zone) leaves all three at 0.
            parts.append(np.arange(len(words)) == index)
        return np.concatenate(parts).astype(np.float32)

    def points(self, data: mujoco.MjData, episode: Episode) -> dict[str, np.ndarray]:
        """Every block, its lift goal and every zone, besides gripper, object and target."""
        named = {name: data.body(name).xpos.copy() for name in BLOCKS}
        named |= {
            name: data.mocap_pos[mocap].copy()
            for name, mocap in zip(ZONES, self._zone_mocaps, strict=True)
        }
        # Not above the blocks as they are now, see the class.
        height_m = REST_HEIGHT_M + self.lift_m
        # [block, xy] at reset
        starts = episode.goal[6:].reshape(len(BLOCKS), 2)
        named |= {
            _lift_goal(name): np.array([x, y, height_m])
            for name, (x, y) in zip(BLOCKS, starts, strict=True)
        }
        named["gripper"] = self.arm.grip_position(data).copy()
        named["object"] = self.object_position(data, episode).copy()
        named["target"] = episode.goal[:3].copy()
        return named

    def place_markers(self, data: mujoco.MjData, episode: Episode) -> None:
        """Nothing to show: only the words tell what to do; blocks and zones are in `data`."""

    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """A straight push with closed fingers, or a grasp from above."""
        grip, block = self.arm.grip_position(data), self.object_position(data, episode)
        if _is_push(episode):
            return tabletop_expert.push(grip, block, episode.goal[:3])
        return tabletop_expert.lift(grip, self.arm.fingers(data), block, episode.goal[:3])


TASKS: tuple[type[Task], ...] = (Tabletop,)
