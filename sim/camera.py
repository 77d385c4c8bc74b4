"""One view of a MuJoCo scene: a camera of its model, or one that stands free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np


@dataclass(frozen=True)
class View:
    """A free camera: it looks at a point from a distance.

    Attributes:
        look_at: world point in the middle of the image, metres.
        distance_m: from the camera to that point.
        azimuth_deg: the direction in which it looks, from the world's +x towards +y.
        elevation_deg: negative looks down.
    """

    look_at: tuple[float, float, float]
    distance_m: float
    azimuth_deg: float
    elevation_deg: float


@dataclass(frozen=True)
class Camera:
    """One camera of a task.

    Attributes:
        name: in the contract.
        source: name of the model's camera, where that is another one.
        view: a free camera instead of one of the model.
        turned: its images are turned by half a turn, for cameras that are mounted upside down.
    """

    name: str
    source: str = ""
    view: View | None = None
    turned: bool = False

    def in_model(self, model: mujoco.MjModel) -> mujoco.MjvCamera:
        """What MuJoCo draws with.

        Raises:
            ValueError: the model has no such camera; the message lists those that it has.
        """
        made = mujoco.MjvCamera()
        if self.view is None:
            made.type = mujoco.mjtCamera.mjCAMERA_FIXED
            made.fixedcamid = self._index(model)
            return made
        made.type = mujoco.mjtCamera.mjCAMERA_FREE
        made.lookat[:] = self.view.look_at
        made.distance = self.view.distance_m
        made.azimuth, made.elevation = self.view.azimuth_deg, self.view.elevation_deg
        return made

    def is_fixed(self, model: mujoco.MjModel) -> bool:
        """Whether it stands still in the world."""
        return self.view is not None or int(model.cam_bodyid[self._index(model)]) == 0

    def pose(self, model: mujoco.MjModel) -> list[float]:
        """Numbers that decide what it shows, to the micrometre."""
        if self.view is not None:
            view = self.view
            numbers = (*view.look_at, view.distance_m, view.azimuth_deg, view.elevation_deg)
        else:
            camera = model.camera(self._index(model))
            numbers = (*camera.pos, *camera.quat, *camera.fovy)
        # Rounded, so that the last bits of a compiled pose cannot make equal cameras differ.
        return [round(float(number), 6) for number in numbers]

    def project(self, model: mujoco.MjModel, data: mujoco.MjData, points: np.ndarray) -> np.ndarray:
        """Where world points [n, 3] are in the square image, float64 [n, 2].

        x to the right and y down, from -1 to 1 inside the image; NaN behind the camera.
        """
        position, axes, fovy_deg = self._frame(model, data)
        # Into the camera's frame, which looks along its own -z. From the right the matrix [3, 3]
        # multiplies row vectors by the inverse rotation.
        in_camera = (points - position) @ axes
        ahead = np.where(in_camera[:, 2] < 0, -in_camera[:, 2], np.nan)
        # In half image heights: a point at the edge of the vertical angle is at 1.
        focal = 1.0 / np.tan(np.radians(fovy_deg) / 2)
        # MuJoCo's camera has +y up, images have y down. [n, 2] / [n, 1]
        down = np.array([1.0, -1.0]) * (-1.0 if self.turned else 1.0)
        return focal * in_camera[:, :2] * down / ahead[:, None]

    def _frame(
        self, model: mujoco.MjModel, data: mujoco.MjData
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Position [3], axes [3, 3] as columns (right, up, backward) and vertical angle."""
        if self.view is None:
            index = self._index(model)
            axes = data.cam_xmat[index].reshape(3, 3)
            return data.cam_xpos[index], axes, float(model.cam_fovy[index])
        azimuth, elevation = np.radians([self.view.azimuth_deg, self.view.elevation_deg])
        forward = np.array(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
            ]
        )
        right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
        position = np.asarray(self.view.look_at) - self.view.distance_m * forward
        axes = np.stack([right, np.cross(right, forward), -forward], axis=1)
        return position, axes, float(model.vis.global_.fovy)

    def _index(self, model: mujoco.MjModel) -> int:
        wanted = self.source or self.name
        valid = [model.camera(index).name for index in range(model.ncam)]
        if wanted not in valid:
            raise ValueError(f"the model has no camera {wanted!r}; it has {valid}")
        return valid.index(wanted)


def as_cameras(cameras: Sequence[str | Camera]) -> tuple[Camera, ...]:
    """Names stand for cameras of the model."""
    return tuple(Camera(one) if isinstance(one, str) else one for one in cameras)
