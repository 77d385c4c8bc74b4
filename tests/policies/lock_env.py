"""A lock that opens after a sequence of right turns: hopeless from its start by chance alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla.contract import ObservationBatch, RobotSpec, StepBatch, VectorSpec

LENGTH = 12
TURNS = np.array([1, -1, -1, 1, 1, 1, -1, 1, -1, -1, 1, -1])


def start_of(seed: int) -> int:
    """The place at which an episode begins: nearly always the first."""
    rng = np.random.default_rng(seed)
    return 0 if rng.random() < 0.95 else int(rng.integers(LENGTH))


def turns_left(seed: int) -> float:
    """Right turns until it opens."""
    return float(LENGTH - start_of(seed))


class LockVecEnv:
    """A wrong turn ends the episode; the last right one is a success."""

    spec = RobotSpec(
        robot="lock",
        action=VectorSpec(("turn",), ("1",), (-1.0,), (1.0,)),
        proprio=VectorSpec(("place",), ("1",), (0.0,), (float(LENGTH),)),
        cameras=(),
        control_rate_hz=10.0,
    )
    device = torch.device("cpu")
    privileged_names = tuple(f"at_{place}" for place in range(LENGTH + 1))

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._place = np.zeros(num_envs, dtype=int)
        self._ended = np.zeros(num_envs, dtype=bool)

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin where the seed says."""
        for row, seed in zip(indices, seeds, strict=True):
            self._place[row], self._ended[row] = start_of(seed), False

    def observe(self) -> tuple[ObservationBatch, Tensor]:
        """The place as a number, and one of `LENGTH + 1` for critics and state policies."""
        place = torch.from_numpy(self._place)
        observation = ObservationBatch(
            images={},
            proprio=place[:, None].float(),
            instructions=["open"] * self.num_envs,
            time_s=torch.zeros(self.num_envs),
        )
        return observation, torch.nn.functional.one_hot(place, LENGTH + 1).float()

    def step(self, chunks: Tensor) -> StepBatch:
        """One turn; chunks of one control step."""
        turn = np.sign(chunks[:, 0, 0].numpy())
        playing = ~self._ended
        right = playing & (turn == TURNS[np.minimum(self._place, LENGTH - 1)])
        self._place[right] += 1
        success = right & (self._place == LENGTH)
        self._ended |= playing & (~right | success)
        observation, privileged = self.observe()
        return StepBatch(
            observation=observation,
            privileged=privileged,
            rewards=torch.from_numpy(success[:, None].astype(np.float32)),
            success=torch.from_numpy(success[:, None].copy()),
            valid=torch.from_numpy(playing[:, None].copy()),
            terminated=torch.from_numpy(self._ended.copy()),
            truncated=torch.zeros(self.num_envs, dtype=torch.bool),
        )

    def close(self) -> None:
        """Nothing to close."""
