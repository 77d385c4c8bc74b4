"""Networks that standardise their input by statistics that they keep, and that checkpoints save."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Standardised(nn.Module):
    """A network whose input vectors are standardised; before any statistics they are left as is.

    Args:
        inputs: numbers in a vector.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    scale: Tensor

    def __init__(self, inputs: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("var", torch.ones(inputs))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.ones(inputs))  # of the variance, see below

    def update_statistics(self, vectors: Float[Tensor, "m inputs"]) -> None:
        """Update the mean and variance of all inputs so far with vectors [m, inputs].

        The distribution of states changes while the actor learns, so statistics of the first
        collection alone would put later inputs far from 0.

        Source: Chan et al. 1979, Updating formulae and a pairwise algorithm for computing sample
        variances, equation 2.1.
        """
        new = len(vectors)
        # [inputs] both; correction 0, since variances of parts are combined by their weights.
        mean, var = vectors.mean(0), vectors.var(0, correction=0)
        total, shift = self.count + new, mean - self.mean
        # The weight of the new ones; 1 for the first, so that the initial zeros do not count.
        share = new / total
        # Variance inside the parts, plus that between their means.
        within = (1 - share) * self.var + share * var
        self.var.copy_(within + share * (1 - share) * shift.square())
        self.mean.add_(share * shift)
        self.count.copy_(total)
        # A nearly constant input must not be amplified.
        self.scale.copy_(1 / self.var.sqrt().clamp_min(1e-4))

    def standardise(self, vectors: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows inputs"]:
        """Vectors with mean 0 and standard deviation 1, without outliers."""
        # An outlier must not saturate all units.
        return ((vectors - self.mean) * self.scale).clamp(-10, 10)
