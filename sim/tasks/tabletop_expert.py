"""Scripted experts of the tabletop: continuous functions of the present positions alone.

Both approach from above, so the arm never brushes a block that is not meant. Speeds fade with the
distance to whatever comes next, which makes the actions smooth enough to be cloned.
"""

from __future__ import annotations

import numpy as np

OPEN = 1.0
CLOSED = -1.0
HOVER_M = 0.075
"""Height of the grip site above the block's centre at which the fingertips clear the block."""
_GAIN = 15.0
"""Action per metre of error: full speed beyond 7 cm."""


def push(grip: np.ndarray, block: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Action [4]: come down behind the block, then push it along the line to the zone.

    All positions are float64 [3] in the world frame, metres.
    """
    line = zone[:2] - block[:2]
    distance = float(np.hypot(*line))
    if distance < 0.025:  # there: hold still, so that no frame shows drifting off
        return _action(np.zeros(3), CLOSED)
    way = line / distance
    offset = grip[:2] - block[:2]
    ahead = float(offset @ way)
    beside = float(offset[1] * way[0] - offset[0] * way[1])
    height = grip[2] - block[2]
    lowness = float(np.clip((0.045 - height) / 0.03, 0.0, 1.0))  # 1: beside the block, 0: above it
    start = block[:2] - 0.07 * way
    behind = -0.12 < ahead < -0.03 and abs(beside) < 0.012 + 0.018 * lowness
    if not behind:
        # above the blocks first, then over to the starting point
        clear = float(np.clip((height - 0.035) / 0.03, 0.0, 1.0))
        error = np.append(clear * (start - grip[:2]), HOVER_M - height)
        return _action(error, CLOSED)
    side = np.array([-way[1], way[0]])
    forward = lowness * np.clip(0.45 * (distance - 0.01), 0.0, 0.05)
    to_start = (1.0 - lowness) * (start - grip[:2])
    error = np.append(forward * way - 1.5 * lowness * beside * side + to_start, -height)
    return _action(error, CLOSED)


def lift(
    grip: np.ndarray, fingers: np.ndarray, block: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Action [4]: open above the block, go down, close, rise to the target's height.

    `fingers` is float64 [2], the finger openings in metres; positions as for `push`.
    """
    offset = block[:2] - grip[:2]
    away = float(np.hypot(*offset))
    height = grip[2] - block[2]
    opening = float(fingers.mean())
    around = away < 0.015 and abs(height) < 0.015
    if around and opening < 0.0265:  # held
        return _action(np.append(0.5 * offset, target[2] - block[2]), CLOSED)
    if around:
        return _action(np.append(offset, -height), CLOSED)
    hover = HOVER_M * float(np.clip((away - 0.008) / 0.02, 0.0, 1.0))
    if opening < 0.04:
        hover = HOVER_M
    return _action(np.append(offset, hover - height), OPEN)


def _action(error_m: np.ndarray, gripper: float) -> np.ndarray:
    move = _GAIN * error_m
    return np.append(move / max(1.0, float(np.abs(move).max())), gripper).astype(np.float32)
