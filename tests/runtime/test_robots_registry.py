"""Robots by name, their options, and what makes a simulated one late and noisy."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_doubles import Clock, CountingRobot, write_arm
from vla_runtime.contract import Robot
from vla_runtime.robots import registry
from vla_runtime.robots.degraded import Degradation, DegradedRobot, degrade
from vla_runtime.robots.mujoco_robot import MujocoOptions, MujocoRobot
from vla_runtime.robots.options import parse_options, split_argument

import sim.robot

ROOT = Path(__file__).parents[2]


def test_a_robot_is_made_by_name(tmp_path: Path) -> None:
    """Kind, argument and options; what is spoiled is spoiled around the robot."""
    path = write_arm(tmp_path)
    plain = registry.make_robot(f"mujoco:{path} --rate_hz=20 --cameras=")
    assert isinstance(plain, MujocoRobot)
    assert isinstance(plain, Robot)
    assert plain.spec.control_rate_hz == 20
    spoiled = registry.make_robot(f"mujoco:'{path}' --cameras= --latency_s=0.1")
    assert isinstance(spoiled, DegradedRobot)
    assert isinstance(spoiled, Robot)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toaster", "unknown robot 'toaster'; known kinds: .*lerobot, mujoco"),
        ("mujoco", "needs a model"),
        ("mujoco:missing.xml", "no robot model missing.xml"),
        ("mujoco:arm.xml --rat=3", "--rate_hz, --cameras"),
        ("mujoco:arm.xml --rate_hz=fast", "invalid float value: 'fast'"),
        ("mujoco:arm.xml --rate_hz=nan", "rate_hz must be positive"),
        ("mujoco:arm.xml --dropped_frames=2", "dropped_frames must lie from 0 to 1"),
        ("mujoco:arm.xml --noise=-1", "noise must be at least 0"),
    ],
)
def test_bad_names_and_options_are_refused(text: str, message: str) -> None:
    """With what is valid, before anything is connected."""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        registry.make_robot(text)


def test_other_packages_add_robots(monkeypatch: pytest.MonkeyPatch) -> None:
    """By entry point; a name that is taken is refused."""
    points = [metadata.EntryPoint("fetch", "sim.robot:make", registry.ENTRY_POINTS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert registry.make_robot("fetch:FetchReach").spec.robot == "fetch"
    points.append(metadata.EntryPoint("mujoco", "sim.robot:make", registry.ENTRY_POINTS))
    with pytest.raises(ValueError, match="the robot kind 'mujoco'"):
        registry.robot_kinds()


def test_this_repository_registers_its_tasks() -> None:
    """The entry point of pyproject.toml is what it should be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"][registry.ENTRY_POINTS].items()
    point = metadata.EntryPoint(name, value, registry.ENTRY_POINTS)
    assert (name, point.load()) == ("fetch", sim.robot.make)


def test_words_are_split_as_a_shell_splits_them() -> None:
    """The first word is no option; options may need no first word."""
    assert split_argument("'a b.xml' --x=1") == ("a b.xml", ["--x=1"])
    assert split_argument("--x=1") == ("", ["--x=1"])
    assert split_argument("") == ("", [])
    with pytest.raises(ValueError, match=r"robot argument .*No closing quotation"):
        split_argument("it's.xml")
    [options, degradation] = parse_options(
        "x", ["--width=8", "--noise", "0.5"], MujocoOptions, Degradation
    )
    assert (options, degradation) == (MujocoOptions(width=8), Degradation(noise=0.5))


def test_nothing_is_wrapped_without_need() -> None:
    """A seed alone spoils nothing."""
    robot = CountingRobot(Clock())
    assert degrade(robot, Degradation(noise_seed=4)) is robot


def test_a_late_reading_is_the_right_one_and_says_its_age() -> None:
    """The newest that is old enough."""
    clock = Clock()
    robot = DegradedRobot(CountingRobot(clock), Degradation(latency_s=0.05), clock)
    robot.connect()
    seen = []
    for _ in range(6):
        reading = robot.read()
        seen.append((int(reading.images["eye"][0, 0, 0]), round(clock() - reading.time_s, 3)))
        clock.sleep(0.02)
    # Read 1 is 0.06 s old at read 4: until then there is nothing older to show.
    assert seen == [(1, 0.0), (1, 0.02), (1, 0.04), (1, 0.06), (2, 0.06), (3, 0.06)]


def test_a_dropped_frame_carries_the_time_of_what_is_shown() -> None:
    """So that an age limit sees a camera that has frozen."""
    clock = Clock()
    robot = DegradedRobot(CountingRobot(clock), Degradation(), clock)
    robot.connect()
    first = robot.read()
    robot.degradation = Degradation(dropped_frames=1.0)
    clock.sleep(0.5)
    frozen = robot.read()
    assert frozen.time_s == first.time_s
    np.testing.assert_array_equal(frozen.images["eye"], first.images["eye"])
    assert frozen.position[0] != first.position[0], "the joints are measured all the same"
    robot.degradation = Degradation()
    assert robot.read().time_s == clock()


def test_noise_has_the_size_that_was_asked_for() -> None:
    """As a share of each range, and in grey levels; the same seed is the same noise."""

    def spoil(**settings: Any) -> list[Any]:
        clock = Clock()
        robot = DegradedRobot(CountingRobot(clock), Degradation(**settings), clock)
        robot.connect()
        return [robot.read() for _ in range(200)]

    readings = spoil(noise=0.01, image_noise=8.0)
    truth = np.arange(1, 201)[:, None] / 100
    errors = np.array([reading.position for reading in readings]) - truth
    np.testing.assert_allclose(errors.std(axis=0), [0.02, 0.005], rtol=0.2)  # 1% of 2 and 0.5
    pixels = np.array([reading.images["eye"] for reading in readings[50:]], float)
    assert 6 < (pixels - np.arange(51, 201)[:, None, None, None]).std() < 10
    assert readings[3].images["eye"].dtype == np.uint8
    again = spoil(noise=0.01, image_noise=8.0)
    np.testing.assert_array_equal(again[7].position, readings[7].position)
    clean = spoil(latency_s=0.0)
    np.testing.assert_array_equal([r.position[0] for r in clean], truth[:, 0])


def test_commands_pass_unchanged() -> None:
    """And so do halting and disconnecting."""
    robot = CountingRobot(Clock())
    spoiled = DegradedRobot(robot, Degradation(noise=0.5))
    command = np.array([0.1, 0.2])
    spoiled.connect()
    spoiled.write(command)
    spoiled.halt()
    spoiled.disconnect()
    assert robot.calls[0] == "connect"
    assert robot.calls[1] is command
    assert robot.calls[2:] == ["halt", "disconnect"]
    assert spoiled.halted == robot.halted
