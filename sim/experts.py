"""Scripted experts: smooth feedback laws of positions (metres, world frame) alone.

Each returns a float32 [4] action (dx, dy, dz in units of 0.05 m; gripper). They keep no memory, so
they can label any state, also perturbed ones, and they are continuous, so they can be cloned.
"""

from __future__ import annotations

import numpy as np

# Displacement at an action of 1: `POSITION_SCALE_M` of sim/tasks/fetch_arm.py.
_STEP_M = 0.05
TABLE_GRIP_HEIGHT_M = 0.425
"""Height of the grip point at which closed fingers push a block on the table."""
_CONTACT_M = 0.042
"""From the block's centre to the gripper's when the fingers touch it."""
_START_M = 0.062
"""From the block's centre to where the gripper comes down behind it."""
_HOVER_M = 0.075
"""Height above a push at which the gripper passes over the block."""
# One control step, at 25 Hz.
_PERIOD_S = 0.04
_FULL_SPEED_MPS = 0.877
"""Of the gripper under a full command."""
_SLIDE_DECELERATION_MPS2 = 0.98
"""Of the puck: friction coefficient 0.1."""
_RESTITUTION = 0.51
_SLIDE_CLEARANCE_M = 0.082


def reach(grip: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Straight to a point."""
    return _action(target - grip, 0.0)


def push(grip: np.ndarray, block: np.ndarray, target: np.ndarray) -> np.ndarray:
    """From above down behind the block, on the side away from the target, then through it."""
    to_target = (target - block)[:2]
    distance = float(np.linalg.norm(to_target))
    along = to_target / max(distance, 1e-6)
    # All planar vectors are [2], world x and y; weights are in [0, 1] and blend two motions, since
    # a branch would make the action jump.
    radial = (grip - block)[:2]
    height = float(grip[2]) - TABLE_GRIP_HEIGHT_M
    low = 1.0 - _smoothstep(height, 0.015, 0.04)
    behind = low * (1.0 - _smoothstep(abs(_signed_angle(radial, -along)), 0.25, 0.7))

    # Approach: to the point behind the block, high while far from it, low once there.
    to_start = -_START_M * along - radial
    near = 1.0 - _smoothstep(float(np.linalg.norm(to_start)), 0.012, 0.035)
    clear = _smoothstep(height, 0.03, 0.06)  # high enough to pass over the block
    approach = np.append(_limit(to_start) * max(clear, near), _HOVER_M * (1.0 - near) - height)

    # Push: `backlog` is the gap between the fingers and the block; `lateral` the gripper's distance
    # from the push line.
    backlog = -float(radial @ along) - _CONTACT_M
    lateral = radial - (radial @ along) * along
    through = np.append(_limit(0.7 * along * (distance + backlog)) - lateral, -height)

    move = behind * through + (1.0 - behind) * approach
    # Slows down from 4 cm and stops at 1.5 cm, well inside the success radius of 5 cm.
    return _action(move * _smoothstep(distance, 0.015, 0.04), 0.0)


def _around(radial: np.ndarray, angle: float, clearance: float) -> np.ndarray:
    """A step [2] that turns `radial` (block to gripper) by `angle`, clear of the block."""
    radius = max(float(np.linalg.norm(radial)), 1e-6)
    sight = np.arccos(min(clearance / radius, 1.0))  # to the tangent point of the clear circle
    turn = np.sign(angle) * min(abs(angle), sight + 0.5)
    cosine, sine = np.cos(turn), np.sin(turn)
    x, y = radial / radius * clearance
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
    # A finger beside a 5 cm block is open by 2.5 cm; below 1.5 cm they closed on nothing.
    held = at_block * (1.0 - _smoothstep(opening, 0.026, 0.03)) * float(opening > 0.015)
    # Fingers open while above the block: hovering goes on until they are wide enough.
    ready = _smoothstep(opening, 0.03, 0.04)
    hover = 0.08 * max(_smoothstep(planar, 0.018, 0.045), (1.0 - ready) * (1.0 - at_block))
    approach = offset + np.array([0.0, 0.0, hover])
    carry = target - block
    # Straight up or down while the height is off by more than 10 cm; the whole way sideways once it
    # is within 3 cm.
    carry[:2] *= 1.0 - _smoothstep(abs(float(carry[2])), 0.03, 0.10)
    move = held * carry + (1.0 - held) * approach
    # +1 opens, -1 closes.
    return _action(move, 1.0 - 2.0 * at_block)


def slide(
    grip: np.ndarray, puck: np.ndarray, puck_speed: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Behind the puck, then strike it to the speed from which friction stops it at the target.

    A strike leaves the puck faster than the fingers (restitution), which is how it gets beyond the
    arm's own speed; while it is too slow it is followed and struck again. The constants were found
    by random search on seeds 1000 to 1079.

    Args:
        grip: grip point.
        puck: the puck's centre.
        puck_speed: its velocity, m/s.
        target: where it shall stop.
    """
    to_target = (target - puck)[:2]
    distance = float(np.linalg.norm(to_target))
    along = to_target / max(distance, 1e-6)
    left = np.array([-along[1], along[0]])
    radial = (grip - puck)[:2]
    angle = _signed_angle(radial, -along)
    # Radians off the line through target and puck (13 to 19 degrees).
    behind = 1.0 - _smoothstep(abs(angle), 0.235, 0.335)
    speed = _striking_speed(distance, float(puck_speed[:2] @ along), -float(radial @ along))
    drift = float(puck_speed[:2] @ left) * _PERIOD_S
    # `left` is `along` turned by 90 degrees; `drift` is the puck's sideways motion in one step, in
    # metres.
    # the square gripper hits the round puck flat, so strikes off the axes must be aimed steeper
    slant = float(np.clip(2.0 * along[0] * along[1] / 0.6, -1.0, 1.0))
    through = (along + 0.055 * slant * left) * _STEP_M * min(speed / _FULL_SPEED_MPS, 1.2)
    through = through - (1.07 * float(radial @ left) + 0.56 * drift) * left
    around = _around(radial, angle, _SLIDE_CLEARANCE_M)
    planar = behind * through + (1.0 - behind) * around
    return _action(np.append(planar, TABLE_GRIP_HEIGHT_M - grip[2]), 0.0)


def _striking_speed(distance: float, puck_mps: float, gap: float) -> float:
    """Speed of the gripper, m/s, from the puck's distance to go, its speed and the gap to it."""
    puck_mps = max(puck_mps, 0.0)
    to_go = max(distance - 1.05 * puck_mps * _PERIOD_S, 0.0)  # the command acts a step later
    # v^2 = 2 a s: the speed from which friction stops the puck after `to_go`.
    needed = float(np.sqrt(2.0 * _SLIDE_DECELERATION_MPS2 * to_go))
    if puck_mps >= 0.954 * needed:
        return 0.62 * puck_mps  # fall behind, without touching it again
    catch_up = 0.3 * max(gap - _CONTACT_M, 0.0) / _PERIOD_S if puck_mps > 0.1 else 0.0
    # Collision with a far heavier gripper: the puck leaves at v_puck + (1 + e)(v_grip - v_puck),
    # solved for v_grip.
    return puck_mps + (needed - puck_mps) / (1.0 + _RESTITUTION) + catch_up


def _limit(move: np.ndarray) -> np.ndarray:
    """Shorten a move to what one control step can command."""
    # The direction stays: clipping each axis by itself would bend the path.
    return move * min(1.0, _STEP_M / max(float(np.linalg.norm(move)), 1e-9))


def _signed_angle(start: np.ndarray, end: np.ndarray) -> float:
    """Angle in radians, anticlockwise, that turns one planar vector towards another."""
    # atan2 of cross and dot product: in [-pi, pi], whatever the lengths are.
    cross = start[0] * end[1] - start[1] * end[0]
    return float(np.arctan2(cross, start @ end))


def _action(move_m: np.ndarray, gripper: float) -> np.ndarray:
    scaled = np.clip(np.append(move_m / _STEP_M, gripper), -1.0, 1.0)
    return scaled.astype(np.float32)


def _smoothstep(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, with a continuous slope between."""
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)
