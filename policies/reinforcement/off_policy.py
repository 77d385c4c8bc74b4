"""Off-policy reinforcement learning: play, store every macro-step, and learn from all of them.

The same run, checkpoints and selection as on-policy refinement. What differs: gradient steps are
taken while episodes are being played, from a replay buffer that a checkpoint holds too, so that a
resumed run learns from the same past.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.optimisation import require_finite_weights
from policies.reinforcement import diagnostics
from policies.reinforcement.action_space import ActionSpace, DirectActions
from policies.reinforcement.collect import Reward, flatten
from policies.reinforcement.critic import describe_fit
from policies.reinforcement.dsrl import DSRLConfig, LatentNoise
from policies.reinforcement.hindsight import Hindsight
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.q_ensemble import QEnsemble
from policies.reinforcement.recorded import RecordedEpisodes
from policies.reinforcement.refinement import Refinement, RefinementConfig
from policies.reinforcement.replay import Replay, ReplayDims, Transitions
from policies.reinforcement.sac import SAC, SACConfig
from policies.reinforcement.standardised import Standardised
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.rollout import Transition, rollout
from policies.run_folder import RunFolder
from vla.contract import ObservationBatch, RobotSpec, VecEnv
from vla.model.features import Features


@dataclass(frozen=True)
class OffPolicyMethod:
    """A method: its settings, and what its actor decides.

    Attributes:
        config: the dataclass of its settings, all of which have defaults.
        space: made of a policy and such settings.
    """

    config: type[SACConfig]
    space: Callable[[Any, Any], ActionSpace]


OFF_POLICY = {
    "sac": OffPolicyMethod(SACConfig, DirectActions),
    "dsrl": OffPolicyMethod(DSRLConfig, LatentNoise),
}
"""The off-policy methods of `vla refine` by name."""


class _Player[State: PolicyState]:
    """A policy that acts at random, and where its episodes lie in the buffer, a row each."""

    def __init__(
        self,
        policy: StochasticPolicy[State],
        space: ActionSpace,
        replay: Replay,
        num_envs: int,
        generator: torch.Generator,
    ):
        self.spec: RobotSpec = policy.spec
        # A memory of its own: the policy's own one belongs to evaluation.
        self.state = policy.initial_state(num_envs)
        self.slots, self.at = torch.zeros(2, num_envs, dtype=torch.int64, device=policy.device)
        self._policy, self._space, self._replay = policy, space, replay
        self._generator = generator

    def reset(self, indices: Sequence[int]) -> None:
        """New episodes begin in these rows."""
        rows = list(indices)
        self.state = self.state.reset(rows)
        self.slots[rows] = self._replay.begin(len(rows))
        self.at[rows] = 0

    def act(self, observation: ObservationBatch) -> Tensor:
        """A random chunk, float32 [n, k, action.dim]; kept until the next one."""
        self.features, self.state = self._policy.features(observation, self.state)
        self.action, _ = self._space.actor.rsample(self.features, self._generator)
        chunk = self._policy.decode(self._space.chunk(self.features, self.action))
        return chunk.to(observation.proprio.device)


class OffPolicyTrainer[State: PolicyState](Refinement[State]):
    """Refinement by soft actor-critic.

    The first iteration's episodes are collected before the first gradient step.

    Args:
        policy: its actor is trained in place, its backbone is left as it is.
        env: where episodes are collected and evaluated.
        config: how long.
        method: settings of `SAC`.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
        collection_seeds: iteration, from 0, to the seeds of the episodes that it collects.
        demonstrations: a recorded data set whose episodes lie in the buffer; None for none.
        reward: rewards to learn from in place of the environment's; see `collect`.

    Raises:
        NotReparameterisedError: the policy's head gives random actions without a gradient.
        ValueError: settings that policy, environment or demonstrations do not allow.
    """

    def __init__(
        self,
        policy: StochasticPolicy[State],
        env: VecEnv,
        config: RefinementConfig,
        method: SACConfig,
        folder: RunFolder,
        collection_seeds: Callable[[int], Sequence[int]],
        demonstrations: Path | None = None,
        reward: Reward | None = None,
    ):
        if reward is not None and (demonstrations is not None or method.hindsight):
            raise ValueError(
                "demonstrations and hindsight bring the task's own reward into the buffer, where "
                "another one is learned from: leave them out, or the reward"
            )
        # The exact type: a method's settings may extend another's.
        name = next(name for name, m in OFF_POLICY.items() if m.config is type(method))
        super().__init__(policy, env, config, method, name, folder, collection_seeds, reward)
        self.config, self.method = config, method
        self._space = OFF_POLICY[name].space(policy, method)
        # Simulator states are what both this actor and a critic read: stored once.
        self._reads_state = isinstance(policy, StatePolicy)
        features = self._first_features()
        with torch.no_grad():
            # Drawn for its shape alone, by a generator of its own: [1, chunk_length, width].
            generator = torch.Generator(policy.device)
            action = self._space.actor.rsample(features, generator)[0]
        recorded = None
        if demonstrations is not None:
            if name == "dsrl":
                raise ValueError(
                    "dsrl decides noise, and which noise leads to a demonstrated chunk is not "
                    "known: it takes no demonstrations, sac does"
                )
            recorded = RecordedEpisodes(demonstrations, policy, env, action.shape[1])
        critic_obs = self._critic_obs(env.observe()[1][:1])
        self.replay = self._make_replay(features, critic_obs, action, recorded)
        self.sac = self._make_sac(features, critic_obs, action)
        self._owed = 0.0  # gradient steps, of which only whole ones can be taken
        self._measured: list[Metrics] = []
        self._learning_s, self._actor_steps = 0.0, 0
        self._recorded = recorded

    def _make_replay(
        self,
        features: Features,
        critic_obs: Tensor | None,
        action: Tensor,
        recorded: RecordedEpisodes | None,
    ) -> Replay:
        env, method, (chunk_length, width) = self.env, self.method, action.shape[1:]
        if method.capacity < 2 * env.num_envs:
            raise ValueError(
                f"a buffer of {method.capacity} episodes is too small for {env.num_envs} "
                f"environments: set capacity to {2 * env.num_envs} or more"
            )
        # Rounded up: the last chunk of an episode may be executed in part.
        length, count = -(-env.episode_length // chunk_length), 0
        if recorded is not None:
            # What was recorded with a later time limit must not run into the next episode's place.
            length, count = max(length, recorded.longest), len(recorded)
        dims = ReplayDims(method.capacity, count, length, chunk_length, width)
        hindsight = self._make_hindsight(chunk_length)
        return Replay(dims, features, critic_obs, method.n_step, hindsight)

    def _make_sac(self, features: Features, critic_obs: Tensor | None, action: Tensor) -> SAC:
        method = self.method
        seen = flatten(features) if critic_obs is None else critic_obs  # [1, d]
        critic = QEnsemble(
            seen.shape[1], action.numel(), method.critics, method.hidden, method.layer_norm
        ).to(self.policy.device)
        # Without dimensions that the robot does not have, which add nothing to the entropy.
        numbers = action.shape[1] * self.env.spec.action.dim
        # One that decides noise, or begins from scratch, has no clone to be kept near.
        is_clone = isinstance(self._space, DirectActions) and not self._reads_state
        distance = self._space.distance if is_clone else None
        return SAC(self._space.actor, critic, numbers, method, distance)

    def _make_hindsight(self, chunk_length: int) -> Hindsight | None:
        if not self.method.hindsight:
            return None
        if not self._reads_state:
            raise ValueError(
                "hindsight replaces the goal in the simulator's state; this policy sees the goal "
                "in images and words, where it cannot be replaced. Set hindsight=0"
            )
        if chunk_length > 1:
            raise ValueError(
                f"hindsight needs the state after every control step, a chunk of {chunk_length} "
                "gives only the last one: use a policy with chunks of 1 step, or hindsight=0"
            )
        return Hindsight.of(self.env, self.method.hindsight, self.method.step_reward)

    def _critic_obs(self, privileged: Tensor) -> Tensor | None:
        """What is stored for the critic beside the features; None where it reads those."""
        if self._reads_state or self.config.critic == "features":
            return None
        return privileged.to(self.policy.device)

    def advance(self) -> Metrics:
        """Play an iteration's episodes and learn meanwhile."""
        started = time.perf_counter()
        self._measured, self._learning_s, self._actor_steps = [], 0.0, 0
        seeds = self._collection_seeds(self.iteration)
        player = _Player(self.policy, self._space, self.replay, self.env.num_envs, self._generator)
        reward = self._watch.begin(len(seeds))
        episodes = rollout(self.env, player, seeds, lambda step: self._keep(player, step, reward))
        require_finite_weights(self.policy.actor.parameters())
        newest = self.replay.newest(min(len(seeds), self.method.capacity))
        # Once: statistics that move under a trained network change what it has learned.
        if self.iteration == 0:
            self._standardise(newest)
        self.iteration += 1
        means = {name: [m[name] for m in self._measured] for name in (self._measured or [{}])[-1]}
        return {
            **self._count(episodes),
            **diagnostics.describe_episodes(
                episodes, self._watch.returns(episodes), self.policy.spec.action
            ),
            **{name: float(np.mean(values)) for name, values in means.items()},
            **self._describe(newest),
            "policy/gradient_steps": float(self._actor_steps),
            "replay/steps": float(len(self.replay)),
            "time/collect_s": time.perf_counter() - started - self._learning_s,
            "time/learn_s": self._learning_s,
        }

    def _keep(self, player: _Player[State], transition: Transition, reward: Reward | None) -> None:
        """Store a macro-step of every environment that plays, and learn."""
        step, device = transition.step, self.policy.device
        if self.method.hindsight and (step.terminated & step.success.any(1)).any():
            raise ValueError(
                "this task ends an episode at success, and hindsight cannot know that another goal "
                "would have ended it earlier. Set hindsight=0"
            )
        rows = torch.from_numpy(np.flatnonzero(transition.episodes >= 0)).to(device)
        slots, at = player.slots[rows], player.at[rows]
        seen = self._critic_obs(transition.privileged)
        self.replay.observe(
            slots, at, player.features.select(rows), None if seen is None else seen[rows]
        )
        rewards, valid, terminated, ended = (
            column.to(device)[rows]
            for column in (
                step.rewards if reward is None else reward(transition),
                step.valid,
                step.terminated,
                step.terminated | step.truncated,
            )
        )
        self._add(slots, at, player.action[rows], rewards, valid, terminated)
        player.at[rows] += 1
        if ended.any():
            # The memory after a final observation is dropped: its episode does not go on.
            features, _ = self.policy.features(step.observation, player.state)
            last, after = rows[ended], self._critic_obs(step.privileged)
            self.replay.observe(
                player.slots[last],
                player.at[last],
                features.select(last),
                None if after is None else after[last],
            )
        self._learn(len(rows))

    def _add(
        self,
        slots: Tensor,
        at: Tensor,
        action: Tensor,
        rewards: Tensor,
        valid: Tensor,
        terminated: Tensor,
    ) -> None:
        """Store macro-steps with rewards [m, k] of their control steps."""
        gamma, executed = self.method.gamma, valid.sum(1)
        powers = gamma ** torch.arange(rewards.shape[1], device=rewards.device)  # [k]
        shifted = (rewards + self.method.step_reward) * valid
        # A time limit is no termination: the value behind it counts.
        discount = gamma**executed * ~terminated
        self.replay.step(slots, at, action, (shifted * powers).sum(1), discount)

    def _learn(self, steps: int) -> None:
        """The gradient steps that so many new macro-steps are worth."""
        # Nothing is standardised before the first iteration has ended.
        if self.iteration == 0:
            return
        self._owed += self.method.updates_per_step * steps
        count = int(self._owed)
        self._owed -= count
        if not count:
            return
        started = time.perf_counter()
        batches = self.replay.sample(count, self.method.batch_size, self._generator)
        alone = self.iteration <= self.config.warmup_iterations
        # `rollout` switches gradients off.
        with torch.enable_grad():
            self._measured.append(self.sac.update(batches, self._generator, alone))
        self._learning_s += time.perf_counter() - started
        self._actor_steps += 0 if alone else count

    @torch.no_grad()
    def _standardise(self, which: tuple[Tensor, Tensor]) -> None:
        """Update the statistics of inputs with what was seen in these steps."""
        seen = self.replay.read(*which, 1).critic_obs
        self.sac.critic.update_statistics(seen)
        actor = self.policy.actor
        if self._reads_state and isinstance(actor, Standardised):
            actor.update_statistics(seen)

    def _describe(self, which: tuple[Tensor, Tensor]) -> Metrics:
        """Critics against the returns of these steps' episodes; spread and distance of actions."""
        batch = self.replay.read(*which, self.replay.dims.length)
        metrics = diagnostics.describe_inputs(batch.features)
        # Once: what a fresh critic cannot fit, it will never learn.
        if self.iteration == 1:
            rows = torch.randperm(len(batch), generator=self._probe(), device=self.policy.device)
            small = batch.select(rows[: diagnostics.FROZEN_ROWS])
            rate = self.method.critic_learning_rate
            metrics |= diagnostics.learn_frozen_returns(self.sac.critic, small, rate)
        metrics |= self._describe_values(which, batch)
        # The inputs of one that begins from scratch were not standardised yet at its start.
        if not self._reads_state:
            with torch.no_grad():
                kl = self._space.distance(batch.features, self._probe())
            metrics["policy/reference_kl"] = float(kl.mean())
        dim, seed = self.policy.spec.action.dim, self.config.seed
        return metrics | diagnostics.describe_spread(self._draw, batch.features, dim, seed)

    @torch.no_grad()
    def _describe_values(self, which: tuple[Tensor, Tensor], batch: Transitions) -> Metrics:
        """Values of what was played against what was earned, and against those of other chunks."""
        values = self.sac.critic(batch.critic_obs, batch.action).mean(0)  # [m]
        targets, generator = self.sac.targets(batch, self._probe()), self._probe()
        # Values hold the entropy of later decisions, too, which no reward does.
        n_step = self.method.n_step
        discount = self.replay.read(*which, n_step).discount
        bonus = self.sac.entropy_bonus(batch.features, generator)
        ahead = diagnostics.entropy_ahead(bonus, discount, which[0], n_step)
        # Without the critics' own value of what was not played any more.
        predicted = values - targets + batch.reward - ahead
        others = self.sac.mean_value(batch, generator)
        return {
            **describe_fit(values, targets + ahead),
            **diagnostics.compare_prediction(predicted, batch.reward),
            **diagnostics.describe_advantages(values - others),
        }

    def _probe(self) -> torch.Generator:
        """Random numbers for measurements, which change nothing that is learned."""
        return torch.Generator(self.policy.device).manual_seed(self.config.seed)

    def _draw(self, features: Features, generator: torch.Generator) -> Tensor:
        # As decided: for a chunk, a policy that decides noise needs more than is stored.
        return self._space.actor.rsample(features, generator)[0]

    @torch.no_grad()
    def _begin(self) -> None:
        """Put demonstrations into the buffer."""
        # Not when it is built: the backbone reads every frame, which may take minutes, and a run
        # with other settings is refused before that.
        if (recorded := self._recorded) is None:
            return
        device = self.policy.device
        slots = self.replay.begin_demonstrations(len(recorded))
        for step in recorded.read():
            at = torch.full_like(step.rows, step.at).to(device)
            mine = slots[step.rows.to(device)]
            self.replay.observe(mine, at, step.features, self._critic_obs(step.privileged))
            acted = ~step.is_last.to(device)
            success = step.success.to(device)[acted]
            chunk = self.policy.encode(step.chunk.to(device)[acted])
            everything = torch.ones_like(success, dtype=torch.bool)
            nothing = torch.zeros(len(success), dtype=torch.bool, device=device)
            # The environment's reward is its success, see `CpuVecEnv.step`.
            self._add(mine[acted], at[acted], chunk, success, everything, nothing)
        self._standardise(self.replay.demonstrations())

    def _settings(self, selection_seeds: Sequence[int]) -> dict[str, Any]:
        demonstrations = "none" if self._recorded is None else self._recorded.fingerprint()
        return super()._settings(selection_seeds) | {"demonstrations": demonstrations}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "sac": self.sac.state_dict(),
            "replay": self.replay.state_dict(),
            "owed": self._owed,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        self.sac.load_state_dict(state["sac"])
        self.replay.load_state_dict(state["replay"])
        self._owed = state["owed"]
