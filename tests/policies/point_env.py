"""A point on a line that must reach a goal: the smallest environment with every ending."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla.contract import CameraSpec, GoalSpec, ObservationBatch, RobotSpec, StepBatch, VectorSpec

STEP_M = 0.1


class PointVecEnv:
    """Points in [-1, 1]: falling off terminates, length truncates, the goal rewards."""

    spec = RobotSpec(
        robot="point",
        action=VectorSpec(("x",), ("1",), (-1.0,), (1.0,)),
        proprio=VectorSpec(("x",), ("m",), (-1.0,), (1.0,)),
        cameras=(CameraSpec("top", 2, 2),),
        control_rate_hz=10.0,
    )
    device = torch.device("cpu")
    privileged_names = ("x", "goal")
    goals: GoalSpec | None = GoalSpec(("x",), ("goal",), STEP_M)

    def __init__(self, num_envs: int, episode_length: int = 12) -> None:
        self.num_envs = num_envs
        self.episode_length = episode_length
        self.resets: list[tuple[int, int]] = []
        self._x = np.full(num_envs, np.nan)
        self._goal = np.full(num_envs, np.nan)
        self._steps = np.zeros(num_envs, dtype=int)
        self._ended = np.zeros(num_envs, dtype=bool)

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        """Draw start and goal from the seed."""
        for row, seed in zip(indices, seeds, strict=True):
            self.resets.append((row, seed))
            self._x[row], self._goal[row] = np.random.default_rng(seed).uniform(-0.8, 0.8, size=2)
            self._steps[row], self._ended[row] = 0, False

    def observe(self) -> tuple[ObservationBatch, Tensor]:
        """Grey images, the position, and the goal in words."""
        observation = ObservationBatch(
            images={"top": torch.full((self.num_envs, 2, 2, 3), 9, dtype=torch.uint8)},
            proprio=torch.tensor(self._x[:, None], dtype=torch.float32),
            instructions=[f"go to {goal:.2f}" for goal in self._goal],
            time_s=torch.tensor(self._steps / 10, dtype=torch.float32),
        )
        privileged = np.stack([self._x, self._goal], axis=1)
        return observation, torch.tensor(privileged, dtype=torch.float32)

    def step(self, chunks: Tensor) -> StepBatch:
        """Move by a tenth of a metre times the action, while not ended."""
        n, k = chunks.shape[:2]
        rewards = torch.zeros(n, k)
        success, valid = (torch.zeros(n, k, dtype=torch.bool) for _ in range(2))
        for row in range(n):
            for j in range(k):
                if self._ended[row]:
                    break
                self._x[row] += STEP_M * float(chunks[row, j, 0])
                self._steps[row] += 1
                valid[row, j] = True
                success[row, j] = bool(abs(self._x[row] - self._goal[row]) < STEP_M)
                rewards[row, j] = float(success[row, j])
                self._ended[row] = abs(self._x[row]) > 1 or self._steps[row] >= self.episode_length
        terminated = torch.tensor(np.abs(self._x) > 1)
        observation, privileged = self.observe()
        return StepBatch(
            observation=observation,
            privileged=privileged,
            rewards=rewards,
            success=success,
            valid=valid,
            terminated=terminated,
            truncated=torch.tensor(self._steps >= self.episode_length) & ~terminated,
        )

    def expert_actions(self) -> np.ndarray:
        """Straight to the goal, float32 [n, 1]."""
        return np.clip((self._goal - self._x)[:, None] / STEP_M, -1, 1).astype(np.float32)

    def close(self) -> None:
        """Nothing to close."""
