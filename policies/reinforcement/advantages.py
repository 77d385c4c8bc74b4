"""Advantages of macro-steps: generalised, of whole episodes, and within groups of episodes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
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


def group_relative(experience: Experience) -> Float[Tensor, "t n"]:
    """How much better an episode ended than its group, in the group's standard deviations.

    Every macro-step of an episode has the same one; 0 in a group whose episodes all ended alike.

    Source: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), section 4.1.2.

    Raises:
        ValueError: a group of one.
    """
    gap, count = _above_group(experience)
    variance = _group_sums(gap.square(), experience.group) / (count - 1)
    # Where all ended alike there is nothing to divide by, and nothing to learn.
    return _spread(experience, gap / variance.sqrt().where(variance > 0, 1.0))


def leave_one_out(experience: Experience) -> Float[Tensor, "t n"]:
    """How much better an episode ended than the mean of the others of its group, float32 [t, n].

    Source: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free!

    Raises:
        ValueError: a group of one.
    """
    gap, count = _above_group(experience)
    # outcome - (sum - outcome) / (count - 1)
    return _spread(experience, gap * count / (count - 1))


def _above_group(experience: Experience) -> tuple[Tensor, Tensor]:
    """Outcomes minus their group's mean, 0 where all are equal, and its episodes; [episodes]."""
    outcome, group = experience.outcome, experience.group
    count = _group_sums(torch.ones_like(outcome), group)
    if (count < 2).any():
        raise ValueError("a group of one episode has nothing to be compared with")
    mean = _group_sums(outcome, group) / count
    gap = outcome - mean
    # The mean of equal numbers differs from them in the last digits, the more the larger they are:
    # divided by its own deviation such a difference would weigh as much as a success.
    alike = _group_sums((gap.abs() > 1e-5 * mean.abs().clamp_min(1)).float(), group) == 0
    return gap.masked_fill(alike, 0.0), count


def _group_sums(values: Float[Tensor, " e"], group: Int64[Tensor, " e"]) -> Float[Tensor, " e"]:
    """The sum of the values of each episode's group."""
    return torch.zeros_like(values).index_add(0, group, values)[group]


def _spread(experience: Experience, values: Float[Tensor, " episodes"]) -> Float[Tensor, "t n"]:
    """The value of each macro-step's episode; 0 where none was played."""
    return values[experience.episode].where(experience.active, 0.0)
