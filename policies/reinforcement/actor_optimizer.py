"""Adam on an actor: its means at one rate, its log standard deviations at another."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from policies.optimisation import optimizer_step
from policies.reinforcement.stochastic_policy import StochasticActor
from vla.model.heads.base import ActionHead
from vla.model.heads.registry import HEADS

LEARNING_RATES = {"gaussian": 3e-4, "token": 1e-4, "fast": 2e-5, "flow": 2e-5}
"""Of Adam, by kind of head: smaller than in cloning, so that one step changes the policy little."""


class OptimizerSettings(Protocol):
    """What a method's settings say of its optimizer."""

    @property
    def learning_rate(self) -> float | None:
        """Of all but the log standard deviations; None for that of the head's kind."""
        ...

    @property
    def log_std_learning_rate(self) -> float:
        """Of the log standard deviations."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """Gradients are clipped to this norm."""
        ...


class ActorOptimizer:
    """Adam on an actor.

    Args:
        actor: trained in place.
        settings: of a method.

    Raises:
        ValueError: no learning rate is set, and none is known for the head's kind.
    """

    def __init__(self, actor: StochasticActor, settings: OptimizerSettings):
        rate = settings.learning_rate
        log_std = actor.log_std_parameters()
        # By identity: `in` would compare the tensors' values.
        means = [p for p in actor.parameters() if all(p is not other for other in log_std)]
        # In one run a log standard deviation has to change by about 1, each weight by far less.
        groups: list[dict[str, Any]] = [
            {"params": means, "lr": _rate_for(actor.head) if rate is None else rate},
            {"params": log_std, "lr": settings.log_std_learning_rate},
        ]
        self._adam = torch.optim.Adam(groups, fused=True)
        self._max_grad_norm = settings.max_grad_norm

    def step(self, loss: Tensor) -> float:
        """Descend one step; the gradient's norm before it was clipped. See `optimizer_step`."""
        # Both groups are clipped together, by one norm.
        return optimizer_step(self._adam, loss, self._max_grad_norm)

    def describe(self, norm: float) -> dict[str, float]:
        """A step's gradient norm, as `step` gave it, and whether it was clipped, 0 or 1."""
        return {
            "policy/grad_norm": norm,
            "policy/grad_clipped": float(norm > self._max_grad_norm),
        }

    @property
    def learning_rate(self) -> float:
        """Of the means."""
        return self._adam.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts."""
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._adam.load_state_dict(state)


def _rate_for(head: ActionHead) -> float:
    for name, rate in LEARNING_RATES.items():
        # Exactly this kind: a subclass may need another rate.
        if type(head) is HEADS[name].head:
            return rate
    raise ValueError(
        f"no learning rate is known for {type(head).__name__}, only for "
        f"{', '.join(LEARNING_RATES)}: set the algorithm's learning_rate"
    )
