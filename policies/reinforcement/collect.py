"""Collection: play episodes with a policy that samples, and keep what learning needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from policies.reinforcement.experience import Experience
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy, score
from policies.rollout import Episodes, Transition, rollout
from vla.contract import ObservationBatch, RobotSpec, VecEnv
from vla.model.features import Features

CriticObs = Literal["privileged", "features"]
Reward = Callable[[Transition], Tensor]
"""Rewards float32 [n, k] of a macro-step in place of the environment's, for a reward model."""


class _Sampler[State: PolicyState]:
    """A policy that samples and keeps what it saw and drew, one entry a macro-step."""

    def __init__(self, policy: StochasticPolicy[State], num_envs: int, generator: torch.Generator):
        self.spec: RobotSpec = policy.spec
        # A memory of its own: the policy's own one belongs to evaluation.
        self.state = policy.initial_state(num_envs)
        self.features: list[Features] = []
        self.samples: list[Tensor] = []
        self._policy, self._generator = policy, generator

    def reset(self, indices: Sequence[int]) -> None:
        """New episodes begin in these rows."""
        self.state = self.state.reset(indices)

    def act(self, observation: ObservationBatch) -> Tensor:
        """A sampled chunk, float32 [n, k, action.dim]."""
        features, self.state = self._policy.features(observation, self.state)
        sample = self._policy.actor.sample(features, self._generator)
        self.features.append(features)
        self.samples.append(sample)
        # Within the contract's limits; the likelihood stays that of the sample.
        chunk = self._policy.decode(self._policy.actor.actions(sample))
        return chunk.to(observation.proprio.device)


@torch.no_grad()
def collect[State: PolicyState](
    env: VecEnv,
    policy: StochasticPolicy[State],
    seeds: Sequence[int],
    critic_obs: CriticObs,
    generator: torch.Generator,
    reward: Reward | None = None,
) -> tuple[Experience, Episodes]:
    """Play one episode per seed with sampled chunks.

    Args:
        env: what it was playing is dropped.
        policy: samples; see `rollout` for how it is asked.
        seeds: one per episode; episodes of one seed begin in the same state, and are a group.
        critic_obs: what a critic sees: "privileged" simulator state, or the actor's "features".
        generator: of everything random, on the policy's device.
        reward: given in place of the environment's rewards.

    Returns:
        What was collected, on the policy's device, and the episodes with the environment's rewards.
    """
    # It is a `Policy`, so that collection and evaluation run episodes in the same way.
    sampler = _Sampler(policy, env.num_envs, generator)
    rows: list[dict[str, Tensor]] = []

    def keep(transition: Transition) -> None:
        step = transition.step
        # A reward of one's own need not know which steps of the chunk were executed.
        rewards = step.rewards if reward is None else reward(transition) * step.valid
        now, after = transition.privileged, step.privileged
        if critic_obs == "features":
            # The memory after the final observation is dropped: an episode does not go on there.
            following, _ = policy.features(step.observation, sampler.state)
            now, after = flatten(sampler.features[-1]), flatten(following)
        # Copies: an environment may reuse its buffers at the next step.
        rows.append(
            {
                "critic_obs": now.clone(),
                "next_critic_obs": after.clone(),
                "rewards": rewards.clone(),
                "valid": step.valid.clone(),
                "terminated": step.terminated.clone(),
                "ended": step.terminated | step.truncated,
                "episode": torch.from_numpy(transition.episodes),
            }
        )

    episodes = rollout(env, sampler, seeds, keep)
    columns = {
        name: torch.stack([row[name] for row in rows]).to(policy.device) for name in rows[0]
    }  # [t, n, ...]
    features, sample = Features.concatenate(sampler.features), torch.stack(sampler.samples)
    # Once more in large batches, with the arithmetic of the update, so that ratios begin at 1.
    active = columns["episode"] >= 0
    played = features.select(active.flatten().nonzero()[:, 0])
    log_prob, weight = score(policy.actor, played, sample[active], columns["valid"][active])
    number = {seed: number for number, seed in enumerate(dict.fromkeys(seeds))}
    success = torch.from_numpy(episodes.success_at_end).float().to(policy.device)
    experience = Experience(
        features=features,
        sample=sample,
        log_prob=_spread(log_prob, active),
        weight=_spread(weight, active),
        group=torch.tensor([number[seed] for seed in seeds], device=policy.device),
        outcome=success if reward is None else _sums(columns, len(seeds)),
        **columns,
    )
    return experience, episodes


def _spread(values: Tensor, active: Tensor) -> Tensor:
    """Values [m, p] of the active macro-steps where they belong, [t, n, p], and 0 elsewhere."""
    spread = values.new_zeros(*active.shape, values.shape[1])
    spread[active] = values
    return spread


def _sums(columns: dict[str, Tensor], episodes: int) -> Tensor:
    """The rewards of each episode, summed: float32 [episodes]."""
    active = columns["episode"] >= 0
    rewards = columns["rewards"][active].sum(1)  # [m]
    return rewards.new_zeros(episodes).index_add(0, columns["episode"][active], rewards)


def flatten(features: Features) -> Tensor:
    """Features as one vector a row for a critic, without the prompt's hidden states: [n, d]."""
    return torch.cat([features.readout, features.points.flatten(1), features.proprio], dim=1)
