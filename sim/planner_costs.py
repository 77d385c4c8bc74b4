"""Shaped costs for planners: functions of positions (metres, world frame), in metres, >= 0.

A planner sees about half a second ahead. The distance of the block to its goal alone says nothing
to it until it touches the block the right way, so each cost also says where the gripper should be.
"""

from __future__ import annotations

import math

import numpy as np

_BEHIND_M = 0.05  # closed fingers behind the centre of a 5 cm block
_HOVER_M = 0.08  # fingertips clear a block on the table
_HELD_OPENING_M = 0.024  # of one finger around a 5 cm block
_WIDE_OPENING_M = 0.045


def push(grip: np.ndarray, block: np.ndarray, target: np.ndarray) -> float:
    """Block to target, plus a fifth of the gripper's way to its place behind the block.

    The second part fades over the last 5 cm, where the gripper need not move any more.
    """
    distance = math.dist(block, target)
    away = block - target
    scale = _BEHIND_M / max(math.hypot(away[0], away[1]), 1e-6)
    behind = (block[0] + scale * away[0], block[1] + scale * away[1], block[2])
    return distance + 0.2 * _ramp(distance, 0.02, 0.05) * math.dist(grip, behind)


def pick_and_place(
    grip: np.ndarray, fingers: np.ndarray, block: np.ndarray, target: np.ndarray
) -> float:
    """Block to target, plus half the gripper's way to the block from above, plus the fingers' way.

    Away from the block the fingers should be open and the gripper above; at the block they close.
    """
    planar = math.hypot(grip[0] - block[0], grip[1] - block[1])
    hover = _HOVER_M * _ramp(planar, 0.015, 0.04)
    approach = math.hypot(planar, grip[2] - block[2] - hover)
    opening = float(fingers.mean())
    away = _ramp(approach, 0.01, 0.025)
    to_open = max(0.0, _WIDE_OPENING_M - opening)
    to_close = max(0.0, opening - _HELD_OPENING_M)
    return math.dist(block, target) + 0.5 * approach + away * to_open + (1.0 - away) * to_close


def _ramp(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, straight between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)
