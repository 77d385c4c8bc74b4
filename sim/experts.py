"""Scripted experts: smooth feedback laws of positions (metres, world frame) alone.

Each returns a float32 [4] action (dx, dy, dz in units of 0.05 m; gripper). They keep no memory, so
they can label any state, also perturbed ones, and they are continuous, so they can be cloned.
"""

from __future__ import annotations

import numpy as np

_STEP_M = 0.05
TABLE_GRIP_HEIGHT_M = 0.425
"""Height of the grip point at which closed fingers push a block on the table."""


def reach(grip: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Straight to a point."""
    return _action(target - grip, 0.0)


def push(grip: np.ndarray, block: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Around the block to the side away from the target, then through it."""
    to_target = (target - block)[:2]
    distance = float(np.linalg.norm(to_target))
    along = to_target / max(distance, 1e-6)
    radial = (grip - block)[:2]
    radius = max(float(np.linalg.norm(radial)), 1e-6)
    outward = radial / radius
    tangent = np.array([-outward[1], outward[0]])
    # signed angle by which the gripper must turn around the block to stand behind it
    angle = float(np.arctan2(outward[0] * -along[1] - outward[1] * -along[0], outward @ -along))
    behind = 1.0 - _smoothstep(abs(angle), 0.15, 0.5)
    clearance = 0.075
    around = tangent * angle * radius + outward * np.clip(clearance - radius, -0.03, 0.03)
    contact = 0.042
    through = target[:2] - along * contact - grip[:2]
    through = through + tangent * angle * radius * 0.5
    planar = behind * through + (1.0 - behind) * around
    planar = planar * _smoothstep(distance, 0.004, 0.02)
    return _action(np.append(planar, TABLE_GRIP_HEIGHT_M - grip[2]), 0.0)


def pick_and_place(
    grip: np.ndarray, fingers: np.ndarray, block: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Above the block with open fingers, down, close, carry."""
    offset = block - grip
    planar = float(np.linalg.norm(offset[:2]))
    at_block = 1.0 - _smoothstep(planar, 0.008, 0.02)
    at_block *= 1.0 - _smoothstep(abs(float(offset[2])), 0.008, 0.02)
    opening = float(fingers.mean())
    held = at_block * (1.0 - _smoothstep(opening, 0.026, 0.03)) * float(opening > 0.015)
    ready = _smoothstep(opening, 0.03, 0.04)
    hover = 0.08 * max(_smoothstep(planar, 0.015, 0.04), (1.0 - ready) * (1.0 - at_block))
    approach = offset + np.array([0.0, 0.0, hover])
    move = held * (target - block) + (1.0 - held) * approach
    return _action(move, 1.0 - 2.0 * at_block)


def slide(
    grip: np.ndarray, puck: np.ndarray, puck_speed: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Behind the puck, then push it to the speed from which friction stops it at the target."""
    return push(grip, puck, target)


def _action(move_m: np.ndarray, gripper: float) -> np.ndarray:
    scaled = np.clip(np.append(move_m / _STEP_M, gripper), -1.0, 1.0)
    return scaled.astype(np.float32)


def _smoothstep(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, with a continuous slope between."""
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)
