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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vla_runtime.contract import ContractMismatchError, Reading, Robot
from vla_runtime.safety.checks import (
    Fault,
    FaultKind,
    Refused,
    check_times,
    checked_command,
    seconds,
)
from vla_runtime.safety.limiter import Limiter
from vla_runtime.safety.limits import SafetyLimits
from vla_runtime.safety.workspace import Kinematics


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
        kinematics: where the limits have workspace boxes.

    Raises:
        LimitsError: a limit is wider than the contract's, the kinematics does not know the
            workspace's points, or float64 does not resolve a limit at the control rate.
        ContractMismatchError: the limits are of other dimensions or another rate than the robot's.
    """

    def __init__(
        self,
        robot: Robot,
        limits: SafetyLimits,
        config: SafetyConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        kinematics: Kinematics | None = None,
    ) -> None:
        limits.require_within(robot.spec)
        self._robot = robot
        self._limiter = Limiter(limits, kinematics)
        self._config = config or SafetyConfig()
        self._clock = clock
        self._names, self._period_s = limits.action.names, limits.period_s
        self._mode: Mode = "idle"
        self._fault: Fault | None = None
        self._requested: str | None = None
        self._busy = threading.Lock()
        # After a failed write, or `halt`: nothing is sent until `reset`.
        self._silent = self._halted = False
        self._last_s = self._due_s = -math.inf
        self._elapsed_s = 0.0
        self._ticked = False
        self._commanded_s: float | None = None
        self.counts: Counter[str] = Counter()

    @property
    def mode(self) -> Mode:
        """What the gate does: idle before `start`, running, returning into limits, or latched."""
        return self._mode

    @property
    def fault(self) -> Fault | None:
        """Why it has latched; None where it has not."""
        if self._fault is None and (requested := self._requested) is not None:
            return Fault("stop", requested, self._last_s)
        return self._fault

    @property
    def command(self) -> np.ndarray:
        """The last command, or where the robot was measured before the first; [action.dim]."""
        return self._limiter.command

    @property
    def at_rest(self) -> bool:
        """Whether the written commands stand still, or none are written."""
        return self._silent or self._limiter.at_rest

    def start(self, reading: Reading) -> None:
        """Begin where the robot stands; its measured position counts as the last command.

        A robot outside its limits latches at once with a fault of kind "outside": nothing is
        written until `acknowledge_outside`.

        Raises:
            SafetyError: already started (a latched gate is `reset`), or the reading is not fresh.
            ContractMismatchError: the reading's position has another shape, or is not finite.
            LimitsError: float64 does not resolve a limit around that position, or what is limited
                as a displacement has a position.
        """
        with self._alone():
            if self._mode != "idle":
                raise SafetyError("the gate has been started; a latched one continues by reset()")
            self._begin(reading)

    def reset(self, reading: Reading) -> None:
        """Begin again after a fault, from a reading taken after the last tick.

        Raises:
            SafetyError: not latched, still slowing down, or the reading is not fresh.
            ContractMismatchError: the reading's position has another shape, or is not finite.
            LimitsError: float64 does not resolve a limit around that position, or what is limited
                as a displacement has a position.
        """
        with self._alone():
            if (fault := self.fault) is None:
                raise SafetyError("nothing is latched: there is nothing to reset")
            if not self.at_rest:
                raise SafetyError("the robot is still slowing down: tick until at_rest, then reset")
            # What is asked to stop from here on, by another thread, is to stop after the reset too.
            self._latch(fault.kind, fault.reason, fault.time_s)
            self._requested = None
            self._begin(reading)

    def acknowledge_outside(self) -> None:
        """Allow motion back inside the limits, and only that.

        Raises:
            SafetyError: the gate did not latch because the robot stands outside its limits.
        """
        if self._fault is None or self._fault.kind != "outside":
            raise SafetyError("the gate has not latched for a robot outside its limits")
        self._fault, self._mode = None, "returning"

    def stop(self, reason: str) -> None:
        """Latch at the next tick, the first one where the gate has not been started.

        Safe from any thread and signal handler.
        """
        if self._requested is None:
            self._requested = reason

    def measure(self, reading: Reading) -> None:
        """Tell where the robot stands now; needed where displacements have a workspace."""
        self._limiter.measure(reading)

    def write(self, command: Any, *, observed_s: float, expires_s: float) -> np.ndarray:
        """One control step with a command: check, limit, write.

        Args:
            command: [action.dim], in the contract's units.
            observed_s: when the observation was measured from which it was decided.
            expires_s: when its chunk is used up.

        Returns:
            float64 [action.dim], what the robot was told last: the command, what the limits left of
            it, or a step of a stop. `fault` says whether the gate has latched.

        Raises:
            SafetyError: not started, or another call is in progress, which latches.
        """
        return self._tick(None, (command, observed_s, expires_s))

    def heartbeat(self, now: float | None = None) -> np.ndarray:
        """One control step without a command: slow down; latch after `heartbeat_s` of them.

        Before the first command it holds for as long as it takes.

        Args:
            now: the clock's time, where the caller has just read it.

        Raises:
            SafetyError: not started, or another call is in progress, which latches.
        """
        return self._tick(now, None)

    def halt(self) -> None:
        """Latch, and bring the robot into the safest state that software can reach.

        Raises:
            SafetyError: `Robot.halt` failed; the message says what then holds.
        """
        self.stop("halted")
        self._silent = True
        # Two callers would mix their bytes on the robot's line. The tick in progress ends first.
        with self._alone():
            if trouble := self._halt_robot():
                raise SafetyError(f"halting {self._robot.spec.robot!r} failed: {trouble}")

    def _begin(self, reading: Reading) -> None:
        now = self._now()
        age = now - seconds(reading.time_s)
        # Measured before the last tick, it shows no standstill.
        oldest = self._config.max_observation_age_s
        if not 0 <= age <= oldest:
            raise SafetyError(
                f"the reading is {age:.3f} s old, max_observation_age_s allows 0 to {oldest}: "
                "read the robot again"
            )
        if now - age < self._last_s:
            raise SafetyError("the reading is from before the last tick: read the robot again")
        try:
            position = checked_command(reading.position, self._names)
        except Refused as refused:
            raise ContractMismatchError(f"measured position: {refused}") from refused
        self._limiter.begin(position, reading)
        self._last_s, self._due_s = now, now
        self._ticked, self._commanded_s = False, None
        self._fault = None
        self._silent = self._halted = False
        self._mode = "running"
        if outside := self._limiter.outside():
            self._latch("outside", f"the robot stands outside its limits: {outside}", now)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Never waits: a signal handler or `Robot.write` that comes in here would wait for itself.
        if not self._busy.acquire(blocking=False):
            self.stop("two callers at once: one thread owns the gate")
            raise SafetyError("another call is in progress: one thread owns the gate")
        try:
            yield
        finally:
            self._busy.release()

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
        with self._alone():
            now = self._now() if now is None else seconds(now)
            may_write = self._keep_time(now)
            target = self._accept(given, now)
            if may_write:
                self._advance(target, now)
            return self._limiter.command

    def _keep_time(self, now: float) -> bool:
        """Latch on a broken clock or missing ticks; False where it is too early to write."""
        elapsed = now - self._last_s
        if not 0 <= elapsed < math.inf:
            self._latch("clock", f"from {self._last_s} s to {now} s is no step forward", now)
            # Only a stop follows, which needs no clock; how long ago the last tick was is unknown.
            self._last_s = self._due_s = now
            self._elapsed_s = 0.0
            return True
        # Before the first tick nothing is owed: the first decision may take its time.
        if self._ticked and elapsed > self._config.heartbeat_s:
            self._latch("heartbeat", f"no tick for {elapsed:.3f} s", now)
        self._ticked = True
        self._last_s, self._elapsed_s = now, elapsed
        # A late tick may be made up for by half a period, a burst of ticks is dropped.
        if now < self._due_s - self._period_s / 2:
            self.counts["early"] += 1
            return False
        self._due_s = max(now, self._due_s) + self._period_s
        return True

    def _accept(self, given: tuple[Any, Any, Any] | None, now: float) -> list[float] | None:
        """The command as floats; None where this tick slows down instead."""
        if self._requested is not None:
            self._latch("stop", self._requested, now)
        if self._fault is not None:
            return None
        if given is None:
            silence = 0.0 if self._commanded_s is None else now - self._commanded_s
            if silence > self._config.heartbeat_s:
                self._latch("heartbeat", f"no command for {silence:.3f} s", now)
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
        if self._silent:
            # After a failed write nothing is known of the robot, so nothing is sent to it.
            if not self._halted:
                self._halt_robot()
            return
        if self._fault is not None and self._fault.kind == "outside":
            return
        try:
            self._move(target)
        except Exception as error:  # noqa: BLE001  Ruckig's, or the kinematics': nothing has moved
            self._latch("motion", f"no next command: {type(error).__name__}: {error}", now)
            try:
                self._limiter.brake()
            except Exception as stopping:  # noqa: BLE001  without a stop, only the robot can halt
                self._fail("motion", f"no stop: {type(stopping).__name__}: {stopping}", now)
                return
        try:
            # A copy: the robot may keep or change what it is given.
            self._robot.write(self._limiter.command)
        except Exception as error:  # noqa: BLE001  whatever a driver raises, the robot is halted
            self._fail("robot", f"write failed: {type(error).__name__}: {error}", now)

    def _move(self, target: list[float] | None) -> None:
        """Advance the limiter by one step; where this raises, it has not advanced."""
        if self._elapsed_s > 1.5 * self._period_s:
            self.counts["missed"] += 1
            # The last command was in force all the while: for as long as a stop takes, it was one.
            if self._elapsed_s > (1 + self._limiter.stop_steps) * self._period_s:
                self._limiter.hold()
        if self._mode == "returning" and not self._limiter.outside():
            self._mode = "running"
        if target is None:
            self._limiter.brake()
            return
        if not self._limiter.step(target, self._mode == "returning"):
            self.counts["workspace"] += 1
        if self._limiter.command.tolist() != target:
            self.counts["limited"] += 1

    def _fail(self, kind: FaultKind, reason: str, now: float) -> None:
        """Latch, halt the robot and send it nothing more."""
        if self._fault is not None:
            reason += f"; before that: {self._fault.reason}"
        self._silent = True
        if trouble := self._halt_robot():
            reason += f"; halting it failed too: {trouble}"
        self._fault, self._mode = Fault(kind, reason, now), "latched"

    def _halt_robot(self) -> str:
        """Halt; what went wrong, or nothing."""
        try:
            self._robot.halt()
        except Exception as error:  # noqa: BLE001  reported, and tried again at the next tick
            return f"{type(error).__name__}: {error}; what holds: {self._robot.halted}"
        self._halted = True
        return ""
