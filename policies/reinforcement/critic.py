"""State-value critics: on privileged simulator state, or on what the actor sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """An MLP from a vector to a state value; it standardises its input and carries the numbers.

    Asymmetric actor-critic (Pinto et al. 2017, arXiv:1710.06542) when the vector is privileged
    state; an image critic when it is the actor's context, detached from the backbone.

    Args:
        inputs: numbers in the vector.
        hidden: width of the two hidden layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: int, hidden: int = 256):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )

    def fit_input(self, vectors: Tensor) -> None:
        """Standardise by these vectors [n, inputs] from now on."""
        self.mean.copy_(vectors.mean(0))
        self.std.copy_(vectors.std(0).clamp_min(1e-4))

    def forward(self, vectors: Tensor) -> Tensor:
        """Values [n] of vectors [n, inputs]."""
        return self.layers(((vectors - self.mean) / self.std).clamp(-10, 10)).squeeze(-1)
