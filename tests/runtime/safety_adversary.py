"""Robots, clocks, readings and commands that try to make the safety gate break a limit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from safety_checker import Checker, Segment, tip
from vla_runtime.contract import Reading, RobotSpec, VectorSpec
from vla_runtime.safety.gate import SafetyConfig, SafetyError, SafetyGate
from vla_runtime.safety.limits import Box, LimitsError, SafetyLimits

NASTY = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, -0.0, 0.0, 1e-300, 2.0**60)
MALFORMED: tuple[Any, ...] = (
    None,
    "0.1",
    b"\0" * 48,
    {},
    3.5,
    object(),
    [],
    [None],
    ["nan"],
    [[0.0]],
    [10**400],
    np.zeros(0),
    np.zeros((2, 2)),
    np.zeros(99),
    np.zeros(1, complex),
    np.zeros(1, bool),
    np.array(["1"]),
    np.array([object()]),
    np.zeros(1, "M8[s]"),
)


class HostileRobot:
    """Records what is written; reads what it is told to; raises when it is told to."""

    halted = "nothing holds"

    def __init__(self, spec: RobotSpec, clock: Callable[[], float]) -> None:
        self.spec = spec
        self.clock = clock
        self.segment = Segment(np.zeros(spec.action.dim))
        self.write_fails = self.halt_fails = False
        self.halts = 0

    def write(self, command: np.ndarray) -> None:
        """Note the command, then spoil the array, and fail if told to."""
        assert command.dtype == np.float64
        self.segment.commands.append(command.copy())
        self.segment.times.append(self.clock())
        command[:] = math.nan
        if self.write_fails:
            raise ConnectionError("the cable is gone")

    def halt(self) -> None:
        """Count, and fail if told to."""
        self.halts += 1
        if self.halt_fails:
            raise OSError("the cable is gone")


class TipKinematics:
    """The planar arm of the checker."""

    points = ("tip",)

    def __init__(self, displaces: np.ndarray) -> None:
        self.displaces = displaces

    def measure(self, reading: Reading) -> None:
        """The arm's lift is counted from 0."""

    def locate(self, configurations: np.ndarray) -> np.ndarray:
        """The tip, [step, 1, 3]."""
        return tip(configurations[:, ~self.displaces], configurations[:, self.displaces])[:, None]


def random_box(rng: np.random.Generator, limits: SafetyLimits) -> Box:
    """A box that holds the tip at most, not at all, places that the ranges allow."""
    displaces = np.array([kind == "displacement" for kind in limits.kinds])
    inside = rng.uniform(limits.action.low, limits.action.high, (100, limits.action.dim))
    places = tip(inside[:, ~displaces], inside[:, displaces])
    low, high = np.quantile(places, (0.1, 0.9), axis=0)
    return Box(tuple(low - 1e-3), tuple(high + 1e-3))


def random_limits(rng: np.random.Generator, jerk: bool, workspace: bool) -> SafetyLimits:
    """Limits of a robot of 1 to 7 dimensions, from sluggish to nervous, some ranges tiny."""
    dim = int(rng.integers(1, 8))
    rate = float(rng.choice([5, 10, 30, 50, 100, 500, 1000]))
    displaces = rng.random(dim) < 0.3
    low = rng.uniform(-3, 1, dim)
    high = low + 10 ** rng.uniform(-3, 1, dim)
    low, high = np.where(displaces, -abs(low), low), np.where(displaces, abs(high), high)
    velocity = 10 ** rng.uniform(-1, 1.5, dim)
    acceleration = 10 ** rng.uniform(-0.5, 2.5, dim)
    if workspace:
        # Each stop is located step by step: long ones take the time that the others need.
        rate, acceleration = min(rate, 100.0), np.maximum(acceleration, velocity)
    limits = SafetyLimits(
        action=VectorSpec(
            tuple(f"j{i}" for i in range(dim)), ("rad",) * dim, tuple(low), tuple(high)
        ),
        kinds=tuple("displacement" if d else "position" for d in displaces),
        velocity=tuple(velocity),
        acceleration=tuple(acceleration),
        jerk=tuple(10 ** rng.uniform(1, 4, dim)) if jerk else (),
        control_rate_hz=rate,
    )
    return replace(limits, workspace={"tip": random_box(rng, limits)}) if workspace else limits


class Adversary:
    """Drives one gate and checks all that it writes.

    Args:
        seed: of everything random.
        jerk: whether the limits have it.
        workspace: whether the limits have one.
        hostile: 0 for good times and robots and finite commands alone, 1 for everything else too.
    """

    def __init__(self, seed: int, jerk: bool, workspace: bool, hostile: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.limits = limits = random_limits(self.rng, jerk, workspace)
        self.hostile = hostile
        self.now = 100.0
        self.low, self.high = np.array(limits.action.low), np.array(limits.action.high)
        spec = RobotSpec("arm", limits.action, limits.action, (), limits.control_rate_hz)
        self.robot = HostileRobot(spec, lambda: self.now)
        self.displaces = np.array([kind == "displacement" for kind in limits.kinds])
        self.gate = SafetyGate(
            self.robot,
            limits,
            SafetyConfig(1.0, 0.5),
            clock=lambda: self.now,
            kinematics=TipKinematics(self.displaces),
        )
        self.checker = Checker(
            self.low,
            self.high,
            np.array(limits.velocity),
            np.array(limits.acceleration),
            np.array(limits.jerk) if limits.jerk else None,
            self.displaces,
            limits.period_s,
            np.array([(box.low, box.high) for box in limits.workspace.values()])[0]
            if workspace
            else None,
        )
        self.faults: Counter[str] = Counter()
        self.command = self._inside()
        self.velocity = np.zeros(len(self.low))
        self.style = 0

    def run(self, steps: int) -> None:
        """Tick so often; raises AssertionError where a limit is broken."""
        self._begin(self.gate.start)
        for _ in range(steps):
            self._advance_clock()
            self.robot.write_fails = self._chance(0.001)
            self.robot.halt_fails = self._chance(0.3)
            if self._chance(0.003):
                self.gate.stop("asked for")
            if self._chance(0.05):
                written = self.gate.heartbeat()
            else:
                observed = self.now - self._age()
                expires = self.now + self._age()
                written = self.gate.write(self._command(), observed_s=observed, expires_s=expires)
            assert np.isfinite(written).all()
            if self.gate.fault is not None and self.rng.random() < 0.05:
                self._recover()
        self._close()

    def _recover(self) -> None:
        assert self.gate.fault is not None
        self.faults[self.gate.fault.kind] += 1
        if self.gate.fault.kind == "outside" and self.rng.random() < 0.7:
            self.gate.acknowledge_outside()
        else:
            if not math.isfinite(self.now):
                self.now = 100.0
            self._begin(self.gate.reset)

    def _begin(self, begin: Callable[[Reading], None]) -> None:
        position = self._inside()
        if self._chance(0.2):
            position = position + self.rng.normal(size=len(position)) * (self.high - self.low)
        if self._chance(0.1):
            position = self.rng.choice(np.array([*NASTY, 0.5]), size=len(position))
        position = np.where(self.displaces, 0.0, position)  # what else stands there is refused
        time_s = self.now - (self._age() if self._chance(0.1) else 0)
        proprio = np.zeros(len(position), np.float32)
        try:
            begin(Reading({}, proprio, position, time_s))
        except (SafetyError, LimitsError, ValueError):
            if self.gate.mode == "idle":
                # The tests need a gate that runs.
                position = self._inside()
                begin(Reading({}, proprio, position, self.now))
            else:
                return
        self._close()
        self.robot.segment = Segment(self.gate.command)
        assert (self.gate.command == position).all()

    def _close(self) -> None:
        self.checker.check(self.robot.segment)
        self.robot.segment = Segment(self.robot.segment.start)

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability * self.hostile)

    def _inside(self) -> np.ndarray:
        return np.where(self.displaces, 0.0, self.rng.uniform(self.low, self.high))

    def _age(self) -> float:
        if self._chance(0.005):
            return float(self.rng.choice([math.nan, math.inf, -math.inf, -1e-9, 1.5, 1e308]))
        return float(self.rng.uniform(0, 0.5))

    def _advance_clock(self) -> None:
        before = self.now
        self._move_clock()
        if not 0 <= self.now - before < math.inf:
            self.robot.segment.clock_jumped = True

    def _move_clock(self) -> None:
        period = self.limits.period_s
        self.now += period
        if self._chance(0.2):
            self.now += period * self.rng.uniform(-0.6, 0.6)
        if self._chance(0.02):
            self.now += self.rng.exponential(10 * period)
        if self._chance(0.02):
            self.now -= period * 0.95  # a burst
        if self._chance(0.001):
            self.now = float(self.rng.choice([math.nan, math.inf, 0.0, self.now - 1, 1e12]))
        if not self.now < 1e10 and self.rng.random() < 0.3:
            self.now = 100.0

    def _command(self) -> Any:
        if self._chance(0.003):
            return MALFORMED[self.rng.integers(len(MALFORMED))]
        if self.rng.random() < 0.05:
            self.style = int(self.rng.integers(8))
        self._next_command()
        if self._chance(0.02):
            return np.trunc(np.clip(self.command, -100, 100)).astype(np.int32)
        command = self.command.copy()
        if self._chance(0.004):
            command[self.rng.integers(len(command))] = self.rng.choice(NASTY)
        with np.errstate(over="ignore"):
            return command.astype(self.rng.choice([np.float64, np.float32]))

    def _next_command(self) -> None:
        rng, dim = self.rng, len(self.low)
        dt, limits = self.limits.period_s, self.limits
        written = self.gate.command
        if self.style == 0:  # anywhere inside, held for a while
            if rng.random() < 0.1:
                self.command = rng.uniform(self.low, self.high)
        elif self.style == 1:  # flip-flop between the limits, and far beyond
            self.command = np.where(rng.random(dim) < 0.5, self.low, self.high) * rng.choice(
                [1, 1, 1, 1e6]
            )
        elif self.style == 2:  # exactly at a limit, one bit inside or outside
            edge = np.where(rng.random(dim) < 0.9, self.high, self.low)
            self.command = np.nextafter(edge, edge + rng.choice([-1, 0, 1]))
        elif self.style == 3:  # away from where it is, as fast as possible, then back
            self.velocity = np.where(rng.random(dim) < 0.05, -self.velocity, self.velocity)
            self.velocity = np.where(self.velocity == 0, np.array(limits.velocity), self.velocity)
            self.command = written + self.velocity * dt * rng.choice([0.5, 1, 1.5, 1000])
        elif self.style == 4:  # a smooth wave that keeps the limits in part
            phase = self.now * rng.choice([1, 1, 1, 3]) if math.isfinite(self.now) else 0.0
            middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
            self.command = middle + half * np.sin(phase + np.arange(dim))
        elif self.style == 5:  # noise
            self.command = written + rng.normal(size=dim) * (self.high - self.low) * 0.1
        elif self.style == 6:  # a step as small as numbers go
            self.command = np.nextafter(written, written + rng.normal(size=dim))
        # style 7: the same command again
