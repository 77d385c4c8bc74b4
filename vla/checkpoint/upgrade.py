"""Checkpoints of format 1, read as if they were written today; `vla convert` rewrites one."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

# Name in format 1 -> name today.
_VLA_KEYS = {"horizon": "chunk_length", "summary": "readout_dim", "still": "static_points"}
_HEAD_KEYS = {"spread": "label_smoothing"}
_TOP_KEYS = {"interface": "dims", "horizon": "chunk_length"}
# Patterns and not whole names, since heads differ in what they contain.
_WEIGHTS = (
    (re.compile(r"^actor\.summary\."), "actor.readout_projection."),
    (re.compile(r"\.places$"), ".position_embedding"),
    (re.compile(r"\.quieter\."), ".noise_scale_head."),
    (re.compile(r"\.expert\.memory\."), ".expert.prompt_projection."),
)


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of format 1 with today's names; formats before had no `action_bound`."""
    model: dict[str, Any] = {"static_points": (), "action_bound": ()}
    model |= _rename(config["vla"], _VLA_KEYS)
    model["head"] = _rename(model["head"], _HEAD_KEYS)
    return {**_rename(config, _TOP_KEYS), "vla": model}


def upgrade_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of format 1 under today's names."""
    upgraded = {}
    for name, weight in weights.items():
        for old, new in _WEIGHTS:
            name = old.sub(new, name)
        upgraded[name] = weight
    return upgraded


def _rename(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in fields.items()}
