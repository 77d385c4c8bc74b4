"""Shadow's dexterous hand: bring fingertips together, turn a block, an egg or a pen in the palm.

The environments are gymnasium-robotics' own (HandReach-v3, HandManipulate*-v1). What differs: the
goal is drawn without a step of physics, where the original computes one for every image, so that
looking changes nothing; and MuJoCo's data are cleared before a reset, which the original's
manipulation tasks omit: their episodes depend, in the last digits, on the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import mujoco
import numpy as np

from sim.camera import Camera, View
from sim.tasks.base import Episode, Task
from sim.tasks.gymnasium_task import GymnasiumState, Part
from sim.tasks.robotics_family import RoboticsFamily, Words

_FINGERS = 5


def _turn(thing: str) -> Words:
    return {
        "train": (
            f"turn the {thing} as the one beside the hand lies",
            f"rotate the {thing} until it lies like the other one",
        ),
        "heldout": (f"turn the {thing} until it lies like the other one",),
    }


def _move(thing: str) -> Words:
    return {
        "train": (
            f"bring the {thing} to where the other one floats",
            f"move the {thing} into the place and the turn of the other one",
        ),
        "heldout": (f"bring the {thing} into the place and the turn of the other one",),
    }


class ShadowHand(RoboticsFamily):
    """One task of the hand; success is what the environment's `info` calls so, now.

    An action is where a joint is to go: -1 and 1 are the ends of its actuator's range.
    """

    name = "ShadowHand"
    robot = "shadow-hand"
    success_key = "is_success"
    env_ids: ClassVar[Mapping[str, str]] = {
        "reach": "HandReach-v3",
        "block-rotate-z": "HandManipulateBlockRotateZ-v1",
        "block-rotate-parallel": "HandManipulateBlockRotateParallel-v1",
        "block-rotate-xyz": "HandManipulateBlockRotateXYZ-v1",
        "block": "HandManipulateBlock-v1",
        "egg-rotate": "HandManipulateEggRotate-v1",
        "egg": "HandManipulateEgg-v1",
        "pen-rotate": "HandManipulatePenRotate-v1",
        "pen": "HandManipulatePen-v1",
    }
    words_of: ClassVar[Mapping[str, Words]] = {
        "reach": {
            "train": ("bring the fingertips to the marks", "touch the marks with the fingers"),
            "heldout": ("bring the fingers to the marks",),
        },
        **{name: _turn("block") for name in env_ids if name.startswith("block-")},
        "block": _move("block"),
        "egg-rotate": _turn("egg"),
        "egg": _move("egg"),
        "pen-rotate": _turn("pen"),
        "pen": _move("pen"),
    }
    camera_list = (
        Camera("side", view=View((1.0, 0.87, 0.17), 0.4, 55.0, -25.0)),
        Camera("top", view=View((1.05, 0.87, 0.17), 0.45, 90.0, -50.0)),
    )

    def __init__(self, image_size: int = 96, variant: str = ""):
        # gymnasium-robotics' own lengths.
        self.episode_length = 50 if variant == "reach" else 100
        super().__init__(image_size, variant)

    def declare(self, state: GymnasiumState) -> None:
        """Actions by the names of the actuators, proprioception by those of the joints."""
        model = state.model
        actuators = [model.actuator(index).name for index in range(model.nu)]
        joints = [model.joint(index).name for index in range(model.njnt)]
        own = tuple(n.removeprefix("robot0:") for n in joints if n.startswith("robot0:"))
        self.action_names = tuple(name.removeprefix("robot0:A_") for name in actuators)
        self.action_units = ("half its range",) * model.nu
        self.proprio_parts = (Part(own, ("rad",) * len(own), "observation"),)

    def place_markers(self, data: GymnasiumState, episode: Episode) -> None:
        """Where the goal is drawn; derived positions alone change, which a step computes anew."""
        env = data.env.unwrapped
        goal: np.ndarray = env.goal  # pyright: ignore[reportAttributeAccessIssue]
        if self.variant == "reach":
            tips = np.reshape(data.observation["achieved_goal"], (_FINGERS, 3))
            for finger, wanted in enumerate(goal.reshape(_FINGERS, 3)):
                data.data.site(f"target{finger}").xpos = wanted
                data.data.site(f"finger{finger}").xpos = tips[finger]
            return
        beside = 0.15 if env.target_position == "ignore" else 0.0  # pyright: ignore[reportAttributeAccessIssue]
        position = goal[:3] + np.array([beside, 0.0, 0.0])
        _pose_body(data.model, data.data, "target", position, goal[3:])
        # The faces that tell a block's sides apart are invisible to the simulator's own viewer.
        for index in range(data.model.ngeom):
            if data.model.geom(index).name == "object_hidden":
                data.model.geom_rgba[index, 3] = 1.0


def _pose_body(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    name: str,
    position: np.ndarray,
    quaternion: np.ndarray,
) -> None:
    """Draw a body's geometry elsewhere: position [3] in metres, quaternion [4] (wxyz), world."""
    matrix, turned, own = np.empty(9), np.empty(3), np.empty(4)
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] != model.body(name).id:
            continue
        mujoco.mju_rotVecQuat(turned, model.geom_pos[geom], quaternion)
        mujoco.mju_mulQuat(own, quaternion, model.geom_quat[geom])
        mujoco.mju_quat2Mat(matrix, own)
        data.geom_xpos[geom] = position + turned
        data.geom_xmat[geom] = matrix


TASKS: tuple[type[Task], ...] = (ShadowHand,)
