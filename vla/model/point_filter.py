"""What has been seen so far of the points that stand still."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Sightings:
    """The memory that `VLA.hold` reads and adds to, one row a robot.

    Args:
        rows: robots.
        points: points that stand still.
        device: where the model computes.
    """

    def __init__(self, rows: int, points: int, device: torch.device):
        self._seen = torch.zeros(rows, points, 4, device=device)
        self._words: list[str | None] = [None] * rows

    def __len__(self) -> int:
        return len(self._words)

    def forget(self, rows: Sequence[int]) -> None:
        """A new episode begins in these rows; those that there are not are passed over."""
        known = [row for row in rows if row < len(self)]
        self.keep(known, torch.zeros_like(self._seen[known]))
        for row in known:
            self._words[row] = None

    def of(self, rows: Sequence[int], words: Sequence[str]) -> Tensor:
        """What `VLA.hold` takes for these rows: nothing where the words have changed."""
        pairs = zip(rows, words, strict=True)
        self.forget([row for row, said in pairs if self._words[row] != said])
        for row, said in zip(rows, words, strict=True):
            self._words[row] = said
        return self._seen[list(rows)]

    def keep(self, rows: Sequence[int], seen: Tensor) -> None:
        """Remember what `VLA.hold` gave for these rows."""
        copy = self._seen.clone()  # what inference mode has made is not written to outside of it
        copy[list(rows)] = seen
        self._seen = copy
