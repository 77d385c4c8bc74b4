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
"""How far the gripper waits from a finished block, towards the robot."""
_GAIN = 15.0
"""Action per metre of error: full speed beyond 7 cm."""


def push(grip: np.ndarray, block: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Action [4]: come down behind the block, then push it along the line to the zone.

    All positions are float64 [3] in the world frame, metres.
    """
    to_zone = zone[:2] - block[:2]
    distance = float(np.hypot(*to_zone))
    # Aiming a little beyond the zone keeps the direction steady as the distance shrinks.
    # Every push begins towards +x (see `tabletop_scene`), so `aim` vanishes only for a block that
    # was pushed 2 cm past the zone's centre.
    aim = to_zone + BEYOND_M
    way = aim / np.hypot(*aim)
    side = np.array([-way[1], way[0]])
    offset = grip[:2] - block[:2]
    ahead, beside = float(offset @ way), float(offset @ side)
    height = grip[2] - block[2]
    # `ahead` is negative behind the block; `beside` is the distance from the push line, signed.
    # 1: beside the block and on the line, ready to push; 0: above it or off the line
    lowness = _ramp(height, 0.045, 0.015)
    steady = lowness * _ramp(abs(beside), 0.026, 0.014)
    behind = -0.12 < ahead < -0.03 and abs(beside) < 0.012 + 0.028 * lowness
    # A block that lies in the zone is left alone, from above, where drifting harms nothing.
    there = distance < 0.035 - 0.015 * steady * behind
    start = block[:2] - (REST_M if there else 0.07 * way)
    if there or not behind:
        # above the blocks first, then over to the starting point
        clear = _ramp(height, 0.035, 0.065)
        return _action(np.append(clear * (start - grip[:2]), HOVER_M - height), CLOSED)
    forward = np.clip(0.45 * (distance - 0.005), 0.0, 0.05)
    through = forward * way - 1.5 * beside * side
    # Off the line the fingers first let go of the block, then move over: touching, they turn it.
    apart = max(1.0 - lowness, _ramp(ahead, -0.045, -0.055))
    back = -(0.07 + ahead) * way - apart * beside * side
    return _action(np.append(steady * through + (1.0 - steady) * back, -height), CLOSED)


def _ramp(value: float, at_zero: float, at_one: float) -> float:
    """0 at one end, 1 at the other, straight between, constant outside."""
    # `at_zero` may be above `at_one`: then it falls as the value grows.
    return float(np.clip((value - at_zero) / (at_one - at_zero), 0.0, 1.0))


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
    hover = HOVER_M * _ramp(away, 0.008, 0.028)
    if opening < 0.04:
        hover = HOVER_M
    return _action(np.append(offset, hover - height), OPEN)


def _action(error_m: np.ndarray, gripper: float) -> np.ndarray:
    move = _GAIN * error_m
    return np.append(move / max(1.0, float(np.abs(move).max())), gripper).astype(np.float32)
