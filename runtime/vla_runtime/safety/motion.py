"""Velocity, acceleration and range of one action dimension, in closed form.

Commands are sent one control period dt apart. With x the last command, u the next velocity and
x + u dt the next command, the rules are low <= x <= high, |u| <= V and |u - v| <= A dt, where v is
the last velocity.

Discrete stopping distance. From a step with velocity u the quickest stop continues with velocities
u - A dt, u - 2 A dt, ... until 0. With w = u / (A dt) and n = floor(w) the distance covered, this
step included, is

    S(u) = dt * sum_{j=0..n} (u - j A dt) = A dt^2 * ((n + 1) w - n (n + 1) / 2).

S is continuous, increasing and piecewise linear, and S = A dt^2 * n (n + 1) / 2 where w = n. So the
largest u that can still stop within the room r, S(u) = r, follows without iteration: with
d = r / (A dt^2),

    n = floor((sqrt(1 + 8 d) - 1) / 2),    u = A dt * (d / (n + 1) + n / 2).

Why a stop is always possible. Let S(u) <= r. After the step the room is r - u dt, and braking to
u - A dt needs S(u - A dt) = S(u) - u dt <= r - u dt. So max(0, u - A dt) is allowed at the next
step by velocity, acceleration and range at once: they never contradict each other, however narrow
the range is. The bound of continuous time, u^2 / (2 A), is smaller than S and would overshoot.

Derived here. That the set of states from which a stop is possible stays invariant under the braking
step is what makes it a safe set: F. Blanchini, "Set invariance in control", Automatica 35, 1999.
"""

from __future__ import annotations

import math
from typing import NamedTuple


def stopping_speed(room: float, acceleration: float, period_s: float) -> float:
    """Largest speed of the next step from which the stop ends within the room.

    Args:
        room: distance to the limit, >= 0.
        acceleration: unit/s^2, > 0.
        period_s: control period.

    Returns:
        Speed in unit/s; 0 without room.
    """
    steps = room / (acceleration * period_s * period_s)
    n = math.floor((math.sqrt(1 + 8 * steps) - 1) / 2)
    return acceleration * period_s * (steps / (n + 1) + n / 2)


class Motion(NamedTuple):
    """Where the commands of one dimension stand.

    Attributes:
        command: the last one sent.
        velocity: unit/s, at the last command.
        aim: what the last command would have been without limits of velocity and acceleration.
        acceleration: unit/s^2, at the last command; only where jerk is limited.
        earlier: the two commands before, the older one first; only where jerk is limited.
    """

    command: float
    velocity: float
    aim: float
    acceleration: float = 0.0
    earlier: tuple[float, float] = (0.0, 0.0)


class Axis:
    """Range, velocity and acceleration of one dimension whose commands are positions.

    Limits are tightened by what rounding can add, so that the written commands keep the given ones.

    Args:
        low: smallest command.
        high: largest command.
        velocity: unit/s.
        acceleration: unit/s^2.
        period_s: control period.
        start: first command; outside [low, high] it may only come back.

    Raises:
        ValueError: float64 does not resolve a limit at this range and period.
    """

    def __init__(
        self,
        low: float,
        high: float,
        velocity: float,
        acceleration: float,
        period_s: float,
        start: float = 0.0,
    ) -> None:
        # A command is off by a few ulp, and an acceleration is made of four commands.
        self._rounding = 4 * math.ulp(max(abs(low), abs(high), abs(start)))
        self._low, self._high, self._dt = low, high, period_s
        self._velocity = self._tightened("velocity", velocity, 2 / period_s)
        self._acceleration = self._tightened("acceleration", acceleration, 4 / period_s**2)

    def rest(self, command: float) -> Motion:
        """Standing still at a command."""
        return Motion(command, 0.0, command)

    def at_rest(self, motion: Motion) -> bool:
        """Whether the command stands still."""
        return motion.velocity == 0

    def toward(self, motion: Motion, target: float) -> Motion:
        """The next command: the target where the limits allow it, else as close as they allow.

        A stream of targets that keeps the limits passes unchanged. After a jump the command follows
        at the stream's own speed and closes the gap at a speed from which it stops at the target,
        so that it does not overshoot.
        """
        target, stream = self._stream(motion, target)
        gap = target - motion.command - stream * self._dt
        closing = stopping_speed(abs(gap), self._acceleration, self._dt)
        return self._step(motion, stream + math.copysign(closing, gap), target)

    def brake(self, motion: Motion) -> Motion:
        """The next command of the quickest stop."""
        moved = self._step(motion, 0.0, math.inf)
        return moved._replace(aim=moved.command)

    def stop_path(self, motion: Motion) -> list[float]:
        """Commands of the quickest stop, until it stands still; empty at rest."""
        x, speed = motion.command, abs(motion.velocity)
        change = self._acceleration * self._dt
        moving = math.floor(speed / change)
        # The sum in S(u) up to step j; the last step's velocity is 0.
        sums = [j * speed - change * j * (j + 1) / 2 for j in range(1, moving + 1)]
        sums += [sums[-1] if sums else 0.0] * (math.ceil(speed / change) - moving)
        return [x + math.copysign(distance * self._dt, motion.velocity) for distance in sums]

    def _tightened(self, label: str, limit: float, roundings: float) -> float:
        tightened = limit - roundings * self._rounding
        if not tightened > limit / 2:
            raise ValueError(
                f"64-bit numbers do not resolve the {label} limit {limit} between {self._low} and "
                f"{self._high} at {1 / self._dt:g} Hz"
            )
        return tightened

    def _stream(self, motion: Motion, target: float) -> tuple[float, float]:
        """The target within the range, and the velocity at which targets move."""
        target = min(max(target, self._low), self._high)
        velocity = (target - motion.aim) / self._dt
        # Targets that move faster than allowed jump.
        return target, velocity if abs(velocity) <= self._velocity else 0.0

    def _step(self, motion: Motion, velocity: float, target: float) -> Motion:
        x, v = motion.command, motion.velocity
        # Outside its range a command may stay or come back, never go further out.
        low, high = min(self._low, x), max(self._high, x)
        change = self._acceleration * self._dt
        u = min(max(velocity, v - change, -self._velocity), v + change, self._velocity)
        # The stopping speeds come last: a stop that is off by rounding is put right at each step,
        # instead of adding up to a jump at the limit.
        u = min(max(u, -self._speed(x - low)), self._speed(high - x))
        command = x + u * self._dt
        if abs(command - target) <= self._rounding / 2:
            command = target
        # The range comes last: rounding never exceeds it. `+ 0.0` makes 0.0 of -0.0.
        command = min(max(command, low), high) + 0.0
        return Motion(command, (command - x) / self._dt, target)

    def _speed(self, room: float) -> float:
        return stopping_speed(room, self._acceleration, self._dt)


class DisplacementAxis(Axis):
    """A dimension whose commands say how far to go within one control step; 0 is standing still.

    The command d stands for the velocity d / dt. So the command's range covers the velocity, its
    own velocity limit is A dt (a change by A dt^2 a step is an acceleration of A), and with a limit
    on jerk its acceleration limit is J dt: the closed form serves one order lower.

    Args:
        low: smallest displacement.
        high: largest displacement.
        velocity: unit/s.
        acceleration: unit/s^2.
        jerk: unit/s^3; None without a limit.
        period_s: control period.
    """

    def __init__(
        self,
        low: float,
        high: float,
        velocity: float,
        acceleration: float,
        jerk: float | None,
        period_s: float,
    ) -> None:
        reach = velocity * period_s
        rate = acceleration * period_s
        # Without a limit on jerk any change of rate may happen within one step.
        change = 2 * rate / period_s if jerk is None else jerk * period_s
        super().__init__(max(low, -reach), min(high, reach), rate, change, period_s)

    def at_rest(self, motion: Motion) -> bool:
        """Whether nothing moves, nor begins to."""
        return motion.command == 0 and motion.velocity == 0

    def brake(self, motion: Motion) -> Motion:
        """The next command of the quickest way to a displacement of 0."""
        return self.toward(motion._replace(aim=0.0), 0.0)

    def stop_path(self, motion: Motion) -> list[float]:
        """Displacements of the quickest way to 0, until it stands still; empty at rest."""
        path = []
        while not self.at_rest(motion):
            motion = self.brake(motion)
            path.append(motion.command)
        return path
