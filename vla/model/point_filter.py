"""What a policy remembers of an episode: where the static points have been localised so far.

A static point may be hidden behind the gripper for a while. Its position is an inverse-variance
average over the episode, which is what the filter of Kalman 1960 (doi:10.1115/1.3662552) makes of a
constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

_LEAST_STD = 0.02
"""Floor of a localisation's standard deviation, in image coordinates (2 wide): some millimetres."""


def fuse_static_points(
    points: Float32[Tensor, "n static 3"],
    localisation_std: Float32[Tensor, "n static"],
    evidence: Float32[Tensor, "n static 4"],
) -> tuple[Float32[Tensor, "n static 3"], Float32[Tensor, "n static 4"]]:
    """Average the present localisations with the earlier ones, weighted by inverse variances.

    Args:
        points: float32 [n, static, 3], estimated positions now.
        localisation_std: float32 [n, static], standard deviation of each estimate.
        evidence: float32 [n, static, 4], sums of weights and of weighted positions; 0 at first.

    Returns:
        The averages [n, static, 3], and the evidence with the present localisations.
    """
    # w = 1 / variance, bounded: one very sharp softmax must not outweigh the rest of the episode.
    weight = 1 / (_LEAST_STD**2 + localisation_std[..., None].square())  # [n, static, 1]
    # Sums of w and w x are the whole state of the filter; nothing decays, the point stands still.
    evidence = evidence + torch.cat([weight, weight * points], -1)
    return evidence[..., 1:] / evidence[..., :1], evidence  # sum(w x) / sum(w)


@dataclass(frozen=True)
class PolicyState:
    """A policy's memory, one row a robot: a value that goes into a decision and comes out of it.

    Attributes:
        evidence: float32 [n, static, 4], see `fuse_static_points`.
        instructions: of the last decision in each row; None where an episode begins.
    """

    evidence: Float32[Tensor, "n static 4"]
    instructions: tuple[str | None, ...]

    @classmethod
    def initial(cls, rows: int, static_points: int, device: torch.device) -> PolicyState:
        """An empty memory of so many rows."""
        return cls(torch.zeros(rows, static_points, 4, device=device), (None,) * rows)

    def __len__(self) -> int:
        return len(self.instructions)

    def reset(self, rows: Sequence[int]) -> PolicyState:
        """A new episode begins in these rows; rows that do not exist are ignored."""
        rows = [row for row in rows if row < len(self)]
        # Copies: the state is a value, and whoever holds the old one must not see it change.
        evidence, instructions = self.evidence.clone(), [*self.instructions]
        evidence[rows] = 0.0
        for row in rows:
            instructions[row] = None
        return PolicyState(evidence, tuple(instructions))

    def grow(self, rows: int) -> PolicyState:
        """At least so many rows; new ones are at the beginning of an episode."""
        if rows <= len(self):
            return self
        more = self.evidence.new_zeros(rows - len(self), *self.evidence.shape[1:])
        added = (None,) * len(more)
        return PolicyState(torch.cat([self.evidence, more]), (*self.instructions, *added))

    def follow(self, instructions: Sequence[str]) -> PolicyState:
        """Memory for these instructions: a row whose instruction changed starts empty."""
        pairs = zip(self.instructions, instructions, strict=True)
        # Another instruction may name another object, whose position was never averaged.
        changed = [row for row, (old, new) in enumerate(pairs) if old != new]
        fresh = self.reset(changed) if changed else self
        return PolicyState(fresh.evidence, tuple(instructions))
