"""A run of direct preference optimisation: learn from stored pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from policies.optimisation import require_finite_weights
from policies.preferences.comparisons import Comparison, require_told
from policies.preferences.dpo import DPOConfig, dpo_loss, stack_pairs
from policies.preferences.pairing import split_by_state
from policies.preferences.trajectories import Trajectory
from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.experience import shuffled
from policies.reinforcement.exploration import Exploration
from policies.reinforcement.policy_update import Metrics, mean_metrics
from policies.reinforcement.reference import Reference
from policies.reinforcement.selected_run import SelectedRun
from policies.reinforcement.stochastic_policy import PolicyState, StochasticPolicy
from policies.run_folder import RunFolder
from vla.contract import VecEnv
from vla.model.heads.registry import require_likelihood


class DPOTrainer[State: PolicyState](SelectedRun[State]):
    """One run of epochs over stored pairs.

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

    LENGTH = "epochs"

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
        super().__init__(policy, env, config, config.evaluate_every, config.seed, folder)
        self.config = config
        # In the settings of the run: it is resumed with the same judgements, or refused.
        self._judged = hashlib.sha256(repr(list(comparisons)).encode()).hexdigest()
        # Before the reference is made of it: both explore alike.
        Exploration(policy.actor, (log_std, log_std), (temperature, temperature)).begin()
        seeds = {name: trajectory.seed for name, trajectory in trajectories.items()}
        told = require_told(comparisons)
        parts = split_by_state(told, seeds, config.heldout_fraction, config.seed)
        reference = Reference(policy.actor)
        self.train, self.heldout = (
            stack_pairs(part, trajectories, reference, policy.device) for part in parts
        )
        self._optimizer = ActorOptimizer(policy.actor, config)

    def advance(self) -> Metrics:
        """One epoch."""
        values = self.learn()
        require_finite_weights(self.policy.actor.parameters())
        self.iteration += 1
        return values

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

    def _settings(self, selection_seeds: Sequence[int]) -> dict[str, Any]:
        own = {"algorithm": "dpo", "comparisons": self._judged}
        return own | super()._settings(selection_seeds)

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"optimizer": self._optimizer.state_dict()}

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        self._optimizer.load_state_dict(state["optimizer"])
