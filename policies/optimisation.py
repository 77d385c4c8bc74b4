"""What all trainers do with an optimizer: a step that refuses NaN, and a learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class NotFiniteError(ArithmeticError):
    """A loss, gradient or weight is NaN or infinite."""


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> float:
    """Descend one step and return the gradient's norm before it was clipped.

    Raises:
        NotFiniteError: the loss or the gradient is not finite; the weights are then as before.
    """
    # Before anything changes: after a step on NaN every weight would be NaN.
    require_finite({"the loss": loss})
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # All that this optimizer moves, through all its groups of learning rates.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    # A finite loss can have an infinite gradient, for instance at sqrt(0).
    if not math.isfinite(norm):
        raise NotFiniteError(f"the gradient's norm is {norm}")
    optimizer.step()
    return norm


def require_finite(values: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Args:
        values: by the name that the message gives.

    Raises:
        NotFiniteError: naming the first that has any, and the value.
    """
    for name, value in values.items():
        if not (finite := value.isfinite()).all():
            bad = value.detach()[~finite].flatten()[0] if value.ndim else value.detach()
            raise NotFiniteError(f"{name} is {float(bad)}")


def require_finite_weights(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse weights that a step has thrown out of range, before they are saved.

    Raises:
        NotFiniteError: a weight is NaN or infinite.
    """
    # One sum a tensor: NaN and inf survive it, and a single transfer tells for all.
    require_finite({"a weight": torch.stack([p.detach().sum() for p in parameters])})


def cosine(step: int, total: int, warmup: int = 0) -> float:
    """Factor of a learning rate: up along a line for `warmup` steps, then down along a cosine.

    A function of the step alone, so that a resumed run has no schedule to restore, and one that
    was made longer takes the rates of the longer run.

    Source: Loshchilov and Hutter 2017 (SGDR, arXiv:1608.03983), equation 5, without restarts.

    Args:
        step: updates done.
        total: updates of the whole run, where the factor reaches 0.
        warmup: updates before the factor is 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
