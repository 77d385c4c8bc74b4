"""What `vla export` compares an exported policy on: observations, and episodes of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vla_runtime.contract import RobotPolicy

from policies.imitation.dataset import DemoDataset
from scripts.initial_states import choose_seeds
from scripts.policy_loading import Candidate, make_env, require_comparable
from sim.vector import CpuVecEnv
from vla.contract import Observation, RobotSpec, VectorSpec
from vla.deploy.parity import random_observations, shadow, single

Bounds = tuple[Sequence[float], Sequence[float]]
"""Low and high of random proprioception."""


@dataclass(frozen=True)
class Trials:
    """Where observations come from: a data set, else a simulated task, else chance.

    Attributes:
        policy: what is exported, for messages.
        spec: its robot's contract.
        data: a data set of the robot.
        task: a simulated task of the robot.
        observations: how many.
        episodes: that are shadowed in the task.
    """

    policy: Path
    spec: RobotSpec
    data: Path | None
    task: str | None
    observations: int
    episodes: int

    def observe(self, bounds: Bounds | None = None) -> tuple[list[Observation], str]:
        """Observations, and where they are from, for policy.json.

        Args:
            bounds: of random proprioception; by default the contract's.

        Raises:
            ContractMismatchError: the data set or the task is of another robot.
        """
        if self.task is not None:
            require_comparable([self._candidate], self.task, "checkpoint")
        if self.data is not None:
            return self._recorded(self.data), "frames of the data set given by --data"
        if self.task is not None:
            return self._initial(self.task), f"initial states of {self.task}"
        low, high = bounds or _finite(self.spec.proprio)
        words = "random images, proprioception within its range"
        return random_observations(self.spec, low, high, self.observations), words

    def shadow(self, reference: RobotPolicy, exported: RobotPolicy) -> dict[str, Any] | str:
        """What `vla.deploy.parity.shadow` finds in the task, or why nothing was played.

        Raises:
            ParityError: decisions differ.
        """
        if self.task is None:
            return "not played: no simulated task was named"
        seeds = choose_seeds(self.task, "development", self.episodes)
        with self._env(self.task) as env:
            return shadow(reference, exported, env, seeds)

    @property
    def _candidate(self) -> Candidate:
        return Candidate("checkpoint", str(self.policy), spec=self.spec)

    def _env(self, task: str) -> CpuVecEnv:
        return make_env(self._candidate, task, 1, 1, "train")

    def _recorded(self, root: Path) -> list[Observation]:
        cameras = [camera.name for camera in self.spec.cameras]
        data = DemoDataset(root, 1, heldout_fraction=0.0, cameras=cameras)
        self.spec.require_match(data.spec, "the checkpoint", f"data set {root}")
        count = min(self.observations, len(data))
        rows = np.random.default_rng(0).choice(len(data), count, replace=False)
        batch = data.batch(np.sort(rows)).observation()
        return [single(batch, row) for row in range(len(batch))]

    def _initial(self, task: str) -> list[Observation]:
        found = []
        with self._env(task) as env:
            for seed in choose_seeds(task, "development", self.observations):
                env.reset([0], [seed])
                found.append(single(env.observe()[0]))
        return found


def _finite(vector: VectorSpec) -> Bounds:
    """Limits, with -1 and 1 where there are none."""
    sides = ((vector.low, -1.0), (vector.high, 1.0))
    low, high = ([v if np.isfinite(v) else alone for v in side] for side, alone in sides)
    return low, high
