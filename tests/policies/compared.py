"""Trajectories made by hand, and a store of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from point_env import PointVecEnv
from torch import Tensor

from policies.preferences.comparisons import Comparison, ComparisonStore, Pair, Segment
from policies.preferences.trajectories import Trajectory
from vla.model.features import Features

POINT = PointVecEnv.spec


def trajectory(
    states: Sequence[Sequence[float]],
    rewards: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
    sample: Tensor | None = None,
    **changes: Any,
) -> Trajectory:
    """An episode that reached these states, one a chunk of two control steps."""
    reached = torch.tensor(states, dtype=torch.float32)
    chunks = len(reached)
    given = torch.tensor(rewards or [[0.0, 0.0]] * chunks)
    valid = changes.pop("valid", torch.ones(chunks, 2, dtype=torch.bool))
    fields = {
        "seed": seed,
        "instruction": "go to 0.30",
        "policy": "a policy",
        "interface": "an interface",
        "actions": torch.zeros(int(valid.sum()), 1),
        "rewards": given,
        "success": given[:, -1] > 0,
        "valid": valid,
        "privileged": reached,
        "reached": reached,
        "features": Features.of_vector(reached, 1),
        "sample": torch.zeros(chunks, 2, 1) if sample is None else sample,
    }
    return Trajectory(**fields | changes)


def whole(trajectories: dict[str, Trajectory], first: str, second: str) -> Pair:
    """Both from beginning to end."""
    return Pair(*(Segment(name, 0, len(trajectories[name])) for name in (first, second)))


def compared(
    trajectories: dict[str, Trajectory], labels: dict[tuple[str, str], float | None]
) -> list[Comparison]:
    """Judgements of whole trajectories, by their names."""
    return [
        Comparison(whole(trajectories, *names), label, "test") for names, label in labels.items()
    ]


def open_store(folder: Path, **changes: Any) -> ComparisonStore:
    """For writing."""
    settings = {"task": "point", "spec": POINT, "log_std": -1.0}
    return ComparisonStore.create(folder, **settings | changes)
