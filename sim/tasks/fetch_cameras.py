"""Poses of the Fetch cameras, and what is left out of their images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

HIDDEN_GROUP = 4
"""Geometry group that MuJoCo does not draw by default."""

_DISTANCE_M = 1.6
"""From every fixed camera to the point in the middle of its image."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """One fixed camera: where it stands, what it looks at (world, metres), full vertical angle."""

    position: Point
    look_at: Point
    fovy_deg: float


@dataclass(frozen=True)
class CameraPlan:
    """The two fixed views of a task; the wrist view is the same everywhere."""

    front: View
    side: View


def orbit(look_at: Point, half_extent_m: float, azimuth_deg: float, elevation_deg: float) -> View:
    """A camera on a sphere around the point that it looks at.

    It stands far away with a narrow angle: nearly parallel rays make a centimetre equally many
    pixels everywhere.

    Args:
        look_at: world point in the middle of the image, metres.
        half_extent_m: what the image shows to each side of that point.
        azimuth_deg: where the camera stands, from the world's +x towards +y.
        elevation_deg: how far above the horizon it stands.
    """
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    flat = math.cos(elevation) * _DISTANCE_M
    x, y, z = look_at
    position = (
        x + flat * math.cos(azimuth),
        y + flat * math.sin(azimuth),
        z + _DISTANCE_M * math.sin(elevation),
    )
    # The full angle: `half_extent_m` lies at the edge of the image at the distance of `look_at`.
    return View(position, look_at, math.degrees(2 * math.atan2(half_extent_m, _DISTANCE_M)))


def front_and_side(look_at: Point, half_extent_m: float, elevation_deg: float) -> CameraPlan:
    """A view from ahead of the robot and one from its right, a right angle apart."""
    return CameraPlan(
        # A right angle, so that together the two views determine all three coordinates of a point.
        front=orbit(look_at, half_extent_m, 0.0, elevation_deg),
        side=orbit(look_at, half_extent_m, -90.0, elevation_deg),
    )


ARM_VIEW = front_and_side((1.34, 0.75, 0.60), 0.32, 33.0)
"""What the arm can reach above the table: one place of the cameras for every task but Slide."""
SLIDE_VIEW = front_and_side((1.30, 0.75, 0.42), 0.46, 50.0)
"""The whole table, over which the puck slides."""


def add_cameras(spec: mujoco.MjSpec, plan: CameraPlan) -> None:
    """Add "front", "side" and "wrist" to an uncompiled Fetch model; the physics stays as it is.

    Parts that no camera needs (base, head, sensors, the mocap cross) go to a hidden group: they
    hold most of the model's vertices, and vertices are what software rendering pays for.
    """
    for name, view in (("front", plan.front), ("side", plan.side)):
        backward = np.subtract(view.position, view.look_at)
        # From the target to the camera: a camera's +z points away from what it sees.
        quat = _looking_along(backward, up=np.array([0.0, 0.0, 1.0]))
        spec.worldbody.add_camera(name=name, pos=view.position, quat=quat, fovy=view.fovy_deg)
    # the gripper's frame: +x points out of the fingers (down), +z away from the robot
    eye, tips = np.array([-0.10, 0.0, 0.11]), np.array([0.04, 0.0, 0.02])
    # Above and ahead of the fingers, looking back down at their tips.
    quat = _looking_along(eye - tips, up=np.array([-1.0, 0.0, 0.0]))
    spec.body("robot0:gripper_link").add_camera(name="wrist", pos=eye, quat=quat, fovy=70.0)
    for body in _UNSEEN_BODIES:
        for geom in spec.body(body).geoms:
            # The group decides drawing alone; contacts go by contype and conaffinity.
            geom.group = HIDDEN_GROUP


def _looking_along(backward: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Orientation (wxyz) of a camera, which looks along its own -z, +y up, in its body's frame."""
    # Columns of the rotation matrix: the camera's x (right), y (up) and z (backward) axes.
    backward = backward / np.linalg.norm(backward)
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    frame = np.stack([right, np.cross(backward, right), backward], axis=1)
    # MuJoCo takes the matrix row by row, float64 [9].
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, frame.ravel())
    return quat


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
