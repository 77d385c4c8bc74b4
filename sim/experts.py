"""Scripted experts: smooth feedback laws of positions (metres, world frame) alone.

Each returns a float32 [4] action (dx, dy, dz in units of 0.05 m; gripper). They keep no memory, so
they can label any state, also perturbed ones, and they are continuous, so they can be cloned.
"""

from __future__ import annotations

import numpy as np

_STEP_M = 0.05
TABLE_GRIP_HEIGHT_M = 0.425
"""Height of the grip point at which closed fingers push a block on the table."""
_CONTACT_M = 0.042
"""From the block's centre to the gripper's when the fingers touch it."""
_FULL_SPEED_MPS = 0.8
"""Of the gripper under a full command."""
_SLIDE_DECELERATION_MPS2 = 0.98
"""Of the puck: friction coefficient 0.1."""
_CLEARANCE_M = 0.075
"""Radius at which the gripper circles the block."""


def reach(grip: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Straight to a point."""
    return _action(target - grip, 0.0)


def push(grip: np.ndarray, block: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Around the block to the side away from the target, then through it."""
    to_target = (target - block)[:2]
    distance = float(np.linalg.norm(to_target))
    along = to_target / max(distance, 1e-6)
    radial = (grip - block)[:2]
    angle = _signed_angle(radial, -along)
    behind = 1.0 - _smoothstep(abs(angle), 0.2, 0.6)
    backlog = -float(radial @ along) - _CONTACT_M
    lateral = radial - (radial @ along) * along
    through = _limit(0.7 * along * (distance + backlog)) - lateral
    planar = behind * through + (1.0 - behind) * _around(radial, angle)
    planar *= _smoothstep(distance, 0.015, 0.04)
    return _action(np.append(planar, TABLE_GRIP_HEIGHT_M - grip[2]), 0.0)


def _around(radial: np.ndarray, angle: float) -> np.ndarray:
    """A step [2] that turns `radial` (block to gripper) by `angle`, clear of the block."""
    radius = max(float(np.linalg.norm(radial)), 1e-6)
    sight = np.arccos(min(_CLEARANCE_M / radius, 1.0))  # to the tangent point of the clear circle
    turn = np.sign(angle) * min(abs(angle), sight + 0.5)
    cosine, sine = np.cos(turn), np.sin(turn)
    x, y = radial / radius * _CLEARANCE_M
    return _limit(np.array([cosine * x - sine * y, sine * x + cosine * y]) - radial)


def pick_and_place(
    grip: np.ndarray, fingers: np.ndarray, block: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Above the block with open fingers, down, close, lift to the target's height, carry over.

    Lifting comes before carrying so that the hand does not hide a target in the air.
    """
    offset = block - grip
    planar = float(np.linalg.norm(offset[:2]))
    at_block = 1.0 - _smoothstep(planar, 0.01, 0.025)
    at_block *= 1.0 - _smoothstep(abs(float(offset[2])), 0.008, 0.025)
    opening = float(fingers.mean())
    held = at_block * (1.0 - _smoothstep(opening, 0.026, 0.03)) * float(opening > 0.015)
    ready = _smoothstep(opening, 0.03, 0.04)
    hover = 0.08 * max(_smoothstep(planar, 0.018, 0.045), (1.0 - ready) * (1.0 - at_block))
    approach = offset + np.array([0.0, 0.0, hover])
    carry = target - block
    carry[:2] *= 1.0 - _smoothstep(abs(float(carry[2])), 0.03, 0.10)
    move = held * carry + (1.0 - held) * approach
    return _action(move, 1.0 - 2.0 * at_block)


def slide(
    grip: np.ndarray, puck: np.ndarray, puck_speed: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Behind the puck, then push it to the speed from which friction stops it at the target."""
    to_target = (target - puck)[:2]
    distance = float(np.linalg.norm(to_target))
    along = to_target / max(distance, 1e-6)
    radial = (grip - puck)[:2]
    angle = _signed_angle(radial, -along)
    behind = 1.0 - _smoothstep(abs(angle), SL[0], SL[1])
    lateral = radial - (radial @ along) * along
    needed = SL[2]*np.sqrt(2.0 * _SLIDE_DECELERATION_MPS2 * distance)
    speed = min(needed, max(float(puck_speed[:2] @ along), 0.0) + SL[3])
    through = along * _STEP_M * min(speed / _FULL_SPEED_MPS, 1.0) - SL[4]*lateral
    planar = behind * through + (1.0 - behind) * _around(radial, angle)
    return _action(np.append(planar, TABLE_GRIP_HEIGHT_M - grip[2]), 0.0)


SL = [0.15,0.4,1.0,0.25,0.7]

def _limit(move: np.ndarray) -> np.ndarray:
    """Shorten a move to what one control step can command."""
    return move * min(1.0, _STEP_M / max(float(np.linalg.norm(move)), 1e-9))


def _signed_angle(start: np.ndarray, end: np.ndarray) -> float:
    """Angle in radians, anticlockwise, that turns one planar vector towards another."""
    cross = start[0] * end[1] - start[1] * end[0]
    return float(np.arctan2(cross, start @ end))


def _action(move_m: np.ndarray, gripper: float) -> np.ndarray:
    scaled = np.clip(np.append(move_m / _STEP_M, gripper), -1.0, 1.0)
    return scaled.astype(np.float32)


def _smoothstep(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, with a continuous slope between."""
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)
