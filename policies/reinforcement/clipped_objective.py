"""The clipped surrogate objective and the gradient steps on it, for PPO, GRPO and RLOO.

Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7; with another bound above than below,
Yu et al. 2025, DAPO (arXiv:2503.14476), equation 10. The ratio is taken part by part, where a part
is a control step or a token (see `Likelihood`): one ratio over a whole chunk saturates the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.experience import Batch
from policies.reinforcement.policy_update import (
    Metrics,
    describe_weights,
    k3,
    mean_metrics,
)


class ClipSettings(Protocol):
    """What a method's settings say of the objective and its steps."""

    @property
    def clip_range(self) -> float:
        """The ratio is clipped at 1 - this."""
        ...

    @property
    def clip_high(self) -> float | None:
        """And at 1 + this; None for `clip_range`."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over a collection."""
        ...

    @property
    def minibatch_size(self) -> int:
        """Macro-steps a gradient step."""
        ...

    @property
    def target_kl(self) -> float | None:
        """How far the policy may move in one iteration, in nats a control step."""
        ...


def clipped_surrogate(
    log_prob: Tensor, batch: Batch, settings: ClipSettings
) -> tuple[Tensor, Metrics]:
    """Equation 7, a scalar to ascend, of log-probabilities [m, p] now; and how far they moved."""
    log_ratio = log_prob - batch.log_prob  # [m, p]
    ratio, advantage = log_ratio.exp(), batch.advantage[:, None]  # [m, p], [m, 1]
    low = 1 - settings.clip_range
    high = 1 + (settings.clip_range if settings.clip_high is None else settings.clip_high)
    # The minimum: beyond the range nothing more is gained, but what is lost counts in full.
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    return batch.mean(surrogate), {
        "policy/kl": float(batch.mean(k3(log_ratio.detach()))),
        "policy/clip_fraction": float(batch.fraction((ratio < low) | (ratio > high))),
    }


def descend(
    batch: Batch,
    loss: Callable[[Batch], tuple[Tensor, Metrics]],
    optimizer: ActorOptimizer,
    settings: ClipSettings,
    generator: torch.Generator,
) -> Metrics:
    """Epochs over one collection, until the policy has moved by `target_kl`.

    Args:
        batch: of one collection.
        loss: of a minibatch, and metrics with "policy/kl" to the policy that collected.
        optimizer: takes the steps.
        settings: how many.
        generator: of the order.

    Returns:
        Means of what was measured at each gradient step.
    """
    weights, measured = describe_weights(batch), list[Metrics]()
    for _ in range(settings.epochs):
        for minibatch in batch.minibatches(settings.minibatch_size, generator):
            value, metrics = loss(minibatch)
            # Measured before the step: the step that exceeded the target was the last one.
            kl = metrics["policy/kl"]
            if settings.target_kl is not None and kl > settings.target_kl:
                return mean_metrics([*measured, {"policy/kl": kl}]) | weights
            measured.append(metrics | optimizer.describe(optimizer.step(value)))
    return mean_metrics(measured) | weights
