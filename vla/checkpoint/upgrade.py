"""Checkpoints of older formats, read as if they were written today; `vla convert` rewrites one."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

# Name in format 1 -> name today.
_VLA_KEYS = {"horizon": "chunk_length", "summary": "readout_dim", "still": "static_points"}
# What every model of formats 1 and 2 pointed at, and the relative positions that its actor read.
_POINTS = ("gripper", "object", "target")
_RELATIVE = {"relative": (("gripper", "object"), ("object", "target")), "relative_gain": 16.0}
_HEAD_KEYS = {"spread": "label_smoothing"}
_TOP_KEYS = {"interface": "dims", "horizon": "chunk_length"}
# Patterns and not whole names, since heads differ in what they contain.
_WEIGHTS = (
    (re.compile(r"^actor\.summary\."), "actor.readout_projection."),
    (re.compile(r"\.places$"), ".position_embedding"),
    (re.compile(r"\.quieter\."), ".noise_scale_head."),
    (re.compile(r"\.expert\.memory\."), ".expert.prompt_projection."),
)


def upgrade_config(config: dict[str, Any], version: int) -> dict[str, Any]:
    """config.json of an older format as it is written today."""
    model: dict[str, Any] = config["vla"]
    if version == 1:
        # The first checkpoints had no `action_bound`.
        model = {"static_points": (), "action_bound": (), **_rename(model, _VLA_KEYS)}
        model["head"] = _rename(model["head"], _HEAD_KEYS)
        config = _rename(config, _TOP_KEYS)
    if version <= 2:
        model = _with_points(model)
    if model["head"]["type"] == "l1":
        # Until format 3 all of a chunk came from the expert.
        model = {**model, "head": {**model["head"], "hidden": 0}}
    return {**config, "vla": model}


def _with_points(model: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json on the model with its points, which were the same for all before."""
    model = dict(model)
    static = model.pop("static_points")
    specs = [{"name": name, "static": name in static, "frame": "world"} for name in _POINTS]
    workspace = {"center_m": model.pop("point_center_m"), "scale_m": model.pop("point_scale_m")}
    return {**model, "points": {"specs": specs, **workspace, **_RELATIVE}}


def upgrade_weights(weights: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    """Weights under today's names; those of format 2 have them."""
    if version != 1:
        return weights
    upgraded = {}
    for name, weight in weights.items():
        for old, new in _WEIGHTS:
            name = old.sub(new, name)
        upgraded[name] = weight
    return upgraded


def _rename(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in fields.items()}
