"""Where the Fetch cameras stand, and what is left out of their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

HIDDEN_GROUP = 4
"""Geometry group that MuJoCo does not draw by default."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """One fixed camera: where it stands, what it looks at (world, metres), vertical angle."""

    position: Point
    look_at: Point
    fovy_deg: float


@dataclass(frozen=True)
class CameraPlan:
    """The two fixed views of a task; the wrist view is the same everywhere."""

    front: View
    side: View


TABLE_VIEW = CameraPlan(
    front=View((2.0, 0.75, 1.0), (1.33, 0.75, 0.48), 36.0),
    side=View((1.35, 0.0, 0.9), (1.35, 0.74, 0.48), 38.0),
)
TALL_VIEW = CameraPlan(
    front=View((2.3, 0.75, 1.1), (1.34, 0.75, 0.62), 32.0),
    side=View((1.35, -0.3, 0.9), (1.35, 0.75, 0.62), 32.0),
)
SLIDE_VIEW = CameraPlan(
    front=View((2.3, 0.75, 1.3), (1.3, 0.75, 0.4), 40.0),
    side=View((1.3, -0.1, 1.2), (1.3, 0.75, 0.4), 50.0),
)


def add_cameras(spec: mujoco.MjSpec, plan: CameraPlan) -> None:
    """Add "front", "side" and "wrist" to an uncompiled Fetch model; the physics stays as it is.

    Parts that no camera needs (base, head, sensors, the mocap cross) go to a hidden group: they
    hold most of the model's vertices, and vertices are what software rendering pays for.
    """
    for name, view in (("front", plan.front), ("side", plan.side)):
        spec.worldbody.add_camera(
            name=name, pos=view.position, quat=look_at_quat(view), fovy=view.fovy_deg
        )
    spec.body("robot0:gripper_link").add_camera(
        name="wrist", pos=(-0.12, 0.0, 0.13), quat=_WRIST_QUAT, fovy=60.0
    )
    for body in _UNSEEN_BODIES:
        for geom in spec.body(body).geoms:
            geom.group = HIDDEN_GROUP


def look_at_quat(view: View) -> np.ndarray:
    """Orientation of a camera (looking along its -z, +y up) with the world's z upwards; wxyz."""
    backward = np.subtract(view.position, view.look_at)
    backward /= np.linalg.norm(backward)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    frame = np.stack([right, np.cross(backward, right), backward], axis=1)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, frame.ravel())
    return quat


_WRIST_QUAT = (0.5, -0.5, -0.5, 0.5)
_UNSEEN_BODIES = (
    "robot0:mocap",
    "robot0:base_link",
    "robot0:head_pan_link",
    "robot0:head_tilt_link",
    "robot0:estop_link",
    "robot0:laser_link",
    "robot0:torso_lift_link",
    "robot0:torso_fixed_link",
)
