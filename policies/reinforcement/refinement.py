"""What every refinement run does: collect, learn, and watch reward and success."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policies.evaluation.evaluate import evaluate
from policies.reinforcement.collect import CriticObs, Reward
from policies.reinforcement.curriculum import Curriculum
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.reward_watch import RewardWatch
from policies.reinforcement.selected_run import SelectedRun
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.rollout import Episodes
from policies.run_folder import RunFolder, plain
from vla.contract import VecEnv
from vla.model.features import Features
from vla.settings import require_numbers


@dataclass(frozen=True)
class RefinementConfig:
    """How long to train and what is the same for every method.

    Attributes:
        iterations: collect, then learn; an off-policy method learns while it collects.
        episodes: episodes collected each iteration; with 10 an on-policy gradient is mostly noise.
        critic: what the critic sees: "privileged" simulator state, or the actor's "features".
        warmup_iterations: iterations in which the critic learns alone.
        evaluate_every: iterations between greedy evaluations and checkpoints.
        seed: of everything random.
    """

    iterations: int = 60
    episodes: int = 200
    critic: CriticObs = "privileged"
    warmup_iterations: int = 2
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("episodes", "evaluate_every"))


class Refinement[State: PolicyState](SelectedRun[State]):
    """One refinement run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: its actor is trained in place, its backbone is left as it is.
        env: where episodes are collected and evaluated.
        config: how long.
        method: settings of a method.
        name: of the method.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
        collection_seeds: iteration, from 0, to the seeds of the episodes that it collects.
        reward: rewards to learn from in place of the environment's; see `collect`.
        curriculum: chooses the episodes in place of `collection_seeds`, and may bring a reward.
    """

    LENGTH = "iterations"

    def __init__(
        self,
        policy: StochasticPolicy[State],
        env: VecEnv,
        config: RefinementConfig,
        method: Any,
        name: str,
        folder: RunFolder,
        collection_seeds: Callable[[int], Sequence[int]],
        reward: Reward | None = None,
        curriculum: Curriculum | None = None,
    ):
        super().__init__(policy, env, config, config.evaluate_every, config.seed, folder)
        self._method, self._name = method, name
        if curriculum is not None:
            collection_seeds, reward = curriculum.seeds, curriculum.reward or reward
        self._collection_seeds, self._curriculum = collection_seeds, curriculum
        self._watch = RewardWatch(reward)
        # Draws the critic's first weights; samples and orders come from the run's own generator.
        torch.manual_seed(config.seed)
        self.simulator_steps = 0

    @torch.no_grad()
    def _first_features(self) -> Features:
        """What the actor sees of a first observation, one row; the next rollout drops it."""
        env, n = self.env, self.env.num_envs
        seed = self._collection_seeds(0)[0]
        env.reset(range(n), [seed] * n)
        observation, _ = env.observe()
        features, _ = self.policy.features(observation, self.policy.initial_state(n))
        return features.select(slice(1))

    def _count(self, episodes: Episodes) -> Metrics:
        """Add an iteration's episodes to what was spent, and describe them."""
        self.simulator_steps += episodes.simulator_steps
        self.policy.ledger.spend(collection_steps=episodes.simulator_steps)
        learned, curriculum = self._watch.returns(episodes), self._curriculum
        return {
            **({} if curriculum is None else curriculum.learn(episodes, learned)),
            "collect/success_end": float(episodes.success_at_end.mean()),
            "collect/success_ever": float(episodes.success_ever.mean()),
            "collect/return": float(np.mean([e.total_reward for e in episodes.episodes])),
            "collect/simulator_steps": float(self.simulator_steps),
        }

    def _evaluate(self, seeds: Sequence[int]) -> tuple[Metrics, int]:
        """By both measures: the reward that is learned from, and success."""
        values, steps = evaluate(self.env, self.policy, seeds, self._watch.begin(len(seeds)))
        return values | self._watch.judge(values), steps

    def _settings(self, selection_seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "algorithm": {"name": self._name, **plain(self._method)},
            **super()._settings(selection_seeds),
            **({} if self._curriculum is None else {"curriculum": self._curriculum.config}),
        }

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "simulator_steps": self.simulator_steps,
            "reward": self._watch.state_dict(),
            "curriculum": None if self._curriculum is None else self._curriculum.state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        # Runs that an earlier version began have none.
        self._watch.load_state_dict(state.get("reward", {}))
        if self._curriculum is not None:
            self._curriculum.load_state_dict(state["curriculum"])
        self.simulator_steps = state["simulator_steps"]
