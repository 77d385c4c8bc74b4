"""What the actor reads of an observation: the end of perception and the beginning of acting.

With a frozen backbone the features of a frame never change, so they can be computed once and
trained on many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Features of n observations; every tensor has n rows.

    Attributes:
        readout: float32 [n, width], the hidden state that is trained for acting.
        points: float32 [n, points, 3], estimated positions in the world, in the model's units.
        localisation_std: float32 [n, points], standard deviation of each estimate, see
            `Pointing.localisation_std`. It weighs averages over the episode; heads do not read it.
        proprio: float32 [n, proprio], normalised.
        dim_mask: bool [n, proprio + action], False at dimensions that the robot does not have.
        prompt: [n, tokens, width], the prompt's hidden states in the backbone's precision; no
            tokens where the head does not attend to them.
        prompt_mask: bool [n, tokens], False at padding.
    """

    readout: Float32[Tensor, "n readout"]
    points: Float32[Tensor, "n points 3"]
    localisation_std: Float32[Tensor, "n points"]
    proprio: Float32[Tensor, "n proprio"]
    dim_mask: Bool[Tensor, "n dims"]
    prompt: Float[Tensor, "n tokens width"]
    prompt_mask: Bool[Tensor, "n tokens"]

    @classmethod
    def of_vector(cls, vector: Float32[Tensor, "n d"], action_dim: int) -> Features:
        """Features of a policy that reads one vector [n, d] and nothing else."""
        # Empty tensors instead of None: selecting and concatenating need no special case.
        count, width = vector.shape
        return cls(
            readout=vector.new_zeros(count, 0),
            points=vector.new_zeros(count, 0, 3),
            localisation_std=vector.new_zeros(count, 0),
            proprio=vector,
            dim_mask=torch.ones(count, width + action_dim, dtype=torch.bool, device=vector.device),
            prompt=vector.new_zeros(count, 0, 0),
            prompt_mask=torch.zeros(count, 0, dtype=torch.bool, device=vector.device),
        )

    def __len__(self) -> int:
        return len(self.proprio)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.proprio.device

    def select(self, rows: Tensor | slice) -> Self:
        """The rows of an int64 [m] or bool [n] index, or of a slice."""
        return type(self)(*(column[rows] for column in self._columns()))

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(*(column.to(device) for column in self._columns()))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """All rows of all parts, in order; shorter prompts are padded."""
        longest = max((part.prompt.shape[1] for part in parts), default=0)
        columns = zip(*(part._padded(longest)._columns() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def _padded(self, tokens: int) -> Self:
        """With prompts of so many tokens, the new ones masked."""
        if not (more := tokens - self.prompt.shape[1]):
            return self
        prompt = F.pad(self.prompt, (0, 0, 0, more))  # [n, tokens, width]
        return replace(self, prompt=prompt, prompt_mask=F.pad(self.prompt_mask, (0, more)))

    def _columns(self) -> list[Tensor]:
        # In the order of the fields, so that the list can be passed back to the constructor.
        return [getattr(self, field.name) for field in fields(self)]
