"""The interface of an on-policy method: its advantages, and its update of the actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from policies.reinforcement.experience import Batch, Experience, sample_std
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor, log_probs

Metrics = dict[str, float]


class PolicyUpdate(Protocol):
    """One on-policy method, constructed from an actor and its settings.

    Attributes:
        needs_critic: whether a critic's values are given to `advantages`; otherwise they are 0.
    """

    needs_critic: ClassVar[bool]

    @property
    def group_size(self) -> int:
        """How many episodes are collected from each initial state."""
        ...

    @property
    def config(self) -> Any:
        """Its settings, a dataclass."""
        ...

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Advantages float32 [t, n]: estimated returns minus `values`.

        Args:
            experience: what was collected.
            values: the critic's, of each observation, float32 [t, n].
            next_values: of the observations that followed.
        """
        ...

    def update(self, batch: Batch, reference: Reference, generator: torch.Generator) -> Metrics:
        """Update the actor from one collection; returns metrics, see `mean_metrics`.

        Raises:
            NotFiniteError: a loss or a gradient is not finite.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the actor's weights."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


def mean_metrics(measured: Sequence[Metrics]) -> Metrics:
    """Means of what was measured, and how many gradient steps were taken."""
    names = dict.fromkeys(name for metrics in measured for name in metrics)
    columns = {name: [m[name] for m in measured if name in m] for name in names}
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    # A method that stops early has measured its KL once more than it has stepped.
    steps = len(columns.get("policy/grad_norm", []))
    return means | {"policy/gradient_steps": float(steps)}


def describe_weights(batch: Batch) -> Metrics:
    """The advantages that weigh the gradient, as a method uses them."""
    return {
        "advantage/used_mean": float(batch.advantage.mean()),
        "advantage/used_std": float(sample_std(batch.advantage)),
    }


def k3(log_ratio: Tensor) -> Tensor:
    """Estimate KL(p || q) from log(q / p) of p's samples; unbiased, low variance.

    Source: Schulman 2020, Approximating KL divergence, http://joschu.net/blog/kl-approx.html.
    """
    # exp(x) - 1 - x loses all digits near 0, where a policy has hardly moved; expm1 does not.
    return log_ratio.expm1() - log_ratio


def describe_step(
    actor: StochasticActor, batch: Batch, loss: Tensor, entropy: Tensor, grad_norm: float
) -> Metrics:
    """What a single gradient step on a whole collection did; the KL is that after the step."""
    moved = log_probs(actor, batch.features, batch.sample) - batch.log_prob  # [m, p]
    return {
        "policy/loss": float(loss.detach()),
        "policy/kl": float(batch.mean(k3(moved))),
        "policy/entropy": float(entropy.detach()),
        "policy/grad_norm": grad_norm,
        "policy/gradient_steps": 1.0,
        **describe_weights(batch),
    }
