"""A run whose checkpoints are tried greedily: train, select on held-out states, save, resume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from policies.checkpoints import Checkpoints, describe_seeds
from policies.evaluation.evaluate import evaluate
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.run_folder import RunFolder
from vla.contract import VecEnv


class SelectedRun[State: PolicyState](ABC):
    """One run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: its actor is trained in place.
        env: where checkpoints are tried.
        training: settings, a dataclass with the number of iterations under the name `LENGTH`.
        evaluate_every: iterations between greedy evaluations and checkpoints.
        seed: of the generator.
        folder: where checkpoints `step_<n>`, `best` and metrics go.

    Attributes:
        iteration: how many are done.
    """

    LENGTH: ClassVar[str]
    """The setting that says how many iterations there are; a resumed run may be made longer."""

    def __init__(
        self,
        policy: StochasticPolicy[State],
        env: VecEnv,
        training: Any,
        evaluate_every: int,
        seed: int,
        folder: RunFolder,
    ):
        self.policy, self.env = policy, env
        self._training, self._evaluate_every, self._folder = training, evaluate_every, folder
        # Dropout would make ratios of the same weights differ from 1.
        policy.actor.eval()
        self._generator = torch.Generator(policy.device).manual_seed(seed)
        self.checkpoints = Checkpoints(folder, policy)
        self.iteration = 0

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
        settings = self._settings(selection_seeds)
        if (state := self.checkpoints.resume(settings, f"training.{self.LENGTH}")) is not None:
            self._load_state(state)
        else:
            self._begin()
            # The clone itself: where everything starts, and what a failed run falls back on.
            self._log(0, self._measure() | self._select(selection_seeds), progress)
        length = getattr(self._training, self.LENGTH)
        while self.iteration < length and not self._is_good_enough(stop_at):
            with self.checkpoints.stop_on_nan(self.iteration + 1):
                values = self.advance() | self._measure()
            if self.iteration == length or self.iteration % self._evaluate_every == 0:
                values |= self._select(selection_seeds)
                self.checkpoints.save(self.iteration, self._state())
            self._log(self.iteration, values, progress)
        return self.checkpoints.best

    @abstractmethod
    def advance(self) -> Metrics:
        """One iteration; what was measured.

        Raises:
            NotFiniteError: what was computed is not finite.
        """

    def _begin(self) -> None:  # noqa: B027  most have nothing to do
        """What a new run has to do first; a resumed one has it in its checkpoint."""

    def _measure(self) -> Metrics:
        """What is measured of each iteration's policy, also of the first, without the simulator."""
        return {}

    def _evaluate(self, seeds: Sequence[int]) -> tuple[Metrics, int]:
        """Greedy rollouts, and the simulator steps that they took."""
        return evaluate(self.env, self.policy, seeds)

    def _select(self, seeds: Sequence[int]) -> Metrics:
        """Greedy rollouts; the best so far is saved as `best`."""
        values, steps = self._evaluate(seeds)
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
        """What a resumed run must share; a method adds its own."""
        return {
            "training": self._training,
            # Scores on other states cannot be compared, and so choose no best one.
            "selection": describe_seeds(selection_seeds),
            "device": self.policy.device.type,  # whose random generator the run has
        }

    def _state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights; a method adds its own."""
        return {"iteration": self.iteration, "generator": self._generator.get_state()}

    def _load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `_state`."""
        self._generator.set_state(state["generator"])
        self.iteration = state["iteration"]
