"""Positions of things as an auxiliary loss of cloning.

A perception that is trained also learns the points whose positions are known, from the forward pass
that it acts by. Source: James et al. 2017 (arXiv:1707.02267), whose network says beside its action
where cube and gripper are. Departure: the actor reads the points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from policies.imitation.dataset import DemoBatch
from policies.imitation.demonstrations import Demonstrations
from vla.model.features import Features
from vla.model.points import WORLD, PointsConfig


def share_points(config: PointsConfig, data: Demonstrations) -> bool:
    """Whether the data have the position of any point of a model."""
    # Data say where things are in the world: a point in another frame is not supervised.
    estimated = {spec.name for spec in config.specs if spec.frame == WORLD}
    return bool(estimated & {*data.point_names})


def true_points(config: PointsConfig, batches: Mapping[str, DemoBatch]) -> Tensor | None:
    """The model's points in these batches of robots, [n, points, 3]; None where none is known."""
    truth = torch.cat([config.truth(b.points, len(b)) for b in batches.values()])
    return truth if truth.isfinite().all(-1).any() else None


def heldout_errors(
    config: PointsConfig, data: Demonstrations, features: Features
) -> dict[str, float]:
    """Median distance of each point from the truth in centimetres, by key of the log.

    Args:
        config: of the model's points.
        data: brings the truth; a point that is never known has no entry.
        features: of all held-out frames, robot by robot.
    """
    truth = []
    for robot in data.robots.values():
        rows = robot.rows("heldout")
        truth.append(config.truth(robot.points_at(rows), len(rows)))
    # [frames, points], from the model's units; NaN where the truth is not known
    error_cm = (features.points.cpu() - torch.cat(truth)).norm(dim=-1) * config.scale_m * 100
    medians = dict(zip(config.names, error_cm.nanmedian(dim=0).values.tolist(), strict=True))
    return {f"points/{name}_median_cm": m for name, m in medians.items() if math.isfinite(m)}
