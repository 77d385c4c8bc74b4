"""Closed form and Ruckig, one dimension at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_runtime.safety.jerk import JerkAxis, MotionError
from vla_runtime.safety.motion import Axis, DisplacementAxis, Motion, stopping_speed

DT = 0.02
positive = st.floats(1e-3, 1e3)


def stop_distance(speed: float, acceleration: float, dt: float) -> float:
    """What the quickest stop covers, step by step."""
    distance = 0.0
    while speed > 0:
        distance += speed * dt
        speed -= acceleration * dt
    return distance


def drive(axis: Axis, targets: list[float], motion: Motion | None = None) -> np.ndarray:
    """The commands for a stream of targets, from rest at 0."""
    motion = axis.rest(0.0) if motion is None else motion
    commands = []
    for target in targets:
        motion = axis.toward(motion, target)
        commands.append(motion.command)
    return np.array(commands)


def derivatives(commands: np.ndarray, start: float = 0.0) -> list[np.ndarray]:
    """Velocity, acceleration and jerk of commands that begin at rest."""
    x = np.concatenate([[start] * 3, commands])
    return [np.diff(x, n) / DT**n for n in (1, 2, 3)]


@given(steps=st.floats(0, 300), acceleration=positive, dt=st.floats(1e-3, 0.2))
def test_stopping_speed_uses_all_the_room_and_no_more(
    steps: float, acceleration: float, dt: float
) -> None:
    """The stop from the speed ends at the limit."""
    room = steps * acceleration * dt * dt
    speed = stopping_speed(room, acceleration, dt)
    assert stop_distance(speed, acceleration, dt) == pytest.approx(room, rel=1e-9, abs=1e-12)


def test_stopping_speed_by_hand() -> None:
    """Three, two, one steps of A dt^2: 6 of room; and half a step."""
    assert stopping_speed(6 * 10 * DT**2, 10, DT) == pytest.approx(3 * 10 * DT)
    assert stopping_speed(0.5 * 10 * DT**2, 10, DT) == pytest.approx(0.5 * 10 * DT)
    assert stopping_speed(0.0, 10, DT) == 0


def test_the_continuous_bound_would_overshoot() -> None:
    """Why the discrete distance: from the continuous one's speed the stop ends beyond the limit."""
    room = 0.1
    continuous = math.sqrt(2 * 10 * room)
    assert stop_distance(continuous, 10, DT) > room * 1.1


AXES = {
    "closed form": lambda: Axis(-1.0, 1.0, 1.0, 5.0, DT),
    "ruckig": lambda: JerkAxis(-1.0, 1.0, 1.0, 5.0, 100.0, DT),
}


@pytest.fixture(params=AXES)
def axis(request: pytest.FixtureRequest) -> Axis:
    """One dimension in [-1, 1] with 1 unit/s and 5 unit/s^2."""
    return AXES[request.param]()


def test_a_stream_within_the_limits_passes_unchanged(axis: Axis) -> None:
    """Bit for bit: a policy that behaves does not notice the gate."""
    times = np.arange(400) * DT
    # Its jerk begins at 0, and stays below 100.
    targets = list(0.5 * np.sin(times) * (1 - np.exp(-times)) ** 3)
    assert (drive(axis, targets) == targets).all()


def test_a_jump_is_reached_without_overshoot(axis: Axis) -> None:
    """The command arrives at a target that stands still and stays."""
    commands = drive(axis, [0.7] * 200)
    assert commands.max() == 0.7
    assert commands[-1] == 0.7
    # 0.7 at 1 unit/s, and the ramps.
    assert np.argmax(commands == 0.7) * DT < 1.2


def test_a_moving_target_is_caught_up_with(axis: Axis) -> None:
    """After a jump the stream is followed without lag, not by a stopping distance behind it."""
    targets = [0.1 + 0.3 * DT * k for k in range(120)]
    commands = drive(axis, targets)
    assert commands[-1] == pytest.approx(targets[-1], abs=1e-9)


def test_a_limit_is_reached_exactly_and_never_passed(axis: Axis) -> None:
    """Whatever pushes, the last bit of the limit holds."""
    commands = drive(axis, [1e308] * 200)
    assert commands.max() == 1.0
    commands = drive(axis, [-1.0] * 200)
    assert commands.min() == -1.0


@pytest.mark.parametrize("offset", [-10.0, 10.0])
def test_a_range_far_from_zero(offset: float) -> None:
    """It is used like any other."""
    limits = (offset - 1, offset + 1, 1.0, 5.0)
    for axis in (Axis(*limits, DT, offset), JerkAxis(*limits, 100.0, DT, offset)):
        for target in (offset + 1, offset - 1):
            assert drive(axis, [target] * 200, axis.rest(offset))[-1] == target


def test_flip_flop_stays_in_a_range_narrower_than_a_stop() -> None:
    """From full speed a stop takes 0.1; the range is 0.01 wide."""
    for axis in (Axis(0.0, 0.01, 1.0, 5.0, DT), JerkAxis(0.0, 0.01, 1.0, 5.0, 100.0, DT)):
        commands = drive(axis, [0.01, 0.01, 0.01, 0.0, 0.0] * 100)
        assert commands.min() >= 0
        assert commands.max() <= 0.01
        assert np.abs(derivatives(commands)[1]).max() <= 5.0


def test_the_tightest_limits_are_used_in_full(axis: Axis) -> None:
    """Velocity and acceleration reach their limits: the gate does not halve the robot's speed."""
    velocity, acceleration, _ = derivatives(drive(axis, [1.0] * 200))
    assert velocity.max() == pytest.approx(1.0)
    assert acceleration.max() == pytest.approx(5.0)
    assert acceleration.min() == pytest.approx(-5.0)


def test_jerk_is_kept_and_used() -> None:
    """The third difference reaches its limit, not more."""
    _, _, jerk = derivatives(drive(JerkAxis(-1, 1, 1, 5, 100, DT), [1.0] * 40 + [-1.0] * 80))
    assert 99 < np.abs(jerk).max() <= 100 * (1 + 1e-9)


def test_braking_follows_its_path(axis: Axis) -> None:
    """What the workspace was checked for is what happens."""
    motion = axis.rest(0.0)
    for _ in range(20):
        motion = axis.toward(motion, 0.9)
    path = axis.stop_path(motion)
    assert len(path) >= 10
    for expected in path:
        assert not axis.at_rest(motion)
        motion = axis.brake(motion)
        assert motion.command == pytest.approx(expected, abs=1e-12)
    assert axis.at_rest(axis.brake(motion))


def test_outside_its_range_a_dimension_only_comes_back() -> None:
    """From 0.5 beyond: monotonic, within the limits, and then inside for good."""
    for axis in (
        Axis(-1.0, 1.0, 1.0, 5.0, DT, start=1.5),
        JerkAxis(-1.0, 1.0, 1.0, 5.0, 100.0, DT, start=1.5),
    ):
        motion = axis.rest(1.5)
        assert axis.brake(motion).command == 1.5
        commands = drive(axis, [2.0] * 150, motion)
        velocity, acceleration, _ = derivatives(commands, start=1.5)
        # Ruckig lands within 1e-8, here below the limit, and puts that right.
        assert np.diff(commands).max() <= 1e-8
        assert commands[-1] == 1.0
        assert np.abs(velocity).max() <= 1.0
        assert np.abs(acceleration).max() <= 5.0


def test_displacements_are_velocities() -> None:
    """1 unit/s is 0.02 a step, and 5 unit/s^2 changes it by 0.002 a step; the range may be less."""
    axis = DisplacementAxis(-0.05, 0.05, 1.0, 5.0, None, DT)
    commands = drive(axis, [0.05] * 20 + [-0.05] * 40)
    assert commands.max() == pytest.approx(0.02)
    assert np.abs(np.diff(commands, prepend=0)).max() == pytest.approx(0.002)
    assert drive(DisplacementAxis(-0.01, 0.01, 1.0, 5.0, None, DT), [1.0] * 9).max() == 0.01


def test_displacements_keep_jerk() -> None:
    """The second difference of displacements is jerk times dt^3."""
    axis = DisplacementAxis(-0.05, 0.05, 1.0, 5.0, 100.0, DT)
    commands = drive(axis, [0.05] * 30 + [-0.05] * 50)
    jerk = np.diff(commands, 2, prepend=[0, 0]) / DT**3
    assert np.abs(jerk).max() == pytest.approx(100.0)
    assert np.abs(jerk).max() <= 100.0
    motion = axis.rest(0.0)._replace(command=commands[-1])
    assert axis.stop_path(motion)[-1] == 0


def test_no_negative_zero() -> None:
    """-0.0 is a command like 0.0, and is sent as it."""
    for axis in (AXES["closed form"](), AXES["ruckig"](), DisplacementAxis(-1, 1, 1, 5, None, DT)):
        commands = drive(axis, [-0.0] * 3)
        assert (commands == 0).all()
        assert not np.signbit(commands).any()


def test_limits_below_what_numbers_resolve_are_refused() -> None:
    """At 1 kHz and 1e6 units, 1e-6 unit/s^2 changes a command by less than its last bit."""
    with pytest.raises(ValueError, match="do not resolve the acceleration limit 1e-06 "):
        Axis(-1e6, 1e6, 1.0, 1e-6, 1e-3)
    with pytest.raises(ValueError, match="do not resolve the jerk limit "):
        JerkAxis(-1e6, 1e6, 1e5, 1e3, 0.1, 1e-3)


def test_ruckig_errors_are_one_kind() -> None:
    """Its exception, and a result that is no number."""
    axis = JerkAxis(-1.0, 1.0, 1.0, 5.0, 100.0, DT)
    with pytest.raises(MotionError, match="Ruckig finds no trajectory"):
        axis.brake(axis.rest(0.0)._replace(velocity=math.nan))
    with pytest.raises(MotionError, match="Ruckig finds no trajectory"):
        axis.toward(axis.rest(math.inf), 0.0)


@settings(max_examples=50)
@given(
    targets=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60),
    jerk=st.none() | st.floats(1, 1e4),
    velocity=st.floats(0.01, 100),
    acceleration=st.floats(0.1, 1000),
)
def test_any_stream(
    targets: list[float], jerk: float | None, velocity: float, acceleration: float
) -> None:
    """Whatever comes, the differences of the commands keep the limits."""
    limits = (-1.0, 0.5, velocity, acceleration)
    axis = Axis(*limits, DT) if jerk is None else JerkAxis(*limits, jerk, DT)
    commands = drive(axis, targets)
    assert (commands >= -1.0).all()
    assert (commands <= 0.5).all()
    for values, limit in zip(
        derivatives(commands), (velocity, acceleration, jerk or math.inf), strict=True
    ):
        assert np.abs(values).max() <= limit * (1 + 1e-9)
