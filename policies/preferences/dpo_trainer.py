"""A run of direct preference optimisation: learn from stored pairs, select by success, save."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from policies.checkpoints import Checkpoints, describe_seeds
from policies.evaluation.evaluate import evaluate
from policies.optimisation import require_finite_weights
from policies.preferences.comparisons import Comparison
from policies.preferences.dpo import DPOConfig, dpo_loss, stack_pairs
from policies.preferences.pairing import split_by_state
from policies.preferences.trajectories import Trajectory
from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.experience import shuffled
from policies.reinforcement.exploration import Exploration
from policies.reinforcement.policy_update import Metrics, mean_metrics
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.run_folder import RunFolder
from vla.contract import VecEnv
from vla.model.heads.registry import require_likelihood

_TOTAL = "training.epochs"  # a resumed run may be made longer


class DPOTrainer[State: PolicyState]:
    """One run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: its actor is trained in place; as it is now it is the reference.
        env: where checkpoints are tried.
        config: hyperparameters, and how long.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
        comparisons: judgements.
        trajectories: what was compared, by name.
        log_std: exploration at which the trajectories were collected.
        temperature: the same of a head of tokens.

    Raises:
        NoLikelihoodError: the policy's head has no likelihood.
        ComparisonError: no pair prefers a whole trajectory, or none is held out.
    """

    def __init__(
        self,
        policy: StochasticPolicy[State],
        env: VecEnv,
        config: DPOConfig,
        folder: RunFolder,
        comparisons: Sequence[Comparison],
        trajectories: Mapping[str, Trajectory],
        log_std: float,
        temperature: float,
    ):
        require_likelihood(policy.actor.head, "DPO")
        self.policy, self.env, self.config = policy, env, config
        self._folder = folder
        # In the settings of the run: it is resumed with the same judgements, or refused.
        self._judged = hashlib.sha256(repr(list(comparisons)).encode()).hexdigest()
        policy.actor.eval()  # dropout would make a ratio of equal weights differ from 1
        # Before the reference is made of it: both explore alike.
        Exploration(policy.actor, (log_std, log_std), (temperature, temperature)).begin()
        seeds = {name: trajectory.seed for name, trajectory in trajectories.items()}
        told = [comparison for comparison in comparisons if comparison.told]
        parts = split_by_state(told, seeds, config.heldout_fraction, config.seed)
        reference = Reference(policy.actor)
        self.train, self.heldout = (
            stack_pairs(part, trajectories, reference, policy.device) for part in parts
        )
        self._optimizer = ActorOptimizer(policy.actor, config)
        self._generator = torch.Generator(policy.device).manual_seed(config.seed)
        self.checkpoints = Checkpoints(folder, policy)
        self.epoch = 0

    def run(
        self,
        selection_seeds: Sequence[int],
        progress: Callable[[int, Metrics], None] = lambda epoch, values: None,
    ) -> Path:
        """Train, and return the folder of the checkpoint with the highest greedy success.

        Raises:
            ResumeError: the folder holds a run with other settings; nothing was written.
            DivergedError: a loss, gradient or weight is not finite.
        """
        if (state := self.checkpoints.resume(self._settings(selection_seeds), _TOTAL)) is not None:
            self._load_state(state)
        else:
            self._log(0, self._measure() | self._select(selection_seeds), progress)
        while self.epoch < self.config.epochs:
            with self.checkpoints.stop_on_nan(self.epoch + 1):
                values = self.learn()
                require_finite_weights(self.policy.actor.parameters())
            self.epoch += 1
            values |= self._measure()
            if self.epoch == self.config.epochs or self.epoch % self.config.evaluate_every == 0:
                values |= self._select(selection_seeds)
                self.checkpoints.save(self.epoch, self._state())
            self._log(self.epoch, values, progress)
        return self.checkpoints.best

    def learn(self) -> Metrics:
        """One pass over the pairs."""
        measured = []
        for rows in shuffled(len(self.train), self.config.minibatch_size, self._generator):
            loss, metrics = dpo_loss(self.policy.actor, self.train.select(rows), self.config)
            measured.append(metrics | {"policy/grad_norm": self._optimizer.step(loss)})
        return mean_metrics(measured)

    @torch.no_grad()
    def _measure(self) -> Metrics:
        """Loss and accuracy on pairs of held-out states."""
        _, metrics = dpo_loss(self.policy.actor, self.heldout, self.config)
        return {f"{name}_heldout": value for name, value in metrics.items()}

    def _select(self, seeds: Sequence[int]) -> Metrics:
        values, steps = evaluate(self.env, self.policy, seeds)
        self.policy.ledger.spend(selection_steps=steps)
        self.checkpoints.offer_best(values["success/end"])
        return values

    def _log(self, epoch: int, values: Metrics, progress: Callable[[int, Metrics], None]) -> None:
        self._folder.log(epoch, values | self.policy.ledger.metrics())
        progress(epoch, values)

    def _settings(self, selection_seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "algorithm": "dpo",
            "training": self.config,
            "comparisons": self._judged,
            "selection": describe_seeds(selection_seeds),
            "device": self.policy.device.type,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
