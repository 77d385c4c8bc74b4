"""What a trainer logs so that the habits can be judged: see `policies/evaluation/habits`.

All of it is computed from what was collected, without another simulator step, and with random
numbers of its own, so that nothing that is learned depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from policies.evaluation.habits.run_metrics import CALIBRATION_BINS
from policies.reinforcement.advantages import gae, monte_carlo
from policies.reinforcement.critic import CriticLearner, describe_fit
from policies.reinforcement.experience import Batch, Experience, sample_std
from policies.reinforcement.policy_update import Metrics, PolicyUpdate
from policies.reinforcement.q_ensemble import QEnsemble
from policies.reinforcement.reference import Reference
from policies.reinforcement.replay import Transitions
from policies.reinforcement.stochastic_policy import (
    PolicyState,
    StochasticActor,
    StochasticPolicy,
    log_probs,
)
from policies.rollout import Episodes
from vla.contract import VectorSpec
from vla.model.features import Features

_ROWS = 1000  # macro-steps whose likelihood is compared
_STATES, _SAMPLES = 32, 8  # of the spread of actions
FROZEN_ROWS = 64  # macro-steps of the frozen batch
_CRITIC_EPOCHS, _UPDATES = 300, 3  # on the frozen batch
_ALIKE = 1e-6  # standard deviation below which there is nothing to fit
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def describe_episodes(episodes: Episodes, returns: np.ndarray, action: VectorSpec) -> Metrics:
    """Ends and actions of what was collected, and what was learned from against success.

    Args:
        episodes: of one collection.
        returns: float64 [episodes], by the reward that is learned from.
        action: the contract's.
    """
    return {
        "collect/learned_return": float(returns.mean()),
        **describe_ends(episodes),
        **describe_actions(episodes, action),
        **return_success_correlation(returns, episodes.success_at_end),
    }


def describe_policy[State: PolicyState](
    policy: StochasticPolicy[State], batch: Batch, seed: int
) -> Metrics:
    """The policy that collected, before it is updated, and the advantages of its samples."""
    actor, dim = policy.actor, policy.spec.action.dim

    def draw(seen: Features, generator: torch.Generator) -> Tensor:
        return actor.actions(actor.sample(seen, generator))

    return {
        **describe_advantages(batch.advantage),
        **describe_inputs(batch.features),
        **ratio_error(actor, batch),
        **describe_spread(draw, batch.features, dim, seed),
    }


def describe_ends(episodes: Episodes) -> Metrics:
    """How episodes ended, and whether terminations all come after the longest episode's steps."""
    lengths = np.array([e.length for e in episodes.episodes])  # [episodes]
    terminated = np.array([e.terminated for e in episodes.episodes], dtype=bool)
    metrics = {"collect/terminated": float(terminated.mean())}
    # An episode of one step has no other length to end at.
    if terminated.any() and lengths.max() > 1:
        at_longest = lengths[terminated] == lengths.max()
        metrics["collect/terminated_at_longest"] = float(at_longest.mean())
    return metrics


def describe_actions(episodes: Episodes, action: VectorSpec) -> Metrics:
    """Size of executed actions where the limits are -1 and 1, and the share at a limit.

    Dimensions without limits have no such size; nothing where none has limits.
    """
    limited = np.isfinite(action.low) & np.isfinite(action.high)
    if not limited.any():
        return {}
    low, high = np.array(action.low)[limited], np.array(action.high)[limited]
    executed = np.concatenate(
        [e.actions[:, limited] for e in episodes.episodes]
    )  # [steps, limited]
    scaled = (2 * executed - high - low) / (high - low)
    return {
        "collect/action_rms": float(np.sqrt(np.square(scaled).mean())),
        "collect/action_at_limit": float((np.abs(scaled) > 0.999).mean()),
    }


def describe_inputs(features: Features) -> Metrics:
    """Size of the numbers that the policy was given of the robot or the state."""
    mask = features.dim_mask[:, : features.proprio.shape[1]]  # [m, proprio], what the robot has
    size = (features.proprio.square() * mask).sum() / mask.sum().clamp_min(1)
    return {"collect/input_rms": float(size.sqrt())}


def return_success_correlation(returns: np.ndarray, success: np.ndarray) -> Metrics:
    """Correlation of returns [episodes] with success bool [episodes]; none where one is fixed."""
    if len(returns) < 2 or returns.std() == 0 or success.std() == 0:
        return {}
    correlation = np.corrcoef(returns, success.astype(float))[0, 1]
    return {"collect/return_success_correlation": float(correlation)}


def describe_advantages(advantage: Float[Tensor, " m"]) -> Metrics:
    """Mean, standard deviation and quantiles of advantages [m]."""
    levels = advantage.new_tensor(_QUANTILES)
    quantiles = torch.quantile(advantage[:: max(1, len(advantage) // 100_000)], levels)
    return {
        "advantage/mean": float(advantage.mean()),
        "advantage/std": float(sample_std(advantage)),
        **{
            f"advantage/q{round(100 * level):02d}": float(value)
            for level, value in zip(_QUANTILES, quantiles, strict=True)
        },
    }


def describe_prediction(
    experience: Experience,
    values: Float[Tensor, "t n"],
    next_values: Float[Tensor, "t n"],
    gamma: float,
) -> Metrics:
    """The critic's values against what was really earned until the episode's end.

    A return that is bootstrapped holds the critic's own value of the final observation, and so
    agrees with any critic in part. That value is taken off both sides here.

    Args:
        experience: what was collected.
        values: of each observation, float32 [t, n].
        next_values: of the observations that followed, float32 [t, n].
        gamma: discount a control step.
    """
    earned = monte_carlo(experience, gamma)  # [t, n], rewards alone
    # With lambda 1 an advantage plus its value is what was earned and the final value, discounted.
    final = gae(experience, values, next_values, gamma, gae_lambda=1.0) + values - earned
    active = experience.active
    return compare_prediction((values - final)[active], earned[active])


def compare_prediction(predicted: Float[Tensor, " m"], actual: Float[Tensor, " m"]) -> Metrics:
    """Share of the variance of what was earned that is explained, and calibration."""
    variance = sample_std(actual).square().clamp_min(1e-8)
    explained = 1 - sample_std(actual - predicted).square() / variance
    return {"critic/earned_explained": float(explained), **_calibration(predicted, actual)}


def entropy_ahead(
    bonus: Float[Tensor, " m"], discount: Float[Tensor, " m"], episode: Tensor, n_step: int
) -> Float[Tensor, " m"]:
    """The entropy of later decisions in the values of macro-steps, [m].

    A target of n macro-steps counts the entropy of its last observation's decision alone, so the
    value of a step holds that of every n-th decision after it.

    Args:
        bonus: of the decision at each step, in the unit of rewards.
        discount: over the n macro-steps from it.
        episode: int64 [m]; the steps of one lie together, in order of time.
        n_step: macro-steps of a target.
    """
    ahead = torch.zeros_like(bonus)
    if len(bonus) <= n_step:
        return ahead
    goes_on = episode[n_step:] == episode[:-n_step]  # [m - n]
    share = discount[:-n_step] * goes_on
    # As many sweeps as an episode has targets; each adds the next one that lies ahead.
    for _ in range(int(episode.bincount().max()) // n_step):
        ahead[:-n_step] = share * (bonus + ahead)[n_step:]
    return ahead


def _calibration(predicted: Float[Tensor, " m"], actual: Float[Tensor, " m"]) -> Metrics:
    """Means of groups of equal size by what was predicted, and the spread of what came."""
    metrics = {"calibration/std": float(sample_std(actual))}
    order = predicted.argsort()
    # A well calibrated critic has equal means in every group, not only overall.
    for group, rows in enumerate(order.tensor_split(CALIBRATION_BINS), start=1):
        if len(rows):
            metrics[f"calibration/predicted_{group}"] = float(predicted[rows].mean())
            metrics[f"calibration/actual_{group}"] = float(actual[rows].mean())
    return metrics


def ratio_error(actor: StochasticActor, batch: Batch) -> Metrics:
    """How far the ratio of the same weights is from 1, at most, over executed steps."""
    part = batch.select(torch.arange(min(_ROWS, len(batch)), device=batch.advantage.device))
    moved = log_probs(actor, part.features, part.sample) - part.log_prob  # [m, p]
    return {"policy/ratio_error": float((moved.exp() - 1)[part.weight > 0].abs().max())}


@torch.no_grad()
def describe_spread(
    draw: Callable[[Features, torch.Generator], Tensor],
    features: Features,
    action_dim: int,
    seed: int,
) -> Metrics:
    """Spread of sampled actions, in units where the limits are -1 and 1.

    "sample" is that at one state: 0 where a policy always does the same there. "state" is that of
    the means over states: 0 where it does the same whatever it sees.

    Args:
        draw: random chunks [n, k, a] for n states.
        features: of any states.
        action_dim: of the robot, which may have fewer than a chunk has.
        seed: of the samples.
    """
    count = len(features)
    rows = torch.linspace(0, count - 1, min(_STATES, count), device=features.device).long()
    seen = features.select(rows)
    generator = torch.Generator(features.device).manual_seed(seed)
    drawn = torch.stack(
        [draw(seen, generator)[..., :action_dim] for _ in range(_SAMPLES)]
    )  # [samples, states, k, action]
    return {
        "policy/sample_spread": float(drawn.std(dim=0).mean()),
        "policy/state_spread": float(drawn.mean(dim=0).std(dim=0, correction=0).mean()),
    }


def learn_frozen_batch(
    actor: StochasticActor,
    update: PolicyUpdate,
    critic: CriticLearner | None,
    experience: Experience,
    batch: Batch,
    reference: Reference,
) -> Metrics:
    """Let copies of the critic and of the actor learn a small batch alone: both must fit it.

    Args:
        actor: copied together with its update and optimizer; itself it stays as it is.
        update: of the actor.
        critic: None for a method without one.
        experience: what was collected.
        batch: of its active macro-steps, with their advantages.
        reference: for penalties.

    Returns:
        "frozen_batch/explained_variance" of the critic afterwards, and "frozen_batch/likelier",
        the correlation of how much likelier samples became with their advantages. Nothing where
        nothing was earned or all advantages are alike.
    """
    device = batch.advantage.device
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randperm(len(batch), generator=generator, device=device)[:FROZEN_ROWS]
    metrics: Metrics = {}
    if critic is not None:
        # Rewards alone: a return that is bootstrapped would agree with any critic in part.
        earned = monte_carlo(experience, update.config.gamma)[experience.active][rows]
        seen = experience.critic_obs[experience.active][rows]
        metrics |= _fit_critic(critic, seen, earned, generator)
    return metrics | _fit_actor(actor, update, batch.select(rows), reference, generator)


def _fit_critic(
    critic: CriticLearner,
    seen: Float[Tensor, "m d"],
    earned: Float[Tensor, " m"],
    generator: torch.Generator,
) -> Metrics:
    if sample_std(earned) <= _ALIKE:
        return {}
    copy = deepcopy(critic)
    copy.fit(seen, earned, _CRITIC_EPOCHS, generator)
    with torch.no_grad():
        fit = describe_fit(copy.critic(seen), earned)
    return {"frozen_batch/explained_variance": fit["critic/explained_variance"]}


def learn_frozen_returns(critic: QEnsemble, batch: Transitions, learning_rate: float) -> Metrics:
    """Let a copy of an ensemble of critics learn what a small batch earned: it must fit it.

    Args:
        critic: itself it stays as it is.
        batch: macro-steps with the rewards of all that followed.
        learning_rate: of Adam.

    Returns:
        "frozen_batch/explained_variance" afterwards; nothing where all earned the same.
    """
    if sample_std(batch.reward) <= _ALIKE:
        return {}
    copy = deepcopy(critic)
    optimizer = torch.optim.Adam(copy.parameters(), learning_rate, fused=True)
    for _ in range(_CRITIC_EPOCHS):
        loss = (copy(batch.critic_obs, batch.action) - batch.reward).square().mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        fit = describe_fit(copy(batch.critic_obs, batch.action).mean(0), batch.reward)
    return {"frozen_batch/explained_variance": fit["critic/explained_variance"]}


def _fit_actor(
    actor: StochasticActor,
    update: PolicyUpdate,
    batch: Batch,
    reference: Reference,
    generator: torch.Generator,
) -> Metrics:
    if sample_std(batch.advantage) <= _ALIKE:
        return {}
    # Copied in one call, so that the copied optimizer moves the copied weights.
    actor, update = deepcopy((actor, update))
    for _ in range(_UPDATES):
        update.update(batch, reference, generator)
    moved = log_probs(actor, batch.features, batch.sample) - batch.log_prob  # [m, p]
    likelier = (moved * batch.weight).sum(1)
    return {"frozen_batch/likelier": _correlation(likelier, batch.advantage)}


def _correlation(one: Float[Tensor, " m"], other: Float[Tensor, " m"]) -> float:
    """Of two vectors [m]; 0 where one does not vary."""
    one, other = one - one.mean(), other - other.mean()
    size = one.norm() * other.norm()
    return float((one * other).sum() / size) if size > 0 else 0.0
