"""A gymnasium environment without MuJoCo, and its declaration as a task."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from sim.camera import Camera, View
from sim.tasks.gymnasium_task import GymnasiumTask, Part


class Line(gymnasium.Env):
    """A point on a line, without MuJoCo; it is lost beyond 1."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gymnasium.spaces.Dict(
        {
            "robot": gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-2, 2, (1,))}),
            "goal": gymnasium.spaces.Box(-2, 2, (1,)),
        }
    )

    def __init__(self, limit: float = 0.1, leak: bool = False):
        self.action_space = gymnasium.spaces.Box(-limit, limit, (1,), np.float32)
        self.x, self.goal, self._leak = 0.0, 0.5, leak

    def reset(self, *, seed=None, options=None):
        """Anywhere in the middle; a leak keeps something of the episode before."""
        super().reset(seed=seed)
        before = self.x if self._leak else 0.0
        self.x = self.np_random.uniform(-0.3, 0.3) + 0.01 * before
        return self._seen(), {}

    def step(self, action):
        """Move."""
        self.x += float(action[0])
        reached = abs(self.x - self.goal) < 0.05
        return self._seen(), 0.0, bool(self.x > 1), False, {"success": reached}

    def render(self):
        """A wide image with a white column."""
        image = np.zeros((40, 80, 3), np.uint8)
        column = int(np.clip(40 + 20 * self.x, 20, 59))
        image[:, column : column + 2] = 255
        return image

    def _seen(self):
        return {"robot": {"x": np.array([self.x])}, "goal": np.array([self.goal])}


class LineTask(GymnasiumTask):
    """Its declaration."""

    name = "Line"
    robot = "point"
    episode_length = 30
    templates: ClassVar = {"train": ("go to the goal",), "heldout": ("reach the goal",)}
    action_names = ("dx",)
    action_units = ("m",)
    proprio_parts = (Part(("x",), ("m",), "robot/x"),)
    success_key = "success"

    def make_env(self) -> gymnasium.Env:
        """Without a registry."""
        return Line()

    def expert_action(self, data: Any, episode: Any) -> np.ndarray:
        """Straight there."""
        away = data.observation["goal"] - data.observation["robot"]["x"]
        return np.clip(away, -0.1, 0.1).astype(np.float32)


class Reacher(GymnasiumTask):
    """Gymnasium's Reacher-v5 with the points that grounding needs."""

    name = "Reacher"
    robot = "planar-arm"
    env_id = "Reacher-v5"
    templates: ClassVar = {"train": ("reach the target",), "heldout": ("touch the target",)}
    action_names = ("shoulder", "elbow")
    action_units = ("N m", "N m")
    proprio_parts = (Part(("a", "b", "c", "d"), ("",) * 4),)
    camera_list = (Camera("top", view=View((0.0, 0.0, 0.0), 0.8, 90.0, -90.0)),)
    place_phrases = ("target",)
    static_points = ("target",)

    def points(self, data: Any, episode: Any) -> dict[str, np.ndarray]:
        """Where MuJoCo has them."""
        named = {"gripper": "fingertip", "target": "target"}
        return {key: data.data.body(body).xpos.copy() for key, body in named.items()}

    def is_success(self, data: Any, episode: Any) -> bool:
        """Never mind."""
        return False

    def expert_action(self, data: Any, episode: Any) -> np.ndarray:
        """A slow swing."""
        return np.array([0.1, -0.1], np.float32)


def changed(**changes: Any) -> type[LineTask]:
    """The same with another declaration."""
    return type("Changed", (LineTask,), changes)
