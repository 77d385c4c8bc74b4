"""What every refinement run does: train, select on held-out states, save, resume, log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.checkpoints import Checkpoints, describe_seeds
from policies.evaluation.evaluate import evaluate
from policies.reinforcement.collect import CriticObs, Reward
from policies.reinforcement.curriculum import Curriculum
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.reward_watch import RewardWatch
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.rollout import Episodes
from policies.run_folder import RunFolder, plain
from vla.contract import VecEnv
from vla.model.features import Features
from vla.settings import require_numbers

_TOTAL = "training.iterations"  # a resumed run may be made longer


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


class Refinement[State: PolicyState](ABC):
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
        self.policy, self.env = policy, env
        self._shared, self._method, self._name = config, method, name
        if curriculum is not None:
            collection_seeds, reward = curriculum.seeds, curriculum.reward or reward
        self._folder, self._collection_seeds = folder, collection_seeds
        self._curriculum = curriculum
        self._watch = RewardWatch(reward)
        # Dropout would make ratios of the same weights differ from 1.
        policy.actor.eval()
        # Draws the critic's first weights; samples and orders come from a generator of their own.
        torch.manual_seed(config.seed)
        self._generator = torch.Generator(policy.device).manual_seed(config.seed)
        self.checkpoints = Checkpoints(folder, policy)
        self.iteration, self.simulator_steps = 0, 0

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
        config = self._shared
        while self.iteration < config.iterations and not self._is_good_enough(stop_at):
            with self.checkpoints.stop_on_nan(self.iteration + 1):
                values = self.advance()
            last = self.iteration == config.iterations
            if last or self.iteration % config.evaluate_every == 0:
                values |= self._select(selection_seeds)
                self.checkpoints.save(self.iteration, self._state())
            self._log(self.iteration, values, progress)
        return self.checkpoints.best

    @abstractmethod
    def advance(self) -> Metrics:
        """One iteration: collect and learn; what was measured.

        Raises:
            NotFiniteError: what was computed is not finite.
        """

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

    def _select(self, seeds: Sequence[int]) -> Metrics:
        """Greedy rollouts; the best so far is saved as `best`."""
        # By both measures: the reward that is learned from, and success.
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
            "training": self._shared,
            # Scores on other states cannot be compared, and so choose no best one.
            "selection": describe_seeds(selection_seeds),
            "device": self.policy.device.type,  # whose random generator the run has
            **({} if self._curriculum is None else {"curriculum": self._curriculum.config}),
        }

    def _state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights; a method adds its own."""
        return {
            "iteration": self.iteration,
            "simulator_steps": self.simulator_steps,
            "reward": self._watch.state_dict(),
            "curriculum": None if self._curriculum is None else self._curriculum.state_dict(),
            "generator": self._generator.get_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `_state`."""
        # Runs that an earlier version began have none.
        self._watch.load_state_dict(state.get("reward", {}))
        if self._curriculum is not None:
            self._curriculum.load_state_dict(state["curriculum"])
        self._generator.set_state(state["generator"])
        self.iteration = state["iteration"]
        self.simulator_steps = state["simulator_steps"]
