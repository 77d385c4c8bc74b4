"""A task's robot as a LeRobot robot; LeRobot finds this module and class by the config's names."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot

from sim.lerobot_plugin.config_robot import SimulatedRobotConfig
from sim.tasks.base import Episode, Renderer
from sim.tasks.registry import make_task

logger = logging.getLogger(__name__)

# LeRobot hands only names that end so to a policy; our commands are displacements a control step.
STATE, COMMAND = "{}.pos", "{}.vel"


class SimulatedRobot(Robot):
    """The robot of one task, in lockstep: every command is one control step of physics.

    Raises:
        ValueError: unknown task; the message lists the valid ones.
    """

    config_class = SimulatedRobotConfig
    name = "vla_sim"

    def __init__(self, config: SimulatedRobotConfig):
        super().__init__(config)
        self.config = config
        self._task = make_task(config.task, config.image_size)
        # The model is built at once, for the features; the state and the renderer only by
        # `connect`.
        self._world: tuple[Any, Episode, Renderer] | None = None
        spec = self._task.spec
        self._state = [STATE.format(name) for name in spec.proprio.names]
        self._command = [COMMAND.format(name) for name in spec.action.names]

    @property
    def observation_features(self) -> dict[str, Any]:
        """Proprioception as floats, images as shapes."""
        images = {c.name: (c.height, c.width, 3) for c in self._task.spec.cameras}
        return dict.fromkeys(self._state, float) | images

    @property
    def action_features(self) -> dict[str, Any]:
        """One float a dimension."""
        return dict.fromkeys(self._command, float)

    @property
    def is_connected(self) -> bool:
        """The world is there."""
        return self._world is not None

    @property
    def is_calibrated(self) -> bool:
        """There is nothing to calibrate."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Build the world in the initial state of the configured seed."""
        data = self._task.make_data()
        episode = self._task.reset(data, self.config.seed)
        cameras = [camera.name for camera in self._task.spec.cameras]
        renderer = self._task.make_renderer(cameras, self.config.image_size)
        self._world = data, episode, renderer
        logger.info("%s asks: --task=%r", self.config.task, episode.instruction)

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """State and images, now."""
        data, episode, renderer = self._connected()
        # The marker of the goal is not part of the physics, so no step moves it into the image.
        self._task.place_markers(data, episode)
        state = dict(zip(self._state, self._task.proprio(data).tolist(), strict=True))
        return state | renderer.images(data)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Execute one control step; returns what was executed, cut to the limits.

        Raises:
            ValueError: other names than the commands', or a number that is not finite; nothing
                has moved.
        """
        data, episode, _ = self._connected()
        # A missing name would be a command of 0, an unknown one would be ignored: both are refused.
        if set(action) != set(self._command):
            raise ValueError(f"the robot takes {self._command}, got {sorted(action)}")
        command = np.array([action[name] for name in self._command], np.float32)
        if not np.isfinite(command).all():
            raise ValueError(f"the command is not finite: {action}")
        limits = self._task.spec.action
        # `Robot.send_action` returns what was sent after clipping; LeRobot's callers may record it.
        command = command.clip(np.array(limits.low, np.float32), np.array(limits.high, np.float32))
        self._task.step(data, episode, command)
        return dict(zip(self._command, command.tolist(), strict=True))

    def disconnect(self) -> None:
        """Take the world down and say how it ended."""
        data, episode, renderer = self._connected()
        done = "solved" if self._task.is_success(data, episode) else "not solved"
        logger.info("%s %s after %d control steps", self.config.task, done, episode.steps)
        renderer.close()
        self._world = None

    def _connected(self) -> tuple[Any, Episode, Renderer]:
        if self._world is None:
            raise ConnectionError("the simulated robot is not connected")
        return self._world
