"""Advantages over macro-steps of unequal length: generalised, and of whole episodes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.reinforcement.experience import Experience


def discount_within(
    rewards: Float[Tensor, "*rows k"], valid: Bool[Tensor, "*rows k"], gamma: float
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Turn control steps inside macro-steps into one reward and one discount each.

    Args:
        rewards: float [..., k], one a control step.
        valid: bool [..., k], the executed ones, a prefix.
        gamma: discount a control step.

    Returns:
        Discounted sum of the executed rewards, and gamma ** (executed steps); both [...].
    """
    # [k], 1 for the step that is executed first
    powers = gamma ** torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
    return (rewards * valid * powers).sum(-1), gamma ** valid.sum(-1).to(rewards.dtype)


def generalised_advantages(
    rewards: Float[Tensor, "t n"],
    values: Float[Tensor, "t n"],
    next_values: Float[Tensor, "t n"],
    discounts: Float[Tensor, "t n"],
    terminated: Bool[Tensor, "t n"],
    ended: Bool[Tensor, "t n"],
    gae_lambda: float,
) -> Float[Tensor, "t n"]:
    """GAE(lambda), float [t, n].

    `delta = reward + discount * next_value * (not terminated) - value`, and
    `advantage = delta + discount * lambda * (not ended) * later advantage`. A truncated episode is
    bootstrapped from the value of its own final observation, which `next_values` must hold.

    Args:
        rewards: float [t, n], already discounted inside the macro-step.
        values: float [t, n], of the observation before the step.
        next_values: float [t, n], of the observation after it, before any reset.
        discounts: float [t, n], over the whole macro-step.
        terminated: bool [t, n], the value after the step is 0.
        ended: bool [t, n], terminated or truncated: the next row is another episode.
        gae_lambda: weight of longer returns, 0 to 1, applied once a macro-step (not once a control
            step as gamma is): a chunk is one decision.

    Source: Schulman et al. 2016, High-Dimensional Continuous Control Using Generalized Advantage
    Estimation (arXiv:1506.02438), equation 16.
    """
    deltas = rewards + discounts * next_values * ~terminated - values  # [t, n]
    advantages = torch.zeros_like(deltas)
    later = torch.zeros_like(deltas[0])  # [n]
    for step in reversed(range(len(deltas))):
        # `ended` cuts the sum: the next row of this environment is another episode.
        later = deltas[step] + discounts[step] * gae_lambda * ~ended[step] * later
        advantages[step] = later
    return advantages


def gae(
    experience: Experience,
    values: Float[Tensor, "t n"],
    next_values: Float[Tensor, "t n"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "t n"]:
    """Generalised advantages of what was collected, float32 [t, n].

    Rewards are scaled by 1 - gamma, so that values lie in [0, 1] where rewards do.

    Args:
        experience: what was collected.
        values: of each observation, float32 [t, n]; zeros without a critic.
        next_values: of the observations that followed.
        gamma: discount a control step.
        gae_lambda: weight of longer returns a macro-step; at 1 this is `monte_carlo` where episodes
            end by themselves.
    """
    # [t, n] each: a macro-step as one step of a semi-Markov process
    rewards, discounts = discount_within(experience.rewards, experience.valid, gamma)
    return generalised_advantages(
        rewards * (1 - gamma),
        values,
        next_values,
        discounts,
        experience.terminated,
        experience.ended,
        gae_lambda,
    )


def monte_carlo(experience: Experience, gamma: float) -> Float[Tensor, "t n"]:
    """The discounted rewards from each macro-step to the end of its episode, float32 [t, n].

    Nothing is bootstrapped: what would come after a time limit counts as nothing. Rewards are
    scaled as in `gae`.
    """
    nothing = torch.zeros_like(experience.ended, dtype=experience.rewards.dtype)
    return gae(experience, nothing, nothing, gamma, gae_lambda=1.0)
