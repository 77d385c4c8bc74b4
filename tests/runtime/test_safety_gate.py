"""What the gate does with good and bad commands, clocks and robots."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safety_adversary import MALFORMED
from safety_robot import DT, LIMITS, RANGE, SPEC, Bench, NotingRobot, moving
from vla_runtime.contract import ContractMismatchError, Reading, Robot
from vla_runtime.safety.gate import SafetyConfig, SafetyError, SafetyGate
from vla_runtime.safety.limits import LimitsError, SafetyLimits
from vla_runtime.safety.motion import Axis

HUGE = pytest.param(10**400, id="huge")  # an integer that no float holds


def test_a_command_within_the_limits_is_written_as_it_is() -> None:
    """And it is what `write` returns; integers and lists are numbers too."""
    bench = Bench().start()
    assert isinstance(bench.robot, Robot)
    assert bench.tick(0.001, -0.002).tolist() == [0.001, -0.002]
    assert bench.robot.written[-1].tolist() == [0.001, -0.002]
    assert bench.robot.written[-1].dtype == np.float64
    bench.now += DT
    for zeros in (np.zeros(2, int), np.zeros(2, np.float16), [0, 0.0], (0, 0)):
        bench.now += DT
        bench.gate.write(zeros, observed_s=bench.now, expires_s=bench.now)
    assert bench.kind() is None
    assert bench.gate.mode == "running"


def test_a_command_beyond_the_limits_is_cut_and_counted() -> None:
    """From rest a step of A dt^2 is what may be taken."""
    bench = Bench().start()
    assert bench.tick(0.9, -9.0) == pytest.approx([5 * DT**2, -10 * DT**2])
    assert bench.gate.counts["limited"] == 1
    assert bench.kind() is None


@pytest.mark.parametrize("command", MALFORMED)
def test_what_is_no_command_latches(command: Any) -> None:
    """Never an exception: the loop would stop ticking, and the robot would not slow down."""
    bench = moving()
    bench.now += DT
    bench.gate.write(command, observed_s=bench.now, expires_s=bench.now)
    assert bench.kind() == "command"
    assert bench.gate.mode == "latched"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_latches_and_names_the_dimension(value: float) -> None:
    """In the gate's first check: limits would let NaN through, or clip infinity."""
    bench = moving()
    bench.tick(0.0, value)
    assert bench.gate.fault is not None
    assert bench.gate.fault.reason == "not finite in ['lift']"
    assert bench.gate.fault.time_s == bench.now


def test_a_long_double_beyond_float64_is_not_finite() -> None:
    """It becomes infinite on the way to the robot."""
    bench = moving()
    bench.now += DT
    with np.errstate(over="ignore"):
        large = np.array([np.longdouble(10) ** 400, 0])
        bench.gate.write(large, observed_s=bench.now, expires_s=bench.now)
    assert bench.kind() == "command"


@pytest.mark.parametrize("seconds", [1.01, -0.001, math.nan, math.inf, None, "1", True, HUGE])
def test_a_bad_observation_time_latches(seconds: Any) -> None:
    """Too old, from the future, no time at all."""
    bench = moving()
    bench.now += DT
    observed = bench.now - seconds if isinstance(seconds, float) else seconds
    bench.gate.write(np.zeros(2), observed_s=observed, expires_s=bench.now + 1)
    assert bench.kind() == "observation"


@pytest.mark.parametrize("expires", [0.0, math.nan, None, HUGE])
def test_an_expired_chunk_latches(expires: Any) -> None:
    """The policy did not deliver in time."""
    bench = moving()
    bench.now += DT
    bench.gate.write(np.zeros(2), observed_s=bench.now, expires_s=expires)
    assert bench.kind() == "expired"


def test_a_latched_gate_slows_down_within_limits_then_holds() -> None:
    """It ignores commands, good ones too, until it is reset."""
    bench = moving()
    bench.tick(math.nan, 0.0)
    first = bench.robot.written[-2:]
    for _ in range(40):
        bench.tick(-1.0, -2.0)
    x = np.array(bench.robot.written[-42:])
    acceleration = np.diff(x, 2, axis=0) / DT**2
    assert np.abs(acceleration).max(axis=0) == pytest.approx([5, 10])
    assert (np.diff(x, axis=0) >= 0).all()
    assert (x[-1] == x[-2]).all()
    assert (x[-1] > first[-1]).all()
    assert bench.gate.at_rest
    assert bench.gate.fault is not None
    assert bench.gate.fault.kind == "command"  # the first reason stays


def test_reset_needs_a_latch_a_standstill_and_a_fresh_reading() -> None:
    """And it starts from what was measured."""
    bench = moving()
    with pytest.raises(SafetyError, match="nothing is latched"):
        bench.gate.reset(bench.reading())
    bench.tick(math.nan, 0.0)
    with pytest.raises(SafetyError, match="still slowing down"):
        bench.gate.reset(bench.reading())
    before = bench.reading()
    while not bench.gate.at_rest:
        bench.tick(0.0, 0.0)
    for stale in (before, bench.reading(age_s=-1), bench.reading(age_s=math.nan)):
        with pytest.raises(SafetyError, match="read the robot again"):
            bench.gate.reset(stale)
    for wrong in ((math.nan, 0.0), (0.0,), (0.0, 0.0, 0.0)):
        with pytest.raises(ContractMismatchError, match="measured position"):
            bench.gate.reset(bench.reading(*wrong))
    assert bench.gate.mode == "latched"
    bench.gate.reset(bench.reading(0.3, 0.4))
    assert bench.gate.mode == "running"
    assert bench.tick(0.3, 0.4).tolist() == [0.3, 0.4]


def test_start_comes_first_and_once() -> None:
    """Nothing is written without it."""
    bench = Bench()
    with pytest.raises(SafetyError, match="start"):
        bench.tick(0.0, 0.0)
    with pytest.raises(SafetyError, match="start"):
        bench.gate.heartbeat()
    with pytest.raises(SafetyError, match="the reading is 2"):
        bench.gate.start(bench.reading(age_s=2.0))
    bench.start()
    with pytest.raises(SafetyError, match="started"):
        bench.start()
    assert bench.robot.written == []


def test_ticks_without_a_command_slow_down_then_latch() -> None:
    """After `heartbeat_s`; before the first command they hold for as long as it takes."""
    bench = Bench(config=SafetyConfig(heartbeat_s=0.1)).start(-0.9, 0.0)
    for _ in range(50):
        bench.now += DT
        assert bench.gate.heartbeat().tolist() == [-0.9, 0.0]
    for _ in range(20):
        bench.tick(0.9, 2.0)
    moved = []
    for _ in range(5):
        bench.now += DT
        moved.append(bench.gate.heartbeat(bench.now))
    assert bench.kind() is None
    assert np.diff(moved, 2, axis=0)[:, 0] == pytest.approx(-5 * DT**2)
    bench.now += DT
    bench.gate.heartbeat()
    assert bench.kind() == "heartbeat"


def test_missing_ticks_latch() -> None:
    """A loop that was away says so itself."""
    bench = moving()
    bench.tick(0.9, 2.0, after_s=0.3)
    assert bench.gate.fault is not None
    assert bench.gate.fault.reason == "no tick for 0.300 s"


def test_a_late_tick_goes_on_at_the_nominal_period() -> None:
    """It is like any other: a step of V dt, not of V times the delay."""
    bench = moving()
    before = bench.gate.command
    after = bench.tick(0.9, 2.0, after_s=3 * DT)
    assert after - before == pytest.approx([1.0 * DT, 2.0 * DT])
    assert bench.gate.counts["missed"] == 1


def test_a_pause_as_long_as_a_stop_counts_as_one() -> None:
    """After 0.24 s without a tick the robot stands: 1 unit/s is taken up again from 0."""
    bench = moving()
    before = bench.gate.command
    after = bench.tick(0.9, 2.0, after_s=0.24)
    assert after - before == pytest.approx([5 * DT**2, 10 * DT**2])
    assert bench.kind() is None


def test_a_burst_of_ticks_is_dropped() -> None:
    """A loop that catches up may not move the robot faster: no more than half a period early."""
    bench = moving()
    count = len(bench.robot.written)
    for _ in range(100):
        bench.tick(0.9, 2.0, after_s=DT / 100)
    assert len(bench.robot.written) == count + 1
    assert bench.gate.counts["early"] == 99
    # One late tick is made up for.
    bench = moving()
    bench.tick(0.9, 2.0, after_s=1.4 * DT)
    bench.tick(0.9, 2.0, after_s=0.6 * DT)
    assert bench.gate.counts["early"] == 0


@pytest.mark.parametrize("jump", [-0.001, -5.0, math.nan, math.inf, -math.inf])
def test_a_clock_that_jumps_latches_and_the_stop_goes_on(jump: float) -> None:
    """The stop needs no clock: one step a tick."""
    bench = moving()
    bench.tick(0.9, 2.0, after_s=jump)
    assert bench.kind() == "clock"
    for _ in range(60):
        bench.tick(0.9, 2.0)
    x = np.array(bench.robot.written[-90:])
    assert (np.abs(np.diff(x, 2, axis=0)) <= np.array([5, 10]) * DT**2 * (1 + 1e-9)).all()
    assert bench.gate.at_rest


def test_a_clock_that_raises_latches() -> None:
    """It is one without a number."""
    bench = moving()
    del bench.now
    bench.gate.heartbeat()
    assert bench.kind() == "clock"


def test_a_failed_write_latches_and_halts() -> None:
    """Nothing is sent after it; a halt that fails is tried again at each tick."""
    bench = moving()
    bench.robot.write_error = ConnectionError("cable")
    bench.robot.halt_error = OSError("no cable")
    bench.tick(0.9, 2.0)
    fault = bench.gate.fault
    assert fault is not None
    assert fault.kind == "robot"
    for word in ("ConnectionError: cable", "OSError: no cable", "torque stays on"):
        assert word in fault.reason
    count = len(bench.robot.written)
    bench.tick(0.9, 2.0)
    assert bench.robot.halts == 2
    bench.robot.halt_error = None
    bench.tick(0.9, 2.0)
    bench.tick(0.9, 2.0)
    assert bench.robot.halts == 3
    assert len(bench.robot.written) == count
    bench.robot.write_error = None
    bench.gate.reset(bench.reading(0.1, 0.2))
    assert bench.tick(0.1, 0.2).tolist() == [0.1, 0.2]


def test_a_later_fault_of_the_robot_names_the_earlier_one() -> None:
    """The operator needs both."""
    bench = moving()
    bench.gate.stop("the key was pressed")
    bench.tick(0.9, 2.0)
    bench.robot.write_error = ConnectionError("cable")
    bench.tick(0.9, 2.0)
    assert bench.gate.fault is not None
    assert "cable; before that: the key was pressed" in bench.gate.fault.reason


def test_an_interrupt_during_a_write_leaves_the_gate_usable() -> None:
    """The command counts as sent."""
    bench = moving()
    bench.robot.write_error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench.tick(0.9, 2.0)
    assert (bench.robot.written[-1] == bench.gate.command).all()
    bench.robot.write_error = None
    bench.tick(0.9, 2.0)
    assert bench.kind() is None


def test_outside_its_limits_the_gate_is_latched_until_acknowledged() -> None:
    """Nothing is written before; then only the dimension that is outside moves, inwards."""
    bench = Bench().start(1.5, 0.5)
    assert bench.gate.fault is not None
    assert bench.gate.fault.kind == "outside"
    assert "pan at 1.5, limits -1 to 1" in bench.gate.fault.reason
    bench.tick(0.0, 0.0)
    assert bench.robot.written == []
    bench.gate.acknowledge_outside()
    assert bench.gate.mode == "returning"
    for _ in range(100):
        bench.tick(0.5, -1.0)
        if bench.gate.mode == "running":
            break
    x = np.array(bench.robot.written)
    assert (np.diff(x[:, 0]) <= 0).all()
    # The last one is the first of the mode that runs.
    assert (x[:-1, 1] == 0.5).all()
    assert x[-1, 0] <= 1.0
    assert np.abs(np.diff(x[:, 0], 2)).max() <= 5 * DT**2 * (1 + 1e-9)
    for _ in range(200):
        bench.tick(0.5, -1.0)
    assert bench.gate.command.tolist() == [0.5, -1.0]


def test_only_a_robot_outside_is_acknowledged() -> None:
    """It is no way around a reset."""
    bench = moving()
    with pytest.raises(SafetyError):
        bench.gate.acknowledge_outside()
    bench.tick(math.nan, 0.0)
    with pytest.raises(SafetyError):
        bench.gate.acknowledge_outside()


def test_a_robot_far_beyond_all_numbers_is_refused() -> None:
    """A reading of 1e300 is a broken sensor: no step from there can be written down."""
    with pytest.raises(ValueError, match="'pan': 64-bit numbers do not resolve"):
        Bench().start(1e300, 0.0)


def test_the_gates_state_is_its_own() -> None:
    """What a caller or a robot does with an array that it was given changes nothing."""
    bench = Bench().start()
    written = bench.tick(0.001, 0.001)
    written[:] = math.nan
    bench.robot.written[-1][:] = math.nan
    command = np.array([0.002, 0.002])
    bench.now += DT
    bench.gate.write(command, observed_s=bench.now, expires_s=bench.now)
    command[:] = math.nan
    assert bench.gate.command.tolist() == [0.002, 0.002]


def test_what_raises_while_the_next_command_is_computed_latches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gate still brakes; where not even a stop can be computed, the robot is halted."""
    bench = moving()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("ruckig")

    before = np.array(bench.robot.written[-2:])
    monkeypatch.setattr(Axis, "toward", broken)
    bench.tick(0.9, 2.0)
    assert bench.kind() == "motion"
    x = np.array([*before, bench.robot.written[-1]])
    assert np.diff(x, 2, axis=0)[0] == pytest.approx(np.array([-5, -10]) * DT**2)
    monkeypatch.setattr(Axis, "brake", broken)
    count = len(bench.robot.written)
    bench.tick(0.9, 2.0)
    assert bench.robot.halts == 1
    assert len(bench.robot.written) == count


@pytest.mark.parametrize("begin", ["start", "reset"])
def test_a_position_that_is_limited_as_a_displacement_is_refused(begin: str) -> None:
    """Its stop would be a command of 0: the joint would drive there at once."""
    bench = Bench(replace(LIMITS, kinds=("position", "displacement")))
    if begin == "reset":
        bench.start(0.5, 0.0)
        bench.gate.stop("somebody moves the arm")
        bench.tick(0.0, 0.0)
    commands = len(bench.robot.written)
    with pytest.raises(LimitsError, match=r"measures a position: \{'lift': 0.25\}; state kind ="):
        getattr(bench.gate, begin)(bench.reading(0.5, 0.25))
    assert bench.gate.mode == ("idle" if begin == "start" else "latched")
    assert len(bench.robot.written) == commands


def test_limits_for_another_robot_are_refused() -> None:
    """Names, units and rate have to be the robot's, and no limit wider than its contract's."""
    names = replace(RANGE, names=("pan", "tilt"))
    for limits in (replace(LIMITS, action=names), replace(LIMITS, control_rate_hz=25.0)):
        with pytest.raises(ContractMismatchError, match="robot 'arm' has"):
            SafetyGate(NotingRobot(), limits)
    wide = replace(LIMITS, action=replace(RANGE, high=(1.0, 2.5)))
    with pytest.raises(ValueError, match=r"range of 'lift' is .* wider than the contract's"):
        SafetyGate(NotingRobot(), wide)


def test_a_robot_without_motion_limits_does_not_run() -> None:
    """They are never guessed."""
    with pytest.raises(ValueError, match="has no motion limits: give a limits file"):
        SafetyLimits.from_spec(SPEC)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_times_of_the_configuration(value: float) -> None:
    """A time-out of 0 or of no number is none."""
    for name in ("heartbeat_s", "max_observation_age_s"):
        with pytest.raises(ValueError, match=name):
            SafetyConfig(**{name: value})


def test_a_reading_without_a_time_is_not_fresh() -> None:
    """Whatever stands there."""
    with pytest.raises(SafetyError, match="read the robot again"):
        Bench().gate.start(Reading({}, np.zeros(2), np.zeros(2), "now"))  # type: ignore[arg-type]
