"""A robot of two joints that notes what is written to it, its limits, and a clock that is set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from vla_runtime.contract import MotionLimits, Reading, RobotSpec, VectorSpec
from vla_runtime.safety.gate import SafetyConfig, SafetyGate
from vla_runtime.safety.limits import SafetyLimits
from vla_runtime.safety.workspace import Kinematics

DT = 0.02
RANGE = VectorSpec(("pan", "lift"), ("rad", "rad"), (-1.0, -2.0), (1.0, 2.0))
SPEC = RobotSpec("arm", RANGE, RANGE, (), 1 / DT)
MOTION = MotionLimits(("position", "position"), (1.0, 2.0), (5.0, 10.0))
LIMITS = SafetyLimits.from_spec(replace(SPEC, motion=MOTION))


class NotingRobot:
    """Keeps what is written; `write_error` and `halt_error` are raised where they are set."""

    halted = "torque stays on"

    def __init__(self, spec: RobotSpec = SPEC) -> None:
        self.spec = spec
        self.written: list[np.ndarray] = []
        self.halts = 0
        self.write_error: BaseException | None = None
        self.halt_error: Exception | None = None

    def connect(self) -> None:
        """Nothing to open."""

    def read(self) -> Reading:
        """Never asked: the gate is given its readings."""
        raise NotImplementedError

    def write(self, command: np.ndarray) -> None:
        """Note it."""
        self.written.append(command)
        if self.write_error is not None:
            raise self.write_error

    def halt(self) -> None:
        """Count it."""
        self.halts += 1
        if self.halt_error is not None:
            raise self.halt_error

    def disconnect(self) -> None:
        """Nothing to close."""


class Bench:
    """A gate around a `NotingRobot`, on a clock that `tick` advances by one period."""

    def __init__(
        self,
        limits: SafetyLimits = LIMITS,
        config: SafetyConfig | None = None,
        kinematics: Kinematics | None = None,
    ) -> None:
        self.now = 10.0
        spec = replace(SPEC, action=limits.action, control_rate_hz=limits.control_rate_hz)
        self.robot = NotingRobot(spec)
        self.gate = SafetyGate(self.robot, limits, config, lambda: self.now, kinematics)

    def reading(self, *position: float, age_s: float = 0.0) -> Reading:
        """A measurement of now."""
        return Reading(
            {}, np.zeros(2, np.float32), np.array(position or (0.0, 0.0)), self.now - age_s
        )

    def start(self, *position: float) -> Bench:
        """Start there; the origin by default."""
        self.gate.start(self.reading(*position))
        return self

    def tick(self, *command: float, after_s: float = DT) -> np.ndarray:
        """A fresh command one period later."""
        self.now += after_s
        return self.gate.write(
            np.array(command), observed_s=self.now - 0.01, expires_s=self.now + 0.1
        )

    def kind(self) -> str | None:
        """Of the fault."""
        return None if self.gate.fault is None else self.gate.fault.kind


def moving(steps: int = 30) -> Bench:
    """At full speed."""
    bench = Bench().start(-0.9, 0.0)
    for _ in range(steps):
        bench.tick(0.9, 2.0)
    assert bench.kind() is None
    return bench
