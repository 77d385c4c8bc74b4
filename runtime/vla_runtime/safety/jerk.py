"""Position, velocity, acceleration and jerk of one action dimension, by Ruckig.

Ruckig (L. Berscheid and T. Kroeger, "Jerk-limited real-time trajectory generation with arbitrary
target states", RSS 2021) plans in continuous time. Commands are samples of its trajectories, one
control period apart. The k-th difference of such samples is a weighted mean of the k-th derivative,
so limits of the trajectory hold for the differences of the commands too.

Ruckig's free version has no position limits. So a next state is accepted only if the quickest stop
from it stays in the range. What is left of that stop one step later is the quickest stop from
there: braking is possible at every step.

Each dimension has its own instance. Synchronised dimensions wait for each other, which fails where
a stop cannot be stretched in time.
"""

from __future__ import annotations

import math

from ruckig import ControlInterface, InputParameter, Ruckig, Trajectory

from vla_runtime.safety.motion import Axis, Motion


class MotionError(RuntimeError):
    """No next command could be computed."""


class JerkAxis(Axis):
    """Range, velocity, acceleration and jerk of one dimension whose commands are positions.

    Args:
        low: smallest command.
        high: largest command.
        velocity: unit/s.
        acceleration: unit/s^2.
        jerk: unit/s^3.
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
        jerk: float,
        period_s: float,
        start: float = 0.0,
    ) -> None:
        super().__init__(low, high, velocity, acceleration, period_s, start)
        self._jerk = self._tightened("jerk", jerk, 8 / period_s**3)
        self._ruckig = Ruckig(1)
        self._to_target, self._to_rest = self._input(), self._input()
        self._to_rest.control_interface = ControlInterface.Velocity
        self._trajectory = Trajectory(1)

    def rest(self, command: float) -> Motion:
        """Standing still at a command."""
        return Motion(command, 0.0, command, 0.0, (command, command))

    def at_rest(self, motion: Motion) -> bool:
        """Whether the command has stood still for a step."""
        return (
            motion.velocity == 0
            and motion.acceleration == 0
            and motion.command == motion.earlier[1]
        )

    def toward(self, motion: Motion, target: float) -> Motion:
        """The next command: the target where the limits allow it, else on the quickest way to it.

        Raises:
            MotionError: Ruckig found no trajectory.
        """
        target, stream = self._stream(motion, target)
        for plan in (self._exactly, self._planned):
            moved = plan(motion, target, stream)
            if moved is not None and self._can_stop(moved, motion.command):
                return moved
        return self.brake(motion)

    def brake(self, motion: Motion) -> Motion:
        """The next command of the quickest stop.

        Raises:
            MotionError: Ruckig found no stop.
        """
        self._plan(self._to_rest, motion)
        moved = self._sample(motion, math.nan, 0.0)
        return moved._replace(aim=moved.command)

    def stop_path(self, motion: Motion) -> list[float]:
        """Commands of the quickest stop, until it stands still; empty at rest.

        Raises:
            MotionError: Ruckig found no stop.
        """
        self._plan(self._to_rest, motion)
        steps = math.ceil(self._trajectory.duration / self._dt)
        return [self._trajectory.at_time((k + 1) * self._dt)[0][0] for k in range(steps)]

    def _exactly(self, motion: Motion, target: float, _: float) -> Motion | None:
        """The target itself, where its differences from the last commands keep the limits.

        The state is that of the parabola through the last three commands: with it, the differences
        that span old and new commands keep the limit on jerk too.
        """
        dt, x = self._dt, motion.command
        older, old = motion.earlier
        velocity = (target - x) / dt
        acceleration = (target - 2 * x + old) / dt**2
        jerk = (target - 3 * x + 3 * old - older) / dt**3
        at_target = velocity + acceleration * dt / 2
        # Ramping the acceleration down to 0 goes on changing the velocity, up to this one.
        peak = at_target + acceleration * abs(acceleration) / (2 * self._jerk)
        if (
            max(abs(velocity), abs(at_target), abs(peak)) <= self._velocity
            and abs(acceleration) <= self._acceleration
            and abs(jerk) <= self._jerk
        ):
            return Motion(target + 0.0, at_target, target, acceleration, (old, x))
        return None

    def _planned(self, motion: Motion, target: float, stream: float) -> Motion:
        self._to_target.target_position = [target]
        self._to_target.target_velocity = [stream]
        self._plan(self._to_target, motion)
        return self._sample(motion, target, stream)

    def _can_stop(self, moved: Motion, last: float) -> bool:
        self._plan(self._to_rest, moved)
        reached = self._trajectory.position_extrema[0]
        low, high = min(self._low, last), max(self._high, last)
        return low - self._rounding <= reached.min and reached.max <= high + self._rounding

    def _input(self) -> InputParameter:
        parameter = InputParameter(1)
        parameter.max_velocity = [self._velocity]
        parameter.max_acceleration = [self._acceleration]
        parameter.max_jerk = [self._jerk]
        return parameter

    def _plan(self, parameter: InputParameter, motion: Motion) -> None:
        parameter.current_position = [motion.command]
        parameter.current_velocity = [motion.velocity]
        parameter.current_acceleration = [motion.acceleration]
        try:
            result = self._ruckig.calculate(parameter, self._trajectory)
        except Exception as error:  # whatever Ruckig raises, the gate latches
            raise MotionError(f"no trajectory from {motion}: {error}") from error
        if result.value < 0:
            raise MotionError(f"no trajectory from {motion}: {result}")

    def _sample(self, motion: Motion, target: float, final: float) -> Motion:
        """The planned trajectory one control period on."""
        (x,), (v,), (a,) = self._trajectory.at_time(self._dt)
        if not (math.isfinite(x) and math.isfinite(v) and math.isfinite(a)):
            raise MotionError(f"no finite trajectory from {motion}: {x}, {v}, {a}")
        if self._trajectory.duration <= self._dt:
            v, a = final, 0.0
        low, high = min(self._low, motion.command), max(self._high, motion.command)
        # Only rounding is cut off here: `_can_stop` has been asked.
        command = min(max(x, low), high) + 0.0
        return Motion(command, v, target, a, (motion.earlier[1], motion.command))
