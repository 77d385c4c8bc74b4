"""Comparisons as tensors, for a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.preferences.comparisons import Comparison, ComparisonError, Segment
from policies.preferences.trajectories import Trajectory

Inputs = Literal["privileged", "features"]
"""What a reward model sees: simulator state, or the policy's features."""


@dataclass(frozen=True)
class PreferenceBatch:
    """`n` comparisons as tensors; a segment has at most `m` chunks.

    Attributes:
        reached: float32 [n, 2, m, d], what the chunks of both segments led to.
        weight: float32 [n, 2, m], executed share of each chunk; 0 where a segment is shorter.
        label: float32 [n], the probability that the first is better.
    """

    reached: Float[Tensor, "n 2 m d"]
    weight: Float[Tensor, "n 2 m"]
    label: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.label)

    def select(self, rows: Tensor) -> PreferenceBatch:
        """These comparisons."""
        return PreferenceBatch(self.reached[rows], self.weight[rows], self.label[rows])

    @classmethod
    def stack(
        cls,
        comparisons: Sequence[Comparison],
        trajectories: Mapping[str, Trajectory],
        inputs: Inputs,
    ) -> PreferenceBatch:
        """Those that the judge could tell apart, or found equally good.

        Raises:
            ComparisonError: there are none.
        """
        told = [c for c in comparisons if c.label is not None]
        if not told:
            raise ComparisonError(f"none of {len(comparisons)} comparisons has a label")
        segments = [(c.pair.first, c.pair.second) for c in told]
        longest = max(s.stop - s.start for pair in segments for s in pair)

        def read(segment: Segment) -> tuple[Tensor, Tensor]:
            trajectory = trajectories[segment.trajectory]
            vectors = trajectory.privileged if inputs == "privileged" else trajectory.reached
            chosen, missing = (
                slice(segment.start, segment.stop),
                longest - segment.stop + segment.start,
            )
            share = trajectory.valid[chosen].float().mean(1)
            # Padding repeats nothing: its weight is 0 and so is its reward's.
            pad = nn.functional.pad
            return pad(vectors[chosen], (0, 0, 0, missing)), pad(share, (0, missing))

        parts = [[read(segment) for segment in pair] for pair in segments]
        return cls(
            reached=torch.stack([torch.stack([p[0] for p in pair]) for pair in parts]),
            weight=torch.stack([torch.stack([p[1] for p in pair]) for pair in parts]),
            label=torch.tensor([c.label for c in told]),
        )
