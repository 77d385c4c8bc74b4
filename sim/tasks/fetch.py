"""The four Fetch tasks of gymnasium-robotics (v4), compiled from its own XML, without its wrappers.

For equal states and actions the physics equals gymnasium-robotics' to the last digits, and
`reset(seed)` draws the same block and goal positions as its `env.reset(seed=seed)`. What differs is
only what is seen: added cameras, and parts that no camera needs are left out of the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import mujoco
import numpy as np

from sim import experts, planner_costs
from sim.tasks import fetch_words
from sim.tasks.base import Episode, Phrasing
from sim.tasks.fetch_arm import (
    CONTROL_RATE_HZ,
    FetchArm,
    FetchArmTask,
    fetch_asset,
    fetch_robot_spec,
    skip_impossible_contacts,
)
from sim.tasks.fetch_cameras import (
    ARM_VIEW,
    SLIDE_VIEW,
    CameraPlan,
    add_cameras,
)
from vla.contract import GoalSpec

# gymnasium-robotics' `distance_threshold`, the same for all four tasks.
SUCCESS_DISTANCE_M = 0.05
OBJECT_RGBA = (0.15, 0.2, 0.85, 1.0)
"""Blue; gymnasium-robotics' near black is hard to tell from the fingers in a small image."""
_DT_S = 1.0 / CONTROL_RATE_HZ
_REACH_LOWEST_M = 0.42
"""Of targets where there is no block that says how high the table is."""


class FetchTask(FetchArmTask):
    """A Fetch task; subclasses state gymnasium-robotics' constants and their expert."""

    # Mostly gymnasium-robotics' constructor arguments (`initial_qpos`, `obj_range`, `target_range`,
    # `target_offset`) under names with units; defaults are what most of its tasks share.
    asset: ClassVar[str]
    slide0_m: ClassVar[float] = 0.405
    block_start_m: ClassVar[tuple[float, float, float] | None] = (1.25, 0.53, 0.4)
    block_gripper: ClassVar[bool] = True
    extra_height_m: ClassVar[float] = 0.0
    target_in_the_air: ClassVar[bool] = False
    target_offset_m: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)
    block_range_m: ClassVar[float] = 0.15
    target_range_m: ClassVar[float] = 0.15
    camera_plan: ClassVar[CameraPlan] = ARM_VIEW
    nouns: ClassVar[Mapping[str, str]] = {"object": "block"}

    def __init__(self, image_size: int = 96):
        self.spec = fetch_robot_spec(image_size)
        mjcf = mujoco.MjSpec.from_file(str(fetch_asset(self.asset)))
        # Edited before compilation: cameras and contact exclusions are no part of the physics
        # state, so the size of `qpos` and of a packed state stays gymnasium-robotics' own.
        add_cameras(mjcf, self.camera_plan)
        skip_impossible_contacts(mjcf)
        for material in ("block_mat", "puck_mat"):
            mjcf.material(material).rgba = OBJECT_RGBA
        self.model = mjcf.compile()
        self.arm = FetchArm(self.model, self.block_gripper)
        self._jacobians = np.zeros((4, 3, self.model.nv))  # scratch memory of `_velocities`
        self._target_site = self.model.site("target0").id
        # Site positions are relative to their body, goals are not.
        self._target_body_pos = self.model.body("floor0").pos.copy()
        if self.has_object:
            self._object_site = self.model.site("object0").id
            self._object_qpos = int(self.model.joint("object0:joint").qposadr[0])
        self.privileged_names = (*_READINGS[self.has_object], *_axes("goal"))
        moved = "object" if self.has_object else "gripper"
        self.goals = GoalSpec(_axes(moved), _axes("goal"), SUCCESS_DISTANCE_M)
        self._settle()

    @property
    def has_object(self) -> bool:
        """Whether there is a block or puck."""
        return self.block_start_m is not None

    def _settle(self) -> None:
        data = mujoco.MjData(self.model)
        # The robot's base stands on three slide joints: x, y and z, in metres.
        base = {"robot0:slide0": self.slide0_m, "robot0:slide1": 0.48, "robot0:slide2": 0.0}
        for joint, value in base.items():
            data.joint(joint).qpos[0] = value
        if self.block_start_m is not None:
            # A free joint: position [3] in metres, then a unit quaternion (wxyz).
            data.joint("object0:joint").qpos[:] = (*self.block_start_m, 1.0, 0.0, 0.0, 0.0)
        self.arm.settle(data, self.extra_height_m)
        # Taken once after the arm has settled, so that a reset copies it instead of stepping the
        # physics.
        self._initial = (data.time, data.qpos.copy(), data.qvel.copy())
        self.initial_grip_m = self.arm.grip_position(data).copy()
        self.table_height_m = (
            float(data.site_xpos[self._object_site][2]) if self.has_object else 0.0
        )

    def reset(self, data: mujoco.MjData, seed: int, phrasing: Phrasing = "train") -> Episode:
        """Block, goal, then words, drawn from one generator in gymnasium-robotics' order."""
        rng = np.random.default_rng(seed)
        self._restore(data)
        if self.has_object:
            # x and y alone: the height and the orientation are those at which the block had
            # settled.
            data.qpos[self._object_qpos : self._object_qpos + 2] = self._draw_block(rng)
        mujoco.mj_forward(self.model, data)
        goal = self._draw_goal(rng)
        # Last, so that the phrasing changes no number that the physics depends on.
        words = self.templates[phrasing]
        return Episode(seed=seed, instruction=words[rng.integers(len(words))], goal=goal)

    def _draw_block(self, rng: np.random.Generator) -> np.ndarray:
        center = self.initial_grip_m[:2]
        # Draws are rejected as gymnasium-robotics rejects them, or equal seeds would differ.
        while True:
            block = center + rng.uniform(-self.block_range_m, self.block_range_m, size=2)
            # The block never starts under the gripper.
            if np.linalg.norm(block - center) >= 0.1:
                return block

    def _draw_goal(self, rng: np.random.Generator) -> np.ndarray:
        offset = rng.uniform(-self.target_range_m, self.target_range_m, size=3)
        goal = self.initial_grip_m + offset
        if self.has_object:
            goal += self.target_offset_m
            # The third number was drawn in vain: the order of draws is gymnasium-robotics' own.
            goal[2] = self.table_height_m
            if self.target_in_the_air and rng.uniform() < 0.5:
                goal[2] += rng.uniform(0, 0.45)
        return goal

    def achieved(self, data: mujoco.MjData) -> np.ndarray:
        """Position of what must reach the goal, object or gripper; float64 [3] (a view)."""
        return data.site_xpos[self._object_site if self.has_object else self.arm.grip_site]

    def is_success(self, data: mujoco.MjData, episode: Episode) -> bool:
        """Within 5 cm of the goal."""
        return math.dist(self.achieved(data), episode.goal) < SUCCESS_DISTANCE_M

    def cost(self, data: mujoco.MjData, episode: Episode) -> float:
        """Distance to the goal, plus a fifth of the gripper's to the object while unsolved."""
        distance = math.dist(self.achieved(data), episode.goal)
        # At the goal the cost no longer says where the gripper should be, so it may retreat.
        if not self.has_object or distance < 0.02:
            return distance
        # Else the cost would not change before the gripper touches the object.
        gap = math.dist(self.arm.grip_position(data), self.achieved(data))
        return distance + 0.2 * max(0.0, gap - 0.03)

    def observation(self, data: mujoco.MjData) -> np.ndarray:
        """gymnasium-robotics' observation vector, float64 [10] or [25]; velocities times 0.04 s."""
        reading = np.empty(25 if self.has_object else 10)
        reading[:3] = grip = self.arm.grip_position(data)
        # Filled from both ends: the last five numbers are the gripper's and the fingers' velocities
        # in both layouts, see `_READINGS`.
        reading[-2:] = data.qvel[self.arm.finger_dofs]
        reading[-2:] *= _DT_S
        velocities = self._velocities(data)
        linear = velocities[0]
        reading[-5:-2] = linear
        fingers = slice(9, 11) if self.has_object else slice(3, 5)
        reading[fingers] = self.arm.fingers(data)
        if self.has_object:
            reading[3:6] = block = data.site_xpos[self._object_site]
            reading[6:9] = block - grip
            reading[11:14] = rotation_to_euler(data.site_xmat[self._object_site])
            # Linear velocity relative to the gripper, angular velocity in the world frame.
            reading[14:17] = velocities[2] - linear
            reading[17:20] = velocities[3]
        return reading

    def _velocities(self, data: mujoco.MjData) -> np.ndarray:
        """Linear and angular of gripper and object, [4, 3], world frame, times the period."""
        jacobians = self._jacobians
        # A site has no velocity of its own in `MjData`: it is its Jacobian [3, nv] times `qvel`.
        mujoco.mj_jacSite(self.model, data, jacobians[0], jacobians[1], self.arm.grip_site)
        if self.has_object:
            mujoco.mj_jacSite(self.model, data, jacobians[2], jacobians[3], self._object_site)
        return jacobians @ data.qvel * _DT_S  # [4, 3, nv] @ [nv]

    def privileged(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """gymnasium-robotics' observation (positions, rotation, velocities), then the goal."""
        return np.concatenate([self.observation(data), episode.goal]).astype(np.float32)

    def points(self, data: mujoco.MjData, episode: Episode) -> dict[str, np.ndarray]:
        """Gripper, target and, where there is one, the object."""
        # Copies: `site_xpos` is overwritten by the next physics step.
        named = {"gripper": self.arm.grip_position(data).copy(), "target": episode.goal.copy()}
        if self.has_object:
            named["object"] = data.site_xpos[self._object_site].copy()
        return named

    def move_target(
        self, data: mujoco.MjData, episode: Episode, rng: np.random.Generator
    ) -> Episode:
        """As a reset draws it, but in the air more often; sometimes near the object or gripper.

        Near them only 15% of the time: in an episode the target is hidden behind the arm more often
        than in the hand.
        """
        goal, lowest_m = self._draw_goal(rng), self.table_height_m or _REACH_LOWEST_M
        if self.target_in_the_air and rng.uniform() < 0.5:
            goal[2] = lowest_m + rng.uniform(0, 0.45)
        if rng.uniform() < 0.15:
            goal = self.achieved(data) + rng.normal(0.0, 0.05, 3)
            # A target of pushing and sliding lies on the table.
            if self.has_object and not self.target_in_the_air:
                goal[2] = lowest_m
        # What was drawn may lie below the table, where no camera sees it.
        goal[2] = max(goal[2], lowest_m)
        return replace(episode, goal=goal)

    def place_markers(self, data: mujoco.MjData, episode: Episode) -> None:
        """Move the target sphere; no physics is computed, so drawing cannot disturb an episode."""
        # The model's position for the next step, the data's for an image before it.
        self.model.site_pos[self._target_site] = episode.goal - self._target_body_pos
        data.site_xpos[self._target_site] = episode.goal


def rotation_to_euler(matrix: np.ndarray) -> np.ndarray:
    """XYZ Euler angles in radians of a rotation matrix, float64 [9], row-major.

    Source: the convention of gymnasium-robotics' observations.
    """
    r00, r01, r02, r10, r11, r12, _, _, r22 = matrix.tolist()
    # Cosine of the middle angle. Where it vanishes (gimbal lock) only one combination of the other
    # two angles is defined, and the first one is set to 0.
    cosine = math.hypot(r22, r12)
    if cosine > 4 * np.finfo(np.float64).eps:
        return np.array([-math.atan2(r12, r22), -math.atan2(-r02, cosine), -math.atan2(r01, r00)])
    return np.array([0.0, -math.atan2(-r02, cosine), -math.atan2(-r10, r11)])


def _axes(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for name in names for axis in "xyz")


# The order of gymnasium-robotics' observation, without (10) and with an object (25). A "_step" is a
# velocity times the control period: the displacement in one control step.
_FINGER_NAMES = ("finger_right", "finger_left")
_FINGER_SPEEDS = ("finger_right_step", "finger_left_step")
_READINGS = {
    False: (*_axes("gripper"), *_FINGER_NAMES, *_axes("gripper_step"), *_FINGER_SPEEDS),
    True: (
        *_axes("gripper", "object", "object_from_gripper"),
        *_FINGER_NAMES,
        *_axes("object_euler", "object_from_gripper_step", "object_turn_step", "gripper_step"),
        *_FINGER_SPEEDS,
    ),
}


class FetchReach(FetchTask):
    """Bring the gripper to a point in the air."""

    name = "FetchReach"
    object_phrases = ()
    nouns: ClassVar[Mapping[str, str]] = {}
    grounding_frames = 2500
    templates = fetch_words.REACH
    asset = "reach.xml"
    # gymnasium-robotics' own number for Reach, not a misprint of 0.405.
    slide0_m = 0.4049
    block_start_m = None
    extra_height_m = 0.2
    target_in_the_air = True

    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Straight to the target."""
        return experts.reach(self.arm.grip_position(data), episode.goal)


class FetchPush(FetchTask):
    """Push the block to a spot on the table with closed fingers."""

    name = "FetchPush"
    grounding_frames = 8000
    templates = fetch_words.PUSH
    asset = "push.xml"

    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Around the block to its far side, then through it."""
        return experts.push(self.arm.grip_position(data), self.achieved(data), episode.goal)

    def cost(self, data: mujoco.MjData, episode: Episode) -> float:
        """See `planner_costs.push`."""
        return planner_costs.push(self.arm.grip_position(data), self.achieved(data), episode.goal)


class FetchSlide(FetchTask):
    """Strike the puck so that it slides to a spot beyond the arm's reach."""

    name = "FetchSlide"
    nouns: ClassVar[Mapping[str, str]] = {"object": "puck"}
    templates = fetch_words.SLIDE
    asset = "slide.xml"
    slide0_m = 0.05
    block_start_m = (1.7, 1.1, 0.41)
    extra_height_m = -0.02
    target_offset_m = (0.4, 0.0, 0.0)
    block_range_m = 0.1
    target_range_m = 0.3
    camera_plan = SLIDE_VIEW

    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Behind the puck, then push it to the speed from which friction stops it at the goal."""
        speed = self._velocities(data)[2]
        # `_velocities` are displacements of one control step, the expert takes m/s.
        return experts.slide(
            self.arm.grip_position(data), self.achieved(data), speed / _DT_S, episode.goal
        )


class FetchPickAndPlace(FetchTask):
    """Bring the block to a point on the table or in the air."""

    name = "FetchPickAndPlace"
    grounding_frames = 20_000
    templates = fetch_words.PICK_AND_PLACE
    asset = "pick_and_place.xml"
    # The only one of the four in which the fingers obey the fourth action.
    block_gripper = False
    extra_height_m = 0.2
    target_in_the_air = True

    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Above the block, down, close, carry."""
        return experts.pick_and_place(
            self.arm.grip_position(data), self.arm.fingers(data), self.achieved(data), episode.goal
        )

    def cost(self, data: mujoco.MjData, episode: Episode) -> float:
        """See `planner_costs.pick_and_place`."""
        return planner_costs.pick_and_place(
            self.arm.grip_position(data), self.arm.fingers(data), self.achieved(data), episode.goal
        )


TASKS: tuple[type[FetchTask], ...] = (FetchReach, FetchPush, FetchSlide, FetchPickAndPlace)
