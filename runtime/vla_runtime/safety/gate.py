"""The safety gate: the only owner of a robot's `write` and `halt`.

Whatever it is given, the commands that it writes keep the limits of position, velocity,
acceleration, jerk and workspace. It promises nothing of the robot's motion: see
docs/deployment/safety.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vla_runtime.contract import ContractMismatchError, Reading, Robot
from vla_runtime.safety.checks import Fault, FaultKind, Refused, check_times, checked_command
from vla_runtime.safety.limits import SafetyLimits
from vla_runtime.safety.motion import Axis, DisplacementAxis, Motion


class SafetyError(RuntimeError):
    """The gate is asked for what its state does not allow; nothing was written."""


@dataclass(frozen=True)
class SafetyConfig:
    """When the gate stops by itself.

    Attributes:
        max_observation_age_s: a command from an older observation latches.
        heartbeat_s: so long without a command, or without a tick, latches.

    Raises:
        ValueError: a time is not positive and finite.
    """

    max_observation_age_s: float = 1.0
    heartbeat_s: float = 0.25

    def __post_init__(self) -> None:
        for name in ("max_observation_age_s", "heartbeat_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} has to be positive, got {getattr(self, name)}")


Mode = Literal["idle", "running", "returning", "latched"]


class SafetyGate:
    """Checks, limits and writes commands; latches a stop when something is wrong.

    One thread owns it and calls `write` or `heartbeat` once a control period. Nothing that is wrong
    with a command, a clock or the robot raises: `fault` says it, and the gate slows down within the
    limits, then holds, until `reset`. `stop` may be called from any thread or signal handler.

    Args:
        robot: already connected.
        limits: of its commands.
        config: when to stop.
        clock: seconds, monotonic.

    Raises:
        ContractMismatchError: the limits are of other dimensions or another rate than the robot's.
    """

    def __init__(
        self,
        robot: Robot,
        limits: SafetyLimits,
        config: SafetyConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        spec = robot.spec
        if limits.action.names != spec.action.names:
            raise ContractMismatchError(
                f"the limits are for {list(limits.action.names)}, robot {spec.robot!r} takes "
                f"{list(spec.action.names)}"
            )
        if limits.control_rate_hz != spec.control_rate_hz:
            raise ContractMismatchError(
                f"the limits are for {limits.control_rate_hz} Hz, robot {spec.robot!r} runs at "
                f"{spec.control_rate_hz} Hz"
            )
        self._robot, self._limits = robot, limits
        self._config = config or SafetyConfig()
        self._clock = clock
        self._names = limits.action.names
        self._period_s = limits.period_s
        self._mode: Mode = "idle"
        self._fault: Fault | None = None
        self._requested: str | None = None
        self._busy = threading.Lock()
        self._axes: list[Axis] = []
        self._motions: list[Motion] = []
        self._halted = False
        self._broken = False
        self.counts: Counter[str] = Counter()

    @property
    def mode(self) -> Mode:
        """What the gate does: idle before `start`, running, returning into limits, or latched."""
        return self._mode

    @property
    def fault(self) -> Fault | None:
        """Why it has latched; None where it has not."""
        if self._fault is None and self._requested is not None:
            return Fault("stop", self._requested, self._last_s)
        return self._fault

    @property
    def at_rest(self) -> bool:
        """Whether the written commands stand still."""
        return all(
            axis.at_rest(motion) for axis, motion in zip(self._axes, self._motions, strict=True)
        )

    def start(self, reading: Reading) -> None:
        """Begin where the robot stands; its measured position counts as the last command.

        A robot outside its limits latches at once with a fault of kind "outside": nothing is
        written until `acknowledge_outside`.

        Raises:
            SafetyError: already started (a latched gate is `reset`), or the reading is not fresh.
            ContractMismatchError: the reading's position has another shape, or is not finite.
        """
        if self._mode != "idle":
            raise SafetyError("the gate has been started; a latched one continues after reset()")
        self._begin(reading, since_s=-math.inf)

    def reset(self, reading: Reading) -> None:
        """Begin again after a fault, from a reading taken after the gate had come to rest.

        Raises:
            SafetyError: not latched, still slowing down, or the reading is not fresh.
            ContractMismatchError: the reading's position has another shape, or is not finite.
        """
        fault = self.fault
        if fault is None:
            raise SafetyError("nothing is latched: there is nothing to reset")
        if not self._broken and not self.at_rest:
            raise SafetyError("the robot is still slowing down: tick until at_rest, then reset")
        self._begin(reading, since_s=self._last_s)

    def acknowledge_outside(self) -> None:
        """Allow motion back inside the limits, and only that.

        Raises:
            SafetyError: the gate did not latch because the robot stands outside its limits.
        """
        if self._fault is None or self._fault.kind != "outside":
            raise SafetyError("the robot was not found outside its limits")
        self._fault, self._mode = None, "returning"

    def stop(self, reason: str) -> None:
        """Latch at the next tick. Safe from any thread and signal handler."""
        if self._requested is None:
            self._requested = reason

    def write(self, command: Any, *, observed_s: float, expires_s: float) -> np.ndarray:
        """One control step with a command: check, limit, write.

        Args:
            command: [action.dim], in the contract's units.
            observed_s: when the observation was measured from which it was decided.
            expires_s: when its chunk is used up.

        Returns:
            float64 [action.dim], what the robot was told: the command, what the limits left of it,
            or a step of a stop. `fault` says whether the gate has latched.

        Raises:
            SafetyError: not started.
        """
        return self._tick(None, (command, observed_s, expires_s))

    def heartbeat(self, now: float | None = None) -> np.ndarray:
        """One control step without a command: slow down; latch after `heartbeat_s` of them.

        Before the first command it holds for as long as it takes.

        Raises:
            SafetyError: not started.
        """
        return self._tick(now, None)

    def halt(self) -> None:
        """Latch, and bring the robot into the safest state that software can reach.

        Raises:
            SafetyError: `Robot.halt` failed; the message says what then holds.
        """
        self.stop("halted")
        self._broken = True
        if trouble := self._halt_robot():
            raise SafetyError(f"halting {self._robot.spec.robot!r} failed: {trouble}")

    def _begin(self, reading: Reading, since_s: float) -> None:
        now = self._now()
        age = now - reading.time_s
        if not 0 <= age <= self._config.max_observation_age_s or not reading.time_s >= since_s:
            raise SafetyError(f"the reading is {age:.3f} s old: read the robot again")
        try:
            position = checked_command(reading.position, self._names)
        except Refused as refused:
            raise ContractMismatchError(f"measured position: {refused}") from refused
        limits = self._limits
        self._axes = [_axis(limits, i, position[i]) for i in range(len(self._names))]
        self._motions = [
            axis.rest(0.0 if kind == "displacement" else x)
            for axis, kind, x in zip(self._axes, limits.kinds, position, strict=True)
        ]
        self._last_s, self._due_s = now, now
        self._started_s: float | None = None
        self._commanded_s: float | None = None
        self._fault = self._requested = None
        self._halted = self._broken = False
        self._mode = "running"
        if outside := self._outside():
            self._latch("outside", f"the robot stands outside its limits: {outside}", now)

    def _outside(self) -> str:
        action = self._limits.action
        return "; ".join(
            f"{name} at {motion.command:.6g}, limits {low:.6g} to {high:.6g}"
            for name, motion, low, high in zip(
                action.names, self._motions, action.low, action.high, strict=True
            )
            if not low <= motion.command <= high
        )

    def _now(self) -> float:
        try:
            return float(self._clock())
        except Exception:  # noqa: BLE001  a clock that fails latches as one that says NaN
            return math.nan

    def _latch(self, kind: FaultKind, reason: str, now: float) -> None:
        if self._fault is None:
            self._fault = Fault(kind, reason, now)
        self._mode = "latched"

    def _tick(self, now: float | None, given: tuple[Any, Any, Any] | None) -> np.ndarray:
        if self._mode == "idle":
            raise SafetyError("start(reading) comes first")
        # Never waits: a signal handler or `Robot.write` that comes in here would wait for itself.
        if not self._busy.acquire(blocking=False):
            self.stop("two callers at once: one thread owns the gate")
            return self._in_force()
        try:
            now = self._now() if now is None else now
            early = self._keep_time(now)
            target = self._accept(given, now)
            if not early:
                self._advance(target, now)
            return self._in_force()
        finally:
            self._busy.release()

    def _keep_time(self, now: float) -> bool:
        """Latch on a broken clock or missing ticks; True where the robot may not be written yet."""
        elapsed = now - self._last_s
        if not 0 <= elapsed < math.inf:
            self._latch("clock", f"from {self._last_s} s to {now} s is no step forward", now)
            # Only a stop follows, which needs no clock.
            if math.isfinite(now):
                self._last_s = self._due_s = now
            return False
        if self._started_s is None:
            self._started_s = now
        elif elapsed > self._config.heartbeat_s:
            self._latch("heartbeat", f"no tick for {elapsed:.3f} s", now)
        if elapsed > self._period_s + self._stop_s():
            # The last command was held for longer than a stop takes: it counts as one.
            self._motions = [
                axis.rest(0.0 if kind == "displacement" else motion.command)
                for axis, kind, motion in zip(
                    self._axes, self._limits.kinds, self._motions, strict=True
                )
            ]
        self._last_s = now
        if now < self._due_s - self._period_s / 2:
            self.counts["early"] += 1
            return True
        self._due_s = max(now, self._due_s) + self._period_s
        return False

    def _stop_s(self) -> float:
        steps = max(
            len(axis.stop_path(motion))
            for axis, motion in zip(self._axes, self._motions, strict=True)
        )
        return steps * self._period_s

    def _accept(self, given: tuple[Any, Any, Any] | None, now: float) -> list[float] | None:
        """The command as floats; None where this tick slows down instead."""
        if self._requested is not None:
            self._latch("stop", self._requested, now)
        if self._fault is not None:
            return None
        if given is None:
            silent = now - self._commanded_s if self._commanded_s is not None else 0.0
            if silent > self._config.heartbeat_s:
                self._latch("heartbeat", f"no command for {silent:.3f} s", now)
            return None
        try:
            command = checked_command(given[0], self._names)
            check_times(now, given[1], given[2], self._config.max_observation_age_s)
        except Refused as refused:
            self._latch(refused.kind, str(refused), now)
            return None
        self._commanded_s = now
        return command

    def _advance(self, target: list[float] | None, now: float) -> None:
        if self._broken:
            # After a failed write nothing is known of the robot, so nothing is sent to it.
            if not self._halted:
                self._halt_robot()
            return
        if self._fault is not None and self._fault.kind == "outside":
            return
        self._motions = self._next(target)
        if self._mode == "returning" and not self._outside():
            self._mode = "running"
        try:
            # A copy: the robot may keep or change what it is given.
            self._robot.write(self._in_force())
        except Exception as error:  # noqa: BLE001  whatever a driver raises, the robot is halted
            self._broken = True
            reason = f"write failed: {type(error).__name__}: {error}"
            if trouble := self._halt_robot():
                reason += f"; halt failed too: {trouble}"
            self._latch("robot", reason, now)

    def _next(self, target: list[float] | None) -> list[Motion]:
        if target is None:
            return [a.brake(m) for a, m in zip(self._axes, self._motions, strict=True)]
        moved = []
        for i, (axis, motion) in enumerate(zip(self._axes, self._motions, strict=True)):
            inside = self._limits.action.low[i] <= motion.command <= self._limits.action.high[i]
            held = self._mode == "returning" and inside
            moved.append(axis.brake(motion) if held else axis.toward(motion, target[i]))
        return moved

    def _in_force(self) -> np.ndarray:
        return np.array([motion.command for motion in self._motions])

    def _halt_robot(self) -> str:
        """Halt; what went wrong, or nothing."""
        try:
            self._robot.halt()
        except Exception as error:  # noqa: BLE001  reported, and tried again at the next tick
            return f"{type(error).__name__}: {error}; what holds: {self._robot.halted}"
        self._halted = True
        return ""


def _axis(limits: SafetyLimits, i: int, start: float) -> Axis:
    low, high = limits.action.low[i], limits.action.high[i]
    if limits.kinds[i] == "displacement":
        jerk = limits.jerk[i] if limits.jerk else None
        return DisplacementAxis(
            low, high, limits.velocity[i], limits.acceleration[i], jerk, limits.period_s
        )
    return Axis(low, high, limits.velocity[i], limits.acceleration[i], limits.period_s, start)
