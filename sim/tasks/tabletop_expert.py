"""Scripted experts of the tabletop: functions of the present positions alone.

They keep no memory, so they can label any state, also perturbed ones. Both come from above, so the
arm never brushes a block that is not meant, and both slow down towards whatever comes next, which
leaves few jumps in the actions and makes them easy to clone.
"""

from __future__ import annotations

import numpy as np

OPEN = 1.0
CLOSED = -1.0
HOVER_M = 0.075
"""Height of the grip site above the block's centre at which the fingertips clear the block."""
BEYOND_M = np.array([0.02, 0.0])
REST_M = np.array([0.06, 0.0])
"""How far short of a finished block, seen from the robot, the gripper waits."""
_GAIN = 15.0
"""Action per metre of error: full speed beyond 7 cm."""


def push(grip: np.ndarray, block: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Action [4]: come down behind the block, then push it along the line to the zone.

    All positions are float64 [3] in the world frame, metres.
    """
    line = zone[:2] - block[:2]
    distance = float(np.hypot(*line))
    # Aiming a little beyond the zone keeps the direction steady as the distance shrinks.
    aim = line + BEYOND_M
    way = aim / np.hypot(*aim)
    offset = grip[:2] - block[:2]
    ahead = float(offset @ way)
    beside = float(offset[1] * way[0] - offset[0] * way[1])
    height = grip[2] - block[2]
    lowness = float(np.clip((0.045 - height) / 0.03, 0.0, 1.0))  # 1: beside the block, 0: above it
    behind = -0.12 < ahead < -0.03 and abs(beside) < 0.012 + 0.028 * lowness
    # A block that lies in the zone is left alone, from above, where drifting harms nothing.
    there = distance < (0.02 + 0.015 * (1.0 - lowness) if behind else 0.035)
    start = block[:2] - (REST_M if there else 0.07 * way)
    if there or not behind:
        # above the blocks first, then over to the starting point
        clear = float(np.clip((height - 0.035) / 0.03, 0.0, 1.0))
        error = np.append(clear * (start - grip[:2]), HOVER_M - height)
        return _action(error, CLOSED)
    side = np.array([-way[1], way[0]])
    forward = np.clip(0.45 * (distance - 0.005), 0.0, 0.05)
    through = forward * way - 1.5 * beside * side
    # beside the line the fingers back off instead of turning the block
    steady = lowness * float(np.clip((0.028 - abs(beside)) / 0.012, 0.0, 1.0))
    return _action(
        np.append(steady * through + (1.0 - steady) * (start - grip[:2]), -height), CLOSED
    )


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
    around = away < 0.018 and abs(height) < 0.018
    if around and opening < 0.0265:  # held
        return _action(target - block, CLOSED)
    if around:
        return _action(np.append(offset, -height), CLOSED)
    hover = HOVER_M * float(np.clip((away - 0.008) / 0.02, 0.0, 1.0))
    if opening < 0.04:
        hover = HOVER_M
    return _action(np.append(offset, hover - height), OPEN)


def _action(error_m: np.ndarray, gripper: float) -> np.ndarray:
    move = _GAIN * error_m
    return np.append(move / max(1.0, float(np.abs(move).max())), gripper).astype(np.float32)
