"""The clipped surrogate objective and the gradient steps on it, for PPO, GRPO and RLOO.

Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7; with another bound above than below,
Yu et al. 2025, DAPO (arXiv:2503.14476), equation 10. The ratio is taken part by part, where a part
is a control step or a token (see `Likelihood`): one ratio over a whole chunk saturates the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

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
from vla.settings import require_numbers


@dataclass(frozen=True)
class ClipConfig:
    """What the objective and its steps need to know; each method adds its own.

    Attributes:
        clip_range: the ratio is clipped to 1 - clip_range and 1 + clip_high.
        clip_high: larger than below, so that what is unlikely can become likely; None for the same.
        epochs: passes over what was collected.
        minibatch_size: macro-steps a gradient step, roughly: parts are of equal size.
        learning_rate: of Adam; None for that of the head's kind, see `LEARNING_RATES`.
        log_std_learning_rate: of Adam for the exploration's log standard deviation.
        reference_kl: weight of a penalty on KL(policy || clone), estimated as the method says.
        target_kl: how far the policy may move in one iteration, in nats a control step; None for
            any distance.
        max_grad_norm: gradients are clipped to this norm.
    """

    clip_range: float = 0.2
    clip_high: float | None = None
    epochs: int = 10
    minibatch_size: int = 1000
    learning_rate: float | None = None
    log_std_learning_rate: float = 3e-3
    reference_kl: float = 0.0
    target_kl: float | None = 0.05
    max_grad_norm: float = 0.5

    # Of the settings that a method adds.
    AT_MOST: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("epochs", "minibatch_size"),
            above_0=("clip_range", "clip_high", "target_kl", "max_grad_norm"),
            at_most=self.AT_MOST,
        )


def clipped_surrogate(
    log_prob: Tensor, batch: Batch, settings: ClipConfig
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
    settings: ClipConfig,
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
