"""Evaluation computes what a robot would: every decision with a batch of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vla.contract import ObservationBatch, Policy, RobotSpec


class RowByRow:
    """Decides in every environment by itself, as the one robot's policy does.

    Matrix products of another batch size are summed in another order, and contact amplifies the
    last bit of an action until another episode comes of it. With a batch of one everywhere, and
    random numbers that belong to the episode, success does not depend on how many environments are
    stepped together.

    Args:
        make: a policy at the beginning of its first episode; weights may be shared.
        spec: its contract.
        seed: of what the policy draws from torch's default generator.
    """

    def __init__(self, make: Callable[[], Policy], spec: RobotSpec, seed: int = 0) -> None:
        self.spec = spec
        self._make = make
        self._policies: dict[int, Policy] = {}
        self._seeds = np.random.SeedSequence(seed)
        # By row, the stream of the episode that it plays now.
        self._streams: dict[int, np.random.SeedSequence] = {}

    def reset(self, indices: Sequence[int]) -> None:
        """New episodes begin in these rows, each with the next random stream."""
        # Streams are counted by resets, and `rollout` resets in the order of its seeds: the stream
        # belongs to the episode, whichever row plays it.
        for row, stream in zip(indices, self._seeds.spawn(len(indices)), strict=True):
            if row not in self._policies:
                self._policies[row] = self._make()
            # Each policy controls one robot, its row 0; its memory is not shared.
            self._policies[row].reset([0])
            self._streams[row] = stream

    def act(self, observation: ObservationBatch) -> Tensor:
        """Float32 [n, chunk_length, action.dim]: each row's own decision.

        A row that was never reset plays no episode: it repeats the decision of one that was.
        """
        chunks = {row: self._decide(row, observation.select([row])) for row in self._policies}
        idle = next(iter(chunks.values()))
        # [1, k, action.dim] each
        return torch.cat([chunks.get(row, idle) for row in range(len(observation))])

    def _decide(self, row: int, observation: ObservationBatch) -> Tensor:
        # Another child at every decision, or each chunk would get the same noise.
        (decision,) = self._streams[row].spawn(1)
        # The global generators are as before afterwards: nobody else sees draws from here.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(int(decision.generate_state(1)[0]))
            return self._policies[row].act(observation)
