"""Generalised advantage estimation over macro-steps of unequal length."""

from __future__ import annotations

import torch
from torch import Tensor


def discount_within(rewards: Tensor, valid: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Turn control steps inside macro-steps into one reward and one discount each.

    Args:
        rewards: float [..., k], one a control step.
        valid: bool [..., k], the executed ones, a prefix.
        gamma: discount a control step.

    Returns:
        Discounted sum of the executed rewards, and gamma ** (executed steps); both [...].
    """
    powers = gamma ** torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
    return (rewards * valid * powers).sum(-1), gamma ** valid.sum(-1).to(rewards.dtype)


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    discounts: Tensor,
    terminated: Tensor,
    ended: Tensor,
    lam: float,
) -> Tensor:
    """GAE(lambda), float [t, n].

    `delta = reward + discount * next_value * (not terminated) - value`, and
    `advantage = delta + discount * lam * (not ended) * later advantage`. A truncated episode is
    bootstrapped from the value of its own final observation, which `next_values` must hold.

    Args:
        rewards: float [t, n], already discounted inside the macro-step.
        values: float [t, n], of the observation before the step.
        next_values: float [t, n], of the observation after it, before any reset.
        discounts: float [t, n], over the whole macro-step.
        terminated: bool [t, n], nothing is worth anything beyond.
        ended: bool [t, n], terminated or truncated: the next row is another episode.
        lam: weight of longer returns, 0 to 1.

    Source: Schulman et al. 2016, High-Dimensional Continuous Control Using Generalized Advantage
    Estimation (arXiv:1506.02438), equation 16.
    """
    deltas = rewards + discounts * next_values * ~terminated - values
    advantages = torch.zeros_like(deltas)
    later = torch.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        later = deltas[step] + discounts[step] * lam * ~ended[step] * later
        advantages[step] = later
    return advantages
