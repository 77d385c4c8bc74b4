"""Random motion of the Fetch arm: it visits points, blocks and targets, and grips now and then."""

from __future__ import annotations

import math

import mujoco
import numpy as np

from sim.tasks.base import Episode, Task

_LOWEST_M, _HIGHEST_M = 0.42, 0.9
"""Of a waypoint: from the table to where the fixed cameras still see the hand."""
_AT_OBJECT_M = 0.02


class RandomMotion:
    """Moves towards one random waypoint after another; a `sim.tasks.base.Motion` of one episode.

    Args:
        task: whose points are visited.
        rng: of the waypoints, the grips and the noise.
    """

    def __init__(self, task: Task, rng: np.random.Generator):
        self._task = task
        self._rng = rng
        self._steps_left = 0
        self._waypoint = np.zeros(3)
        # 1 opens, -1 closes; unchanged throughout a waypoint, so that a grasp can carry something.
        self._grip = 1.0

    def __call__(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Float32 [4]: dx, dy, dz, gripper."""
        points = self._task.points(data, episode)
        if self._steps_left == 0:
            # 4 to 9 control steps (0.16 to 0.36 s) a waypoint, whether it is reached or not.
            self._steps_left = int(self._rng.integers(4, 10))
            self._choose(points)
        self._steps_left -= 1
        # 10 per metre: an action of 1 is 0.05 m, so errors above 10 cm are driven at full speed and
        # the approach slows down before contact.
        towards = np.clip(10.0 * (self._waypoint - points["gripper"]), -1.0, 1.0)
        noisy = np.clip(towards + self._rng.normal(0.0, 0.2, 3), -1.0, 1.0)
        return np.append(noisy, self._grip).astype(np.float32)

    def _choose(self, points: dict[str, np.ndarray]) -> None:
        """The next waypoint, or to close the hand where it is."""
        rng = self._rng
        # A block is rarely held under random motion, so closing on one in reach is the likelier
        # choice.
        at_object = (
            "object" in points and math.dist(points["gripper"], points["object"]) < _AT_OBJECT_M
        )
        if at_object and self._grip > 0 and rng.random() < 0.7:
            self._grip, self._steps_left = -1.0, 3  # the waypoint stays meanwhile
            return
        if rng.random() < 0.5:
            self._grip = rng.choice([-1.0, 1.0])
        name = rng.choice([name for name in points if name != "gripper"])
        if rng.random() < 0.65:
            # On the point itself, for contacts and grasps, or only somewhere near it.
            deviation_m = rng.choice([0.005, 0.05])
            self._waypoint = points[name] + rng.normal(0.0, deviation_m, 3)
            # From above, as the experts approach a block.
            if rng.random() < 0.3:
                self._waypoint[2] += rng.uniform(0.03, 0.12)
        else:
            self._waypoint = points["target"] + rng.uniform(-0.25, 0.25, 3)
        self._waypoint[2] = np.clip(self._waypoint[2], _LOWEST_M, _HIGHEST_M)
