"""Ranges of the settings of all trainings, by their names."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

# What is not listed starts at 0.
_LOWEST: dict[str, float] = {"log_std_start": -math.inf, "log_std_end": -math.inf} | dict.fromkeys(
    (
        "batch",
        "critic_epochs",
        "critic_minibatch_size",
        "epochs",
        "episodes",
        "evaluate_every",
        "log_every",
        "minibatch_size",
        "phrasings",
        "warmup_epochs",
    ),
    1,
)
_HIGHEST = {"gamma": 1 - 1e-6, "gae_lambda": 1.0, "baseline_rate": 1.0, "heldout": 1 - 1e-6}
_ABOVE_ZERO = ("clip_range", "target_kl", "max_grad_norm")


def require_settings(config: Any) -> None:
    """Refuse settings with which nothing could be learned, before anything is loaded.

    A negative learning rate or gradient norm ascends, and NaN would be reported as a divergence.

    Args:
        config: a dataclass; what is no number in it, or None, is not looked at.

    Raises:
        ValueError: naming the setting, its value and its range.
    """
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if not isinstance(value, int | float):
            continue
        low, high = _LOWEST.get(name, 0.0), _HIGHEST.get(name, math.inf)
        # A comparison that NaN fails, too; no setting is infinite.
        is_within = low <= value <= high and math.isfinite(value)
        if not is_within or (name in _ABOVE_ZERO and value == 0):
            least = "above 0" if name in _ABOVE_ZERO else f"at least {low}"
            most = "" if high == math.inf else f" and at most {high}"
            raise ValueError(f"{name} must be {least}{most}, got {value}")
