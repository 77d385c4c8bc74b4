"""Judges that need no person: by return, or by success, with label noise."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np

from policies.preferences.comparisons import Pair, Segment
from policies.preferences.trajectories import Trajectory

Criterion = Literal["return", "success"]


class ScriptedJudge:
    """Prefers the higher return, or success at the segment's end; equal ones are a tie.

    Source: the synthetic oracle of Christiano et al. 2017 (arXiv:1706.03741), section 3.1, and the
    errors of a judge of section 2.2.3.

    Args:
        criterion: what is compared: the environment's rewards, added up, or success.
        label_noise: how often the worse one is preferred; ties are never changed.
        seed: of the errors.
    """

    def __init__(self, criterion: Criterion, label_noise: float, seed: int):
        self._criterion, self._label_noise, self._seed = criterion, label_noise, seed
        self.name = f"{criterion}, noise {label_noise:g}, seed {seed}"

    def __call__(self, pair: Pair, first: Trajectory, second: Trajectory) -> float:
        """1 for the first, 0 for the second, 0.5 for a tie."""
        one, other = self.value(pair.first, first), self.value(pair.second, second)
        label = 0.5 if one == other else float(one > other)
        # By the pair, not by the order of asking: an interrupted session goes on alike.
        rng = np.random.default_rng([self._seed, zlib.crc32(repr(pair).encode())])
        return 1 - label if rng.random() < self._label_noise else label

    def value(self, segment: Segment, trajectory: Trajectory) -> float:
        """What a segment is worth."""
        if self._criterion == "success":
            return float(trajectory.success[segment.stop - 1])
        return float(trajectory.rewards[segment.start : segment.stop].sum())
