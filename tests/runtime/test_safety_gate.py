"""What the gate does with good and bad commands, clocks and robots."""

from __future__ import annotations

import numpy as np
import pytest
from vla_runtime.contract import Reading, RobotSpec, VectorSpec
from vla_runtime.safety.gate import SafetyGate
from vla_runtime.safety.limits import SafetyLimits

DT = 0.02


class FakeRobot:
    halted = "torque is off"

    def __init__(self):
        self.spec = RobotSpec(
            "arm",
            VectorSpec(("a", "b"), ("rad",) * 2, (-1.0, -2.0), (1.0, 2.0)),
            VectorSpec(("a", "b"), ("rad",) * 2, (-4.0,) * 2, (4.0,) * 2),
            (),
            1 / DT,
        )
        self.written = []
        self.position = np.zeros(2)

    def write(self, command):
        self.written.append(command)

    def halt(self):
        pass


def test_moves():
    robot, now = FakeRobot(), [0.0]
    limits = SafetyLimits(robot.spec.action, ("position",) * 2, (1.0, 2.0), (5.0, 5.0), 1 / DT)
    gate = SafetyGate(robot, limits, clock=lambda: now[0])
    gate.start(Reading({}, np.zeros(2), np.zeros(2), 0.0))
    for k in range(300):
        now[0] = k * DT
        gate.write(np.array([0.7, 9.0]), observed_s=now[0], expires_s=now[0] + 1)
        assert gate.fault is None
    x = np.stack(robot.written)
    assert x[-1] == pytest.approx([0.7, 2.0])
    v = np.diff(x, axis=0) / DT
    a = np.diff(v, axis=0) / DT
    assert np.abs(v).max(axis=0) == pytest.approx([1, 2])
    assert np.abs(a).max(axis=0) == pytest.approx([5, 5])
