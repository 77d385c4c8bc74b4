"""A task of another package: a planar arm, with another robot, other actions and one camera."""

from __future__ import annotations

import math
from typing import ClassVar

import mujoco
import numpy as np

from sim.tasks.base import Episode, Phrasing
from sim.tasks.mujoco_task import MujocoTask
from vla.contract import CameraSpec, RobotSpec, VectorSpec

_SCENE = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="1 1 .1" rgba=".8 .8 .8 1"/>
    <camera name="top" pos="0 0 2" fovy="50"/>
    <site name="target" size=".05" rgba="1 0 0 1"/>
    <body name="hand" pos="0 0 .05">
      <joint name="x" type="slide" axis="1 0 0" damping="5"/>
      <joint name="y" type="slide" axis="0 1 0" damping="5"/>
      <geom type="sphere" size=".05" rgba="0 0 1 1" mass="1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="x" kp="100"/>
    <position joint="y" kp="100"/>
  </actuator>
</mujoco>
"""


class PlanarReach(MujocoTask):
    """Bring the hand to the red target; an action is where to go, in metres."""

    name = "PlanarReach"
    templates: ClassVar[dict[Phrasing, tuple[str, ...]]] = {
        "train": ("reach the red target", "go to red"),
        "heldout": ("move to the target",),
    }
    episode_length = 30
    object_phrases = ()
    grounding_frames = 20

    def __init__(self, image_size: int = 96):
        reach = VectorSpec(("x", "y"), ("m", "m"), (-0.5, -0.5), (0.5, 0.5))
        camera = CameraSpec("top", image_size, image_size)
        self.spec = RobotSpec("planar", reach, reach, (camera,), control_rate_hz=10.0)
        self.model = mujoco.MjModel.from_xml_string(_SCENE)
        self.privileged_names = ("hand_x", "hand_y", "target_x", "target_y")

    def make_data(self) -> mujoco.MjData:
        """The hand in the middle."""
        data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, data)
        return data

    def reset(self, data: mujoco.MjData, seed: int, phrasing: Phrasing = "train") -> Episode:
        """Hand and target anywhere."""
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, data)
        data.qpos[:] = rng.uniform(-0.4, 0.4, 2)
        mujoco.mj_forward(self.model, data)
        words = self.templates[phrasing]
        return Episode(seed, words[rng.integers(len(words))], rng.uniform(-0.4, 0.4, 2))

    def step(self, data: mujoco.MjData, episode: Episode, action: np.ndarray) -> None:
        """A tenth of a second."""
        data.ctrl[:] = np.clip(action, self.spec.action.low, self.spec.action.high)
        mujoco.mj_step(self.model, data, nstep=10)
        episode.steps += 1

    def is_success(self, data: mujoco.MjData, episode: Episode) -> bool:
        """Within 5 cm."""
        return self.cost(data, episode) < 0.05

    def cost(self, data: mujoco.MjData, episode: Episode) -> float:
        """The distance."""
        return math.dist(data.qpos, episode.goal)

    def proprio(self, data: mujoco.MjData) -> np.ndarray:
        """Where the hand is."""
        return data.qpos.astype(np.float32)

    def privileged(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Hand and target."""
        return np.concatenate([data.qpos, episode.goal]).astype(np.float32)

    def points(self, data: mujoco.MjData, episode: Episode) -> dict[str, np.ndarray]:
        """Hand and target."""
        hand, target = (np.array([*planar, 0.05]) for planar in (data.qpos, episode.goal))
        return {"gripper": hand, "target": target}

    def place_markers(self, data: mujoco.MjData, episode: Episode) -> None:
        """Move the red sphere."""
        data.site("target").xpos[:2] = episode.goal

    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Straight there."""
        return episode.goal.astype(np.float32)
