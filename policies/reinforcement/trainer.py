"""On-policy reinforcement learning: collect, estimate advantages, update, select, save.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.checkpoints import Checkpoints, describe_seeds
from policies.evaluation.evaluate import evaluate
from policies.optimisation import require_finite, require_finite_weights
from policies.reinforcement import diagnostics
from policies.reinforcement.collect import CriticObs, Reward, collect, flatten
from policies.reinforcement.critic import Critic, CriticLearner, describe_fit
from policies.reinforcement.curriculum import Curriculum
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.exploration import Exploration
from policies.reinforcement.policy_update import Metrics, PolicyUpdate
from policies.reinforcement.reference import Reference
from policies.reinforcement.registry import ALGORITHMS, algorithm_of
from policies.reinforcement.reward_watch import RewardWatch
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.rollout import Episodes
from policies.run_folder import RunFolder, plain
from vla.contract import VecEnv
from vla.settings import require_numbers

_TOTAL = "training.iterations"  # a resumed run may be made longer


@dataclass(frozen=True)
class OnPolicyConfig:
    """How long to train and what is the same for every method.

    Attributes:
        iterations: collect, then learn.
        episodes: episodes collected each iteration; with 10 the gradient is mostly noise.
        critic: what the critic sees: "privileged" simulator state, or the actor's "features".
        critic_learning_rate: of Adam.
        critic_epochs: passes of the critic over a collection.
        critic_minibatch_size: macro-steps a gradient step of the critic, roughly.
        warmup_iterations: iterations in which the critic learns alone.
        warmup_epochs: passes of the critic over each of those collections: it starts untrained.
        max_grad_norm: the critic's gradients are clipped to this norm.
        log_std_start: log standard deviation, before squashing, at which exploration starts.
        log_std_end: it is learned, below a ceiling that falls from `log_std_start` to this.
        evaluate_every: iterations between greedy evaluations and checkpoints.
        seed: of everything random.
    """

    iterations: int = 60
    episodes: int = 200
    critic: CriticObs = "privileged"
    critic_learning_rate: float = 1e-3
    critic_epochs: int = 10
    critic_minibatch_size: int = 1000
    warmup_iterations: int = 2
    warmup_epochs: int = 50
    max_grad_norm: float = 0.5
    log_std_start: float = -1.2
    log_std_end: float = -2.2
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=(
                "episodes",
                "critic_epochs",
                "critic_minibatch_size",
                "warmup_epochs",
                "evaluate_every",
            ),
            above_0=("max_grad_norm",),
            any_sign=("log_std_start", "log_std_end"),
        )


class OnPolicyTrainer[State: PolicyState]:
    """One refinement run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: its actor is trained in place, its backbone is left as it is.
        env: where episodes are collected and evaluated.
        config: how long.
        method: settings of a registered method, such as `PPOConfig()`.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
        collection_seeds: iteration, from 0, to the seeds of the episodes that it collects.
        reward: rewards to learn from in place of the environment's; see `collect`.
        curriculum: chooses the episodes in place of `collection_seeds`, and may bring a reward.

    Raises:
        NoLikelihoodError: the policy's head has no likelihood.
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
        self.policy, self.env, self.config = policy, env, config
        self._method, self._folder = method, folder
        self._curriculum = curriculum
        if curriculum is not None:
            collection_seeds, reward = curriculum.seeds, curriculum.reward or reward
        self._watch = RewardWatch(reward)
        self._collection_seeds = collection_seeds
        # Dropout would make ratios of the same weights differ from 1.
        policy.actor.eval()
        # Draws the critic's first weights; samples and orders come from a generator of their own.
        torch.manual_seed(config.seed)
        self._generator = torch.Generator(policy.device).manual_seed(config.seed)
        self.reference = Reference(policy.actor)
        self.exploration = Exploration(policy.actor, config.log_std_start, config.log_std_end)
        self.exploration.begin()
        self._name = algorithm_of(method)
        self.update: PolicyUpdate = ALGORITHMS[self._name].update(policy.actor, method)
        self.critic = self._make_critic() if self.update.needs_critic else None
        self.checkpoints = Checkpoints(folder, policy)
        self.iteration, self.simulator_steps = 0, 0

    def _make_critic(self) -> CriticLearner:
        config, env = self.config, self.env
        size = len(env.privileged_names)
        if config.critic == "features":
            size = self._feature_size()
        critic = Critic(size).to(self.policy.device)
        return CriticLearner(
            critic, config.critic_learning_rate, config.critic_minibatch_size, config.max_grad_norm
        )

    @torch.no_grad()
    def _feature_size(self) -> int:
        """Numbers in a critic's vector of features, from a first observation."""
        env, n = self.env, self.env.num_envs
        seed = self._collection_seeds(0)[0]
        # Dropped again by the first rollout.
        env.reset(range(n), [seed] * n)
        observation, _ = env.observe()
        features, _ = self.policy.features(observation, self.policy.initial_state(n))
        return flatten(features).shape[1]

    def run(
        self,
        selection_seeds: Sequence[int],
        progress: Callable[[int, dict[str, float]], None] = lambda iteration, values: None,
        stop_at: float | None = None,
    ) -> Path:
        """Train, and return the folder of the checkpoint with the highest greedy success.

        Args:
            selection_seeds: initial states that choose the checkpoint; not those of evaluation.
            progress: called with what was logged.
            stop_at: stop early once greedy success at the end reaches this; None never does.

        Raises:
            ResumeError: the folder holds a run with other settings; nothing was written.
            DivergedError: a loss, gradient or weight is not finite.
        """
        if (state := self.checkpoints.resume(self._settings(selection_seeds), _TOTAL)) is not None:
            self._load_state(state)
        else:
            # The clone itself: where everything starts, and what a failed refinement falls back on.
            self._log(0, self._select(selection_seeds), progress)
        config = self.config
        while self.iteration < config.iterations and not self._is_good_enough(stop_at):
            with self.checkpoints.stop_on_nan(self.iteration + 1):
                batch, values = self.iterate()
            last = self.iteration == config.iterations
            if last or self.iteration % config.evaluate_every == 0:
                values |= self._select(selection_seeds)
                self.checkpoints.save(self.iteration, self._state())
            self._folder.histogram(self.iteration, "advantage", batch.advantage)
            self._log(self.iteration, values, progress)
        return self.checkpoints.best

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
            **self._describe(episodes),
            **values,
            "time/collect_s": collected - started,
            "time/learn_s": time.perf_counter() - collected,
        }

    def collect(self) -> tuple[Experience, Episodes]:
        """Play an iteration's episodes."""
        # Before the reference: the KL to it is at this collection's exploration.
        self.exploration.limit(self.iteration / self.config.iterations)
        self.reference.match_exploration(self.policy.actor)
        seeds = self._collection_seeds(self.iteration)
        experience, episodes = collect(
            self.env,
            self.policy,
            seeds,
            self.config.critic,
            self._generator,
            self._watch.begin(len(seeds)),
        )
        require_finite({"a sample's log-probability": experience.log_prob})
        self.simulator_steps += episodes.simulator_steps
        self.policy.ledger.spend(collection_steps=episodes.simulator_steps)
        return experience, episodes

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
            **diagnostics.describe_policy(self.policy, experience, batch, self.iteration),
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

    def _describe(self, episodes: Episodes) -> Metrics:
        returns, curriculum = self._watch.returns(episodes), self._curriculum
        return {
            **({} if curriculum is None else curriculum.learn(episodes, returns)),
            **diagnostics.describe_episodes(episodes, returns, self.policy.spec.action),
            "collect/success_end": float(episodes.success_at_end.mean()),
            "collect/success_ever": float(episodes.success_ever.mean()),
            "collect/return": float(np.mean([e.total_reward for e in episodes.episodes])),
            "collect/simulator_steps": float(self.simulator_steps),
        }

    def _select(self, seeds: Sequence[int]) -> Metrics:
        """Greedy rollouts; the best so far is saved as `best`."""
        # Greedy, and by both measures: the reward that is learned from, and success.
        values, steps = evaluate(self.env, self.policy, seeds, self._watch.begin(len(seeds)))
        values |= self._watch.judge(values)
        self.policy.ledger.spend(selection_steps=steps)
        # Ties go to the later one: it explored less while it was trained.
        self.checkpoints.offer_best(values["success/end"])
        return values

    def _is_good_enough(self, stop_at: float | None) -> bool:
        return stop_at is not None and self.checkpoints.best_score >= stop_at

    def _log(
        self,
        iteration: int,
        values: Metrics,
        progress: Callable[[int, dict[str, float]], None],
    ) -> None:
        self._folder.log(iteration, values | self.policy.ledger.metrics())
        progress(iteration, values)

    def _settings(self, selection_seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "algorithm": {"name": self._name, **plain(self._method)},
            "training": self.config,
            # Scores on other states cannot be compared, and so choose no best one.
            "selection": describe_seeds(selection_seeds),
            "device": self.policy.device.type,  # whose random generator the run has
            **({} if self._curriculum is None else {"curriculum": self._curriculum.config}),
        }

    def _state(self) -> dict[str, Any]:
        critic = self.critic
        return {
            "iteration": self.iteration,
            "simulator_steps": self.simulator_steps,
            "update": self.update.state_dict(),
            "critic": None if critic is None else critic.state_dict(),
            "reward": self._watch.state_dict(),
            "curriculum": None if self._curriculum is None else self._curriculum.state_dict(),
            "generator": self._generator.get_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.update.load_state_dict(state["update"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        # Runs that an earlier version began have none.
        self._watch.load_state_dict(state.get("reward", {}))
        if self._curriculum is not None:
            self._curriculum.load_state_dict(state["curriculum"])
        self._generator.set_state(state["generator"])
        self.iteration = state["iteration"]
        self.simulator_steps = state["simulator_steps"]
