"""The next command of all dimensions: within the limits, with a stop ahead that keeps them too."""

from __future__ import annotations

import numpy as np

from vla_runtime.contract import Reading
from vla_runtime.safety.jerk import JerkAxis
from vla_runtime.safety.limits import LimitsError, SafetyLimits
from vla_runtime.safety.motion import Axis, DisplacementAxis, Motion
from vla_runtime.safety.workspace import Kinematics, Workspace


class Limiter:
    """The state of the written commands, and how it may change within one control period.

    Dimensions are independent of each other. Only the workspace couples them: where the next
    command, or one of the stop after it, would take a point out of its box, all dimensions brake
    instead. The stop after the last command was checked then, so that braking stays inside.

    Args:
        limits: of the commands.
        kinematics: where the limits have workspace boxes.

    Raises:
        LimitsError: the kinematics does not know the workspace's points, or float64 does not
            resolve a limit.
    """

    def __init__(self, limits: SafetyLimits, kinematics: Kinematics | None) -> None:
        self._limits = limits
        self._workspace = None
        if limits.workspace:
            if kinematics is None:
                raise LimitsError(
                    f"the limits have workspace boxes for {list(limits.workspace)}: give a "
                    "kinematics that locates these points"
                )
            self._workspace = Workspace(limits.workspace, kinematics)
        self._displaces = np.array([kind == "displacement" for kind in limits.kinds])
        self._any_displaces = bool(self._displaces.any())
        # Made here to refuse limits that 64-bit numbers do not resolve before anything moves.
        self._axes = [_axis(limits, i, 0.0) for i in range(limits.action.dim)]
        self._set([])
        # Sum of the displacements since the last measurement, [action.dim]; 0 for positions.
        self._travelled = np.zeros(limits.action.dim)

    def begin(self, position: list[float], reading: Reading) -> None:
        """Stand still at a measured position.

        Raises:
            LimitsError: float64 does not resolve a limit there, or what is limited as a
                displacement has a position.
        """
        self._require_kinds(position)
        axes = [_axis(self._limits, i, x) for i, x in enumerate(position)]
        self.measure(reading)
        self._axes = axes
        self._set([axis.rest(x) for axis, x in zip(axes, position, strict=True)])

    def _require_kinds(self, position: list[float]) -> None:
        # A displacement stops at 0. To a joint that is a place, and it would drive there at once.
        names = self._limits.action.names
        stands = zip(names, position, self._displaces, strict=True)
        if placed := {name: x for name, x, displaces in stands if displaces and x}:
            raise LimitsError(
                f'the limits say kind = "displacement", and the robot measures a position: {placed}'
                '; state kind = "position" for what is commanded to a position'
            )

    def measure(self, reading: Reading) -> None:
        """Count displacements from this reading on."""
        self._travelled = np.zeros(self._limits.action.dim)
        if self._workspace is not None:
            self._workspace.kinematics.measure(reading)

    @property
    def command(self) -> np.ndarray:
        """A copy of the last command, float64 [action.dim]."""
        return self._command.copy()

    @property
    def at_rest(self) -> bool:
        """Whether the commands stand still."""
        return all(
            axis.at_rest(motion) for axis, motion in zip(self._axes, self._motions, strict=True)
        )

    @property
    def stop_steps(self) -> int:
        """Control steps that the quickest stop takes.

        Raises:
            MotionError: no stop could be computed.
        """
        return len(self._stop_commands(self._motions)) - 1

    def hold(self) -> None:
        """Count the commands as standing still: they have been in force for as long as a stop."""
        self._set(
            [
                axis.rest(0.0 if displaces else motion.command)
                for axis, motion, displaces in zip(
                    self._axes, self._motions, self._displaces, strict=True
                )
            ]
        )

    def outside(self) -> str:
        """What is out of its range or box, in words; empty where nothing is."""
        action = self._limits.action
        found = [
            f"{name} at {motion.command:.6g}, limits {low:.6g} to {high:.6g}"
            for name, motion, low, high in zip(
                action.names, self._motions, action.low, action.high, strict=True
            )
            if not low <= motion.command <= high
        ]
        if self._workspace is not None:
            found += self._workspace.outside(self._configuration)
        return "; ".join(found)

    def brake(self) -> None:
        """Advance by a step of the quickest stop.

        Raises:
            MotionError: no stop could be computed.
        """
        self._become(
            [axis.brake(motion) for axis, motion in zip(self._axes, self._motions, strict=True)]
        )

    def step(self, target: list[float], returning: bool) -> bool:
        """Advance by a step toward a command.

        Args:
            target: finite, [action.dim].
            returning: hold what is inside its range while something is outside.

        Returns:
            False where the workspace allowed no step: the step was one of a stop.

        Raises:
            MotionError: no next command could be computed; nothing has changed.
        """
        action = self._limits.action
        inside = [
            low <= motion.command <= high
            for motion, low, high in zip(self._motions, action.low, action.high, strict=True)
        ]
        hold = returning and not all(inside)
        moved = [
            axis.brake(motion) if hold and within else axis.toward(motion, goal)
            for axis, motion, goal, within in zip(
                self._axes, self._motions, target, inside, strict=True
            )
        ]
        if self._workspace is not None:
            path = self._configurations(self._stop_commands(moved))
            if not self._workspace.allows(self._configuration, path):
                self.brake()
                return False
        self._become(moved)
        return True

    def _become(self, motions: list[Motion]) -> None:
        self._set(motions)
        if self._any_displaces:
            self._travelled += np.where(self._displaces, self._command, 0.0)

    def _set(self, motions: list[Motion]) -> None:
        self._motions = motions
        self._command = np.array([motion.command for motion in motions])

    def _stop_commands(self, motions: list[Motion]) -> np.ndarray:
        """The command and those of the quickest stop after it, [step, action.dim]."""
        paths = [axis.stop_path(motion) for axis, motion in zip(self._axes, motions, strict=True)]
        commands = np.empty((1 + max(map(len, paths)), len(paths)))
        for i, (motion, path) in enumerate(zip(motions, paths, strict=True)):
            commands[0, i] = motion.command
            commands[1 : 1 + len(path), i] = path
            # A dimension that has stopped repeats its last command, which is 0 for a displacement.
            commands[1 + len(path) :, i] = commands[len(path), i]
        return commands

    @property
    def _configuration(self) -> np.ndarray:
        """Where the robot is once it has done the last command, [action.dim]."""
        return np.where(self._displaces, self._travelled, self._command)

    def _configurations(self, commands: np.ndarray) -> np.ndarray:
        """Where the robot is once it has done each of the next commands, [step, action.dim]."""
        if not self._any_displaces:
            return commands
        return np.where(self._displaces, self._travelled + commands.cumsum(axis=0), commands)


def _axis(limits: SafetyLimits, i: int, start: float) -> Axis:
    # Plain floats: numpy's take twice as long, one by one.
    low, high = float(limits.action.low[i]), float(limits.action.high[i])
    velocity, acceleration = float(limits.velocity[i]), float(limits.acceleration[i])
    jerk = float(limits.jerk[i]) if limits.jerk else None
    try:
        if limits.kinds[i] == "displacement":
            return DisplacementAxis(low, high, velocity, acceleration, jerk, limits.period_s)
        if jerk is None:
            return Axis(low, high, velocity, acceleration, limits.period_s, start)
        return JerkAxis(low, high, velocity, acceleration, jerk, limits.period_s, start)
    except ValueError as error:
        raise LimitsError(f"{limits.action.names[i]!r}: {error}") from error
