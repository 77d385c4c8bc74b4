"""Our tasks in LeRobot's commands: `--env.type=vla_sim --env.task=FetchPush`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig

from sim.tasks.base import Phrasing
from sim.tasks.registry import make_task
from vla.settings import refusals_logged, require_numbers


@EnvConfig.register_subclass("vla_sim")
@dataclass
class VlaSimEnv(EnvConfig):
    """One of our tasks.

    Attributes:
        task: registry name.
        image_size: pixels a side of an image.
        phrasing: instruction templates, "train" or "heldout".
        fps: control rate, set by the task.
        features: what the environment gives and takes, set by the task.
        features_map: its names in LeRobot, set by the task.
    """

    task: str = "FetchPush"
    image_size: int = 96
    phrasing: Phrasing = "train"
    # Not settable: the commands' flags would otherwise contradict the task's contract.
    fps: int = field(init=False, default=25)
    features: dict[str, PolicyFeature] = field(init=False, default_factory=dict)
    features_map: dict[str, str] = field(init=False, default_factory=dict)

    @refusals_logged()
    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("image_size",))
        spec = make_task(self.task, self.image_size).spec
        self.fps = round(spec.control_rate_hz)
        names = spec.features
        self.features = {
            names.action: PolicyFeature(FeatureType.ACTION, (spec.action.dim,)),
            names.proprio: PolicyFeature(FeatureType.STATE, (spec.proprio.dim,)),
        }
        for camera in spec.cameras:
            shape = (camera.height, camera.width, 3)
            self.features[names.camera(camera.name)] = PolicyFeature(FeatureType.VISUAL, shape)
        # LeRobot maps an environment's names to a policy's; ours are already those of the contract.
        self.features_map = {name: name for name in self.features}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What `TaskEnv` is built with."""
        return {"task": self.task, "image_size": self.image_size, "phrasing": self.phrasing}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """One suite with one task: `n_envs` environments, each in a process if `use_async_envs`."""
        # Parsing flags should not load a renderer.
        from sim.lerobot_plugin.env import TaskEnv

        make = functools.partial(TaskEnv, **self.gym_kwargs)
        # SAME_STEP leaves the ended episode's success in `final_info`, where LeRobot's evaluation
        # reads it.
        mode = AutoresetMode.SAME_STEP
        if use_async_envs and n_envs > 1:
            # Not "fork": a forked child could inherit a GL context.
            vector: gym.vector.VectorEnv = gym.vector.AsyncVectorEnv(
                [make] * n_envs, context="forkserver", autoreset_mode=mode
            )
        else:
            vector = gym.vector.SyncVectorEnv([make] * n_envs, autoreset_mode=mode)
        return {self.type: {0: vector}}
