"""A task as a gymnasium environment in the form that LeRobot expects."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sim.seeds import DEVELOPMENT
from sim.tasks.base import Episode, Phrasing
from sim.tasks.registry import make_task


class TaskEnv(gym.Env):
    """One task of ours; it ends at its length, or where it ends inside the task.

    `info["is_success"]` is the task's condition after the last step: to have passed through the
    goal does not count, as in our own reports.

    Args:
        task: registry name.
        image_size: pixels a side of an image.
        phrasing: instruction templates.
    """

    def __init__(self, task: str, image_size: int = 96, phrasing: Phrasing = "train"):
        self._task = make_task(task, image_size)
        spec = self._task.spec
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(spec.control_rate_hz)}
        self.render_mode = "rgb_array"
        # Names that LeRobot's evaluation reads: `_max_episode_steps` and `task_description`.
        self.task, self.task_description = task, ""
        self._max_episode_steps = self._task.episode_length
        self._phrasing: Phrasing = phrasing
        self._names = tuple(camera.name for camera in spec.cameras)
        self._renderer = self._task.make_renderer(self._names, image_size)
        self._data = self._task.make_data()
        self._episode: Episode | None = None
        self._images: dict[str, np.ndarray] = {}
        image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                # Keys that LeRobot's `preprocess_observation` translates into `observation.*`.
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (spec.proprio.dim,), np.float32),
                "pixels": gym.spaces.Dict(dict.fromkeys(self._names, image)),
            }
        )
        low, high = (np.array(end, np.float32) for end in (spec.action.low, spec.action.high))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode of this seed, or of a random one of `sim.seeds.DEVELOPMENT`."""
        super().reset(seed=seed)
        if seed is None:
            # Automatic resets come without a seed; gymnasium's generator keeps them reproducible
            # after the first one.
            seed = int(self.np_random.integers(DEVELOPMENT.start, DEVELOPMENT.stop))
        self._episode = self._task.reset(self._data, seed, self._phrasing)
        self.task_description = self._episode.instruction
        return self._observe(self._episode), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one control step.

        Raises:
            ValueError: the action has another shape or is not finite; nothing has moved.
        """
        if (episode := self._episode) is None:
            raise RuntimeError("call reset first")
        names = self._task.spec.action.names
        # MuJoCo would reset the whole state on a NaN and go on.
        if np.shape(action) != (len(names),) or not np.isfinite(action).all():
            raise ValueError(f"action {action} is not {len(names)} finite numbers {names}")
        self._task.step(self._data, episode, np.asarray(action, np.float32))
        success = self._task.is_success(self._data, episode)
        # Success does not end an episode, as in our own environments.
        terminated = self._task.is_terminated(self._data, episode)
        truncated = episode.steps >= self._task.episode_length and not terminated
        info = {"is_success": (truncated or terminated) and success}
        return self._observe(episode), float(success), terminated, truncated, info

    def render(self) -> np.ndarray:
        """What the cameras saw last, side by side: uint8 [height, cameras * width, 3]."""
        return np.concatenate([self._images[name] for name in self._names], axis=1)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()

    def _observe(self, episode: Episode) -> dict[str, Any]:
        self._task.place_markers(self._data, episode)
        self._images = self._renderer.images(self._data)
        return {"agent_pos": self._task.proprio(self._data), "pixels": dict(self._images)}
