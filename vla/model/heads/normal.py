"""The normal distribution, element by element; its standard deviation is given by its logarithm."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


def log_density(
    value: Float[Tensor, "*n"], mean: Float[Tensor, "*n"], log_std: Float[Tensor, "*#n"]
) -> Float[Tensor, "*n"]:
    """Log density of values."""
    # log N(x; m, s) = -(x - m)^2 / (2 s^2) - log s - log(2 pi) / 2
    z = (value - mean) * (-log_std).exp()
    return -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)


def entropy(log_std: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Differential entropy, nats."""
    return log_std + 0.5 * math.log(2 * math.pi * math.e)


def kl(
    mean: Float[Tensor, "*n"],
    log_std: Float[Tensor, "*#n"],
    other_mean: Float[Tensor, "*n"],
    other_log_std: Float[Tensor, "*#n"],
) -> Float[Tensor, "*n"]:
    """KL divergence from the first to the other, nats."""
    # (s^2 / s'^2 + (m - m')^2 / s'^2 - 1) / 2 + log(s' / s)
    ratio = (2 * (log_std - other_log_std)).exp()
    shift = (mean - other_mean).square() * (-2 * other_log_std).exp()
    return 0.5 * (ratio + shift - 1) - log_std + other_log_std
