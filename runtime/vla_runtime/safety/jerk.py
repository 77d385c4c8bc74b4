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
        # Ruckig takes the end of a stop to be where its trajectory's last plan to a position ended:
        # the stop has a trajectory of its own, begins at 0, and so its extrema are right.
        self._path, self._stop = Trajectory(1), Trajectory(1)
        self._stop_from: Motion | None = None

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
        if abs(motion.command - motion.aim) <= self._rounding:
            moved = self._exactly(motion, target)
            if moved is not None and self._can_stop(moved, motion.command):
                return moved
        moved = self._planned(motion, target, stream)
        return moved if self._can_stop(moved, motion.command) else self.brake(motion)

    def brake(self, motion: Motion) -> Motion:
        """The next command of the quickest stop.

        Raises:
            MotionError: Ruckig found no stop.
        """
        self._plan_stop(motion)
        x, v, a = self._sample(self._stop)
        command = self._within(motion.command + x, motion.command)
        return Motion(command, v, command, a, (motion.earlier[1], motion.command))

    def stop_path(self, motion: Motion) -> list[float]:
        """Commands of the quickest stop, until it stands still; empty at rest.

        Raises:
            MotionError: Ruckig found no stop.
        """
        self._plan_stop(motion)
        at_time = self._stop.at_time
        steps = math.ceil(self._stop.duration / self._dt)
        return [motion.command + at_time((k + 1) * self._dt)[0][0] for k in range(steps)]

    def _exactly(self, motion: Motion, target: float) -> Motion | None:
        """The next target of a stream that is followed, where the differences keep the limits.

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
        """A step of the quickest way to rest relative to the stream of targets.

        In a frame that moves with the stream the target stands still, at 0 when the step ends.
        """
        # The limit on velocity in the moving frame has to leave something in both directions.
        stream = min(max(stream, -0.9 * self._velocity), 0.9 * self._velocity)
        plan = self._to_target
        plan.max_velocity = [self._velocity - stream]
        plan.min_velocity = [-self._velocity - stream]
        plan.current_position = [motion.command - (target - stream * self._dt)]
        plan.current_velocity = [motion.velocity - stream]
        plan.current_acceleration = [motion.acceleration]
        self._calculate(plan, self._path)
        x, v, a = self._sample(self._path)
        command = self._within(target + x, motion.command)
        return Motion(command, v + stream, target, a, (motion.earlier[1], motion.command))

    def _can_stop(self, moved: Motion, last: float) -> bool:
        self._plan_stop(moved)
        between = self._stop.position_extrema[0]
        ((stopped,), _, _) = self._stop.at_time(self._stop.duration)
        end = moved.command + stopped
        least = moved.command + min(between.min, stopped) + self._rounding
        most = moved.command + max(between.max, stopped) - self._rounding
        if self._low <= last <= self._high:
            return self._low <= least and most <= self._high
        # Outside its range the stop may not turn back: that would be further out again.
        if last < self._low:
            return moved.command <= least and most <= min(end, self._high)
        return most <= moved.command and max(end, self._low) <= least

    def _input(self) -> InputParameter:
        parameter = InputParameter(1)
        parameter.max_velocity = [self._velocity]
        parameter.max_acceleration = [self._acceleration]
        parameter.max_jerk = [self._jerk]
        return parameter

    def _plan_stop(self, motion: Motion) -> None:
        # Asked twice or three times for each step: whether it is allowed, its path, the step.
        if motion is self._stop_from:
            return
        self._stop_from = None
        self._to_rest.current_velocity = [motion.velocity]
        self._to_rest.current_acceleration = [motion.acceleration]
        self._calculate(self._to_rest, self._stop)
        self._stop_from = motion

    def _calculate(self, parameter: InputParameter, trajectory: Trajectory) -> None:
        try:
            result = self._ruckig.calculate(parameter, trajectory)
        except Exception as error:  # whatever Ruckig raises, the gate latches
            raise MotionError(f"Ruckig finds no trajectory: {error}") from error
        if result.value < 0:
            raise MotionError(f"Ruckig finds no trajectory: {result}")

    def _sample(self, trajectory: Trajectory) -> tuple[float, float, float]:
        """Position, velocity and acceleration one control period on."""
        (x,), (v,), (a,) = trajectory.at_time(self._dt)
        if trajectory.duration <= self._dt:
            # Both plans end at rest; numerically nearly so.
            v = a = 0.0
        if not (math.isfinite(x) and math.isfinite(v) and math.isfinite(a)):
            raise MotionError(f"Ruckig's trajectory leads to {x}, {v}, {a}")
        return x, v, a

    def _within(self, command: float, last: float) -> float:
        # Only rounding is cut off here: `_can_stop` has been asked. `+ 0.0` makes 0.0 of -0.0.
        return min(max(command, min(self._low, last)), max(self._high, last)) + 0.0
