"""The simulated Fetch arm: its contract, its assets and its control step."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import mujoco
import numpy as np

from sim.tasks.base import Episode, Motion
from sim.tasks.fetch_motion import RandomMotion
from sim.tasks.mujoco_task import MujocoTask
from vla.contract import CameraSpec, RobotSpec, VectorSpec

CAMERAS = ("front", "side", "wrist")
# 20 substeps of 2 ms are one control step of 40 ms.
CONTROL_RATE_HZ = 25.0
SUBSTEPS = 20
POSITION_SCALE_M = 0.05
_FINGERS = ("robot0:r_gripper_finger_joint", "robot0:l_gripper_finger_joint")
_DOWN = np.array([1.0, 0.0, 1.0, 0.0])
"""Orientation of the gripper that gymnasium-robotics adds to the present one, wxyz."""

_NEVER_TOUCH = (
    ("base_link", "shoulder_pan_link"),
    ("head_pan_link", "shoulder_lift_link"),
    ("head_pan_link", "shoulder_pan_link"),
    ("head_pan_link", "torso_fixed_link"),
    ("head_tilt_link", "shoulder_lift_link"),
    ("head_tilt_link", "shoulder_pan_link"),
    ("shoulder_pan_link", "torso_fixed_link"),
    ("shoulder_pan_link", "upperarm_roll_link"),
    ("shoulder_lift_link", "elbow_flex_link"),
    ("upperarm_roll_link", "forearm_roll_link"),
    ("elbow_flex_link", "wrist_flex_link"),
    ("forearm_roll_link", "wrist_roll_link"),
)
"""Links whose bounding spheres overlap but that no joint angles bring together."""


def fetch_asset(filename: str) -> Path:
    """Path of an XML file of gymnasium-robotics' Fetch assets, found without importing it.

    Raises:
        ModuleNotFoundError: gymnasium-robotics is not installed.
    """
    found = importlib.util.find_spec("gymnasium_robotics")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the Fetch assets come with gymnasium-robotics: install it")
    return Path(found.submodule_search_locations[0]) / "envs" / "assets" / "fetch" / filename


def fetch_robot_spec(image_size: int) -> RobotSpec:
    """The contract of the simulated Fetch arm.

    `dx, dy, dz` displace the gripper's set point from where the gripper is, in multiples of 0.05 m
    a control step (the arm covers about two thirds of that in one step). `gripper` displaces the
    fingers' set point from where they are, in metres, cut to [0, 0.2] m: below about -0.05 it
    closes, above 0 it opens. Tasks that block the gripper ignore it.
    """
    return RobotSpec(
        robot="fetch",
        action=VectorSpec(
            names=("dx", "dy", "dz", "gripper"),
            units=("0.05 m", "0.05 m", "0.05 m", "m"),
            low=(-1.0,) * 4,
            high=(1.0,) * 4,
        ),
        proprio=VectorSpec(
            names=("gripper_x", "gripper_y", "gripper_z", "finger_right", "finger_left"),
            units=("m",) * 5,
            # Bounds of the workspace in the world frame, with a margin. A finger opens by at most 5
            # cm; joint limits are soft in MuJoCo, hence readings slightly below 0.
            low=(0.0, 0.0, 0.0, -0.01, -0.01),
            high=(2.0, 1.5, 1.5, 0.06, 0.06),
        ),
        cameras=tuple(CameraSpec(name, image_size, image_size) for name in CAMERAS),
        control_rate_hz=CONTROL_RATE_HZ,
    )


def skip_impossible_contacts(spec: mujoco.MjSpec) -> None:
    """Leave out contacts that cannot occur; every step of the physics stays what it was.

    They take 6 % of a step: meshes that are near each other but never touch.
    """
    for one, other in _NEVER_TOUCH:
        # MuJoCo drops an excluded pair before the narrow phase, which is where the time went.
        spec.add_exclude(bodyname1=f"robot0:{one}", bodyname2=f"robot0:{other}")


class FetchArm:
    """What every task with the Fetch arm shares: addresses in the model and the control step."""

    def __init__(self, model: mujoco.MjModel, block_gripper: bool):
        self.model = model
        self.block_gripper = block_gripper
        self.grip_site = model.site("robot0:grip").id
        self.gripper_body = model.body("robot0:gripper_link").id
        self.finger_qpos = np.array([model.joint(name).qposadr[0] for name in _FINGERS])
        self.finger_dofs = np.array([model.joint(name).dofadr[0] for name in _FINGERS])
        # Address in `qpos` of the joint that each actuator drives, in the actuators' order.
        self.actuated_qpos = model.jnt_qposadr[model.actuator_trnid[:, 0]]

    def settle(self, data: mujoco.MjData, extra_height_m: float) -> None:
        """Bring the arm from its zero pose above the table, as gymnasium-robotics does once."""
        model = self.model
        # `eq_data` of a weld: anchor [0:3], relative position [3:6], relative quaternion (wxyz)
        # [6:10].
        # The weld must hold mocap body and gripper together without an offset.
        model.eq_data[:, :7] = (0, 0, 0, 0, 0, 0, 1)
        mujoco.mj_forward(model, data)
        # gymnasium-robotics' numbers: from the grip point of the zero pose to one above the table.
        offset = np.array([-0.498, 0.005, -0.431 + extra_height_m])
        data.mocap_pos[0] = offset + data.site_xpos[self.grip_site]
        data.mocap_quat[0] = (1.0, 0.0, 1.0, 0.0)
        # The weld is a soft constraint: it takes some control steps until the arm has followed.
        mujoco.mj_step(model, data, nstep=10 * SUBSTEPS)

    def step(self, data: mujoco.MjData, action: np.ndarray) -> None:
        """Execute one control step of 20 substeps; `action` float [4], clipped to [-1, 1]."""
        command = np.clip(action, -1.0, 1.0)
        # Position servos with a control range of [0, 0.2] m, to which MuJoCo clamps `ctrl`.
        # Fingers and gripper are commanded relative to where they are, not to the last command.
        if self.model.nu:
            opening = 0.0 if self.block_gripper else command[3]
            data.ctrl[:] = data.qpos[self.actuated_qpos] + opening
        # gymnasium-robotics multiplies float32 actions in float32: keep that rounding
        data.mocap_pos[0] = data.xpos[self.gripper_body] + command[:3] * command.dtype.type(
            POSITION_SCALE_M
        )
        # Not a unit quaternion; MuJoCo normalises mocap quaternions. Adding the downward one turns
        # the gripper back towards it wherever contact has tilted it.
        data.mocap_quat[0] = data.xquat[self.gripper_body] + _DOWN
        mujoco.mj_step(self.model, data, nstep=SUBSTEPS)
        if self.block_gripper:
            # Contacts push the fingers apart; gymnasium-robotics sets them back after each step.
            data.qpos[self.finger_qpos] = 0.0
            mujoco.mj_forward(self.model, data)

    def grip_position(self, data: mujoco.MjData) -> np.ndarray:
        """World position of the point between the fingertips, float64 [3], metres (a view)."""
        return data.site_xpos[self.grip_site]

    def fingers(self, data: mujoco.MjData) -> np.ndarray:
        """Opening of the right and the left finger, float64 [2], metres."""
        return data.qpos[self.finger_qpos]

    def proprio(self, data: mujoco.MjData) -> np.ndarray:
        """Float32 [5]: gripper position and finger openings, metres."""
        return np.concatenate([self.grip_position(data), self.fingers(data)]).astype(np.float32)


_HELD_M = 0.025
"""A block of 5 cm is held when its centre is this near to the grip point and no finger is shut."""
# A finger beside a 5 cm block is open by 2.5 cm.
_SHUT_M, _OPEN_M = 0.022, 0.028
"""Opening of a finger: shut on nothing below, wider than a block above."""


class FetchArmTask(MujocoTask):
    """A task with the Fetch arm, which begins where the arm had settled.

    Attributes:
        arm: of `model`.
        _initial: time, positions and velocities once it had settled.
    """

    # The arm stays where it is; the fingers repeat their last command, or they would let go.
    rest_action: ClassVar[Mapping[str, float]] = {"dx": 0.0, "dy": 0.0, "dz": 0.0}
    grip_actions = ("gripper",)
    arm: FetchArm
    _initial: tuple[float, np.ndarray, np.ndarray]

    def make_data(self) -> mujoco.MjData:
        """New data with the arm settled and the blocks at their default places."""
        data = mujoco.MjData(self.model)
        self._restore(data)
        mujoco.mj_forward(self.model, data)
        return data

    def _restore(self, data: mujoco.MjData) -> None:
        # Also clears controls, mocap poses, warm start and warnings of the episode before.
        mujoco.mj_resetData(self.model, data)
        data.time, data.qpos[:], data.qvel[:] = self._initial

    def step(self, data: mujoco.MjData, episode: Episode, action: np.ndarray) -> None:
        """One control step of 0.04 s."""
        self.arm.step(data, action)
        episode.steps += 1

    def proprio(self, data: mujoco.MjData) -> np.ndarray:
        """Gripper position and finger openings."""
        return self.arm.proprio(data)

    def random_motion(self, rng: np.random.Generator) -> Motion:
        """From waypoint to waypoint, gripping now and then."""
        return RandomMotion(self, rng)

    @classmethod
    def held(cls, proprio: np.ndarray, points: Mapping[str, np.ndarray]) -> str | None:
        """The object at the grip point while both fingers are as far apart as a block is wide."""
        fingers = proprio[-2:]  # finger_right, finger_left
        if not ((fingers > _SHUT_M) & (fingers < _OPEN_M)).all():
            return None
        for phrase in cls.object_phrases:
            if np.linalg.norm(points[phrase] - points["gripper"]) < _HELD_M:
                return phrase
        return None
