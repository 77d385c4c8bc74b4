"""On-policy reinforcement learning: collect, estimate advantages, update.

What is the same for every method; what differs is a `PolicyUpdate`. For refining a cloned policy:

- The backbone is frozen: each frame's features are computed once, while collecting.
- The critic sees privileged simulator state (Pinto et al. 2017, arXiv:1710.06542) or, as an option,
  the actor's features; it learns alone for some iterations before the actor moves.
- Exploration is learned below a ceiling that falls during the run.
- The KL to the policy that refinement started from is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from policies.optimisation import require_finite, require_finite_weights
from policies.reinforcement import diagnostics
from policies.reinforcement.collect import Reward, collect, flatten
from policies.reinforcement.critic import Critic, CriticLearner, describe_fit
from policies.reinforcement.curriculum import Curriculum
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.exploration import Exploration
from policies.reinforcement.policy_update import Metrics, PolicyUpdate
from policies.reinforcement.reference import Reference
from policies.reinforcement.refinement import Refinement, RefinementConfig
from policies.reinforcement.registry import ALGORITHMS, algorithm_of
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.rollout import Episodes
from policies.run_folder import RunFolder
from vla.contract import VecEnv
from vla.settings import require_numbers


@dataclass(frozen=True)
class OnPolicyConfig(RefinementConfig):
    """What is the same for every on-policy method, beside `RefinementConfig`.

    Attributes:
        critic_learning_rate: of Adam.
        critic_epochs: passes of the critic over a collection.
        critic_minibatch_size: macro-steps a gradient step of the critic, roughly.
        warmup_epochs: passes of the critic over each collection while it learns alone: it starts
            untrained.
        max_grad_norm: the critic's gradients are clipped to this norm.
        log_std_start: log standard deviation, before squashing, at which exploration starts.
        log_std_end: it is learned, below a ceiling that falls from `log_std_start` to this.
        temperature_start: of a head of tokens, which has no standard deviation, at the beginning;
            greedy decisions know no temperature.
        temperature_end: its logarithm falls along a line to that of this.
    """

    critic_learning_rate: float = 1e-3
    critic_epochs: int = 10
    critic_minibatch_size: int = 1000
    warmup_epochs: int = 50
    max_grad_norm: float = 0.5
    log_std_start: float = -1.2
    log_std_end: float = -2.2
    temperature_start: float = 1.6
    temperature_end: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=(
                "episodes",
                "evaluate_every",
                "critic_epochs",
                "critic_minibatch_size",
                "warmup_epochs",
            ),
            above_0=("max_grad_norm", "temperature_start", "temperature_end"),
            any_sign=("log_std_start", "log_std_end"),
        )


class OnPolicyTrainer[State: PolicyState](Refinement[State]):
    """Refinement by an on-policy method.

    Args:
        policy: its actor is trained in place, its backbone is left as it is.
        env: where episodes are collected and evaluated.
        config: how long.
        method: settings of a registered method, such as `PPOConfig()`.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
        collection_seeds: iteration, from 0, to the seeds of the episodes that it collects.
        reward: rewards to learn from in place of the environment's; see `collect`.
        curriculum: see `Refinement`.

    Raises:
        NoLikelihoodError: the policy's head has no likelihood.
        ValueError: the episodes of an iteration are no whole number of the method's groups.
    """

    def __init__(
        self,
        policy: StochasticPolicy[State],
        env: VecEnv,
        config: OnPolicyConfig,
        method: Any,
        folder: RunFolder,
        collection_seeds: Callable[[int], Sequence[int]],
        reward: Reward | None = None,
        curriculum: Curriculum | None = None,
    ):
        name = algorithm_of(method)
        super().__init__(
            policy, env, config, method, name, folder, collection_seeds, reward, curriculum
        )
        self.config = config
        self.reference = Reference(policy.actor)
        self.exploration = Exploration(
            policy.actor,
            (config.log_std_start, config.log_std_end),
            (config.temperature_start, config.temperature_end),
        )
        self.exploration.begin()
        self.update: PolicyUpdate = ALGORITHMS[name].update(policy.actor, method)
        if config.episodes % self.update.group_size:
            raise ValueError(
                f"{name} compares groups of {self.update.group_size} episodes: episodes must "
                f"be a multiple of that, got {config.episodes}"
            )
        self.critic = self._make_critic() if self.update.needs_critic else None

    def _make_critic(self) -> CriticLearner:
        config = self.config
        size = len(self.env.privileged_names)
        if config.critic == "features":
            size = flatten(self._first_features()).shape[1]
        critic = Critic(size).to(self.policy.device)
        return CriticLearner(
            critic, config.critic_learning_rate, config.critic_minibatch_size, config.max_grad_norm
        )

    def advance(self) -> Metrics:
        """Collect, learn, and log the distribution of advantages."""
        batch, values = self.iterate()
        self._folder.histogram(self.iteration, "advantage", batch.advantage)
        return values

    def iterate(self) -> tuple[Batch, Metrics]:
        """Collect, learn, and say what was measured.

        Raises:
            NotFiniteError: a log-probability, loss, gradient or weight is not finite.
        """
        started = time.perf_counter()
        experience, episodes = self.collect()
        collected = time.perf_counter()
        batch, values = self.learn(experience)
        self.iteration += 1
        return batch, {
            **self._count(episodes),
            **diagnostics.describe_episodes(
                episodes, self._watch.returns(episodes), self.policy.spec.action
            ),
            **values,
            "time/collect_s": collected - started,
            "time/learn_s": time.perf_counter() - collected,
        }

    def collect(self) -> tuple[Experience, Episodes]:
        """Play an iteration's episodes."""
        # Before the reference: the KL to it is at this collection's exploration.
        self.exploration.limit(self.iteration / self.config.iterations)
        self.reference.match_exploration(self.policy.actor)
        seeds = self._seeds()
        experience, episodes = collect(
            self.env,
            self.policy,
            seeds,
            self.config.critic,
            self._generator,
            self._watch.begin(len(seeds)),
        )
        require_finite({"a sample's log-probability": experience.log_prob})
        return experience, episodes

    def _seeds(self) -> list[int]:
        """The initial state of each episode of this iteration; those of a group are the same."""
        size, states = self.update.group_size, self._collection_seeds(self.iteration)
        return [seed for seed in states[: len(states) // size] for _ in range(size)]

    def learn(self, experience: Experience) -> tuple[Batch, Metrics]:
        """Fit the critic, and update the actor once the critic is warm."""
        config, critic = self.config, self.critic
        values = next_values = torch.zeros_like(experience.ended, dtype=torch.float32)  # [t, n]
        if critic is not None:
            # Before values are computed, so that they and the fit see the same inputs.
            critic.critic.update_statistics(experience.critic_obs[experience.active])
            with torch.no_grad():
                values = critic.critic(experience.critic_obs)
                next_values = critic.critic(experience.next_critic_obs)
        # Values of the critic that has not seen these returns yet.
        advantage = self.update.advantages(experience, values, next_values)  # [t, n]
        batch = experience.batch(advantage)
        # Of the policy that collected, before it is updated.
        moved = self.reference.distance(self.policy.actor, batch.features, batch.sample)
        metrics = {
            **diagnostics.describe_policy(self.policy, batch, self.iteration),
            "policy/reference_kl": float(batch.mean(moved)),
        }
        is_warm = critic is None or self.iteration >= config.warmup_iterations
        if self.iteration == 0:
            metrics |= diagnostics.learn_frozen_batch(
                self.policy.actor, self.update, critic, experience, batch, self.reference
            )
        if critic is not None:
            active = experience.active
            # Whatever the estimator: an advantage is a return minus a value.
            returns = (advantage + values)[active]
            metrics |= describe_fit(values[active], returns)
            gamma = self.update.config.gamma
            metrics |= diagnostics.describe_prediction(experience, values, next_values, gamma)
            epochs = config.critic_epochs if is_warm else config.warmup_epochs
            metrics |= critic.fit(experience.critic_obs[active], returns, epochs, self._generator)
        if is_warm:
            metrics |= self.update.update(batch, self.reference, self._generator)
            # A finite gradient times a huge rate: found now, not after the next collection.
            require_finite_weights(self.policy.actor.parameters())
        return batch, metrics | self.exploration.metrics(self.policy.spec.action.dim)

    def _state(self) -> dict[str, Any]:
        critic = self.critic
        return super()._state() | {
            "update": self.update.state_dict(),
            "critic": None if critic is None else critic.state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        self.update.load_state_dict(state["update"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
