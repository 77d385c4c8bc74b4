"""Stops that somebody asks for, before the start, during a reset, and from another thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from safety_robot import DT, LIMITS, Bench, NotingRobot, moving
from vla_runtime.contract import Reading
from vla_runtime.safety.gate import SafetyError, SafetyGate


def test_halt_is_the_gates_and_says_when_it_fails() -> None:
    """After it nothing is written."""
    bench = moving()
    bench.robot.halt_error = OSError("no cable")
    with pytest.raises(SafetyError, match="halting 'arm' failed: OSError: no cable"):
        bench.gate.halt()
    bench.robot.halt_error = None
    bench.gate.halt()
    count = len(bench.robot.written)
    bench.tick(0.0, 0.0)
    assert len(bench.robot.written) == count
    assert bench.kind() == "stop"
    assert bench.gate.at_rest


def test_stop_may_come_from_anywhere() -> None:
    """It shows at once, and works at the next tick."""
    bench = moving()
    thread = threading.Thread(target=bench.gate.stop, args=("the operator's key",))
    thread.start()
    thread.join()
    assert bench.gate.fault is not None
    assert bench.gate.fault.reason == "the operator's key"
    before = bench.gate.command
    bench.tick(0.9, 2.0)
    assert (bench.gate.command - before)[0] == pytest.approx(DT - 5 * DT**2)
    assert bench.gate.mode == "latched"


@pytest.mark.parametrize("stop", ["stop", "halt"])
def test_a_stop_before_the_start_is_not_forgotten(stop: str) -> None:
    """Whoever presses a key while the robot connects does not want it to move."""
    bench = Bench()
    bench.gate.stop("the operator's key") if stop == "stop" else bench.gate.halt()
    bench.start()
    assert bench.kind() == "stop"
    assert bench.tick(0.9, 2.0).tolist() == [0.0, 0.0]
    assert bench.gate.mode == "latched"


def test_a_stop_during_a_reset_is_not_forgotten() -> None:
    """The reset is for the fault before it; another thread may stop the robot in the middle."""
    bench = moving(0)
    bench.gate.stop("the first")
    bench.tick(0.0, 0.0)
    bench.now += DT

    class Pressed(Reading):
        def __getattribute__(self, name: str) -> Any:
            """Another thread's turn comes while `reset` reads the position."""
            if name == "position":
                bench.gate.stop("the second")
            return super().__getattribute__(name)

    bench.gate.reset(Pressed(**vars(bench.reading())))
    assert bench.gate.fault is not None
    assert bench.gate.fault.reason == "the second"
    assert bench.tick(0.9, 2.0).tolist() == [0.0, 0.0]


def test_a_second_caller_is_refused_and_latches() -> None:
    """From within `Robot.write` as from another thread: it never waits for itself."""
    bench = moving()
    refused = []

    class Reentrant(NotingRobot):
        def write(self, command: np.ndarray) -> None:
            """Call back."""
            super().write(command)
            for call in (bench.gate.heartbeat, bench.gate.halt):
                with pytest.raises(SafetyError, match="another call is in progress") as error:
                    call()
                refused.append(error)

    robot = Reentrant()
    bench.gate = SafetyGate(robot, LIMITS, clock=lambda: bench.now)
    bench.start()
    bench.tick(0.0, 0.0)
    assert len(refused) == 2
    assert bench.kind() == "stop"
    assert len(robot.written) == 1
    assert robot.halts == 0
    # `halt` was refused while bytes were on the line: the next tick does it.
    bench.tick(0.0, 0.0)
    assert robot.halts == 1
