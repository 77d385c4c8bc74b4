"""Our tasks as robots in real time."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from robot_doubles import Clock
from vla_runtime.contract import Robot
from vla_runtime.robots.degraded import DegradedRobot

from sim.robot import TaskOptions, TaskRobot, make
from sim.tasks.registry import make_task

SEED = 1_000_003
PERIOD_S = 0.04
pytestmark = pytest.mark.render


def test_an_episode_that_there_cannot_be_is_refused() -> None:
    """By the name of the option; numpy's own message names none."""
    for options, message in (("--seed=-5", "seed starts at 0"), ("--image_size=0", "image_size")):
        with pytest.raises(ValueError, match=message):
            make(f"FetchPush {options}")


def connected(clock: Clock, task: str = "FetchReach") -> TaskRobot:
    """A robot at the beginning of its episode."""
    robot = TaskRobot(task, TaskOptions(seed=SEED, image_size=16), clock=clock)
    robot.connect()
    return robot


def test_commands_on_time_are_the_simulated_episode() -> None:
    """Bit for bit, with jitter below half a period; success is the task's."""
    clock = Clock()
    robot = connected(clock)
    assert isinstance(robot, Robot)
    task = make_task("FetchReach", 16)
    data = task.make_data()
    episode = task.reset(data, SEED)
    assert robot.instruction == episode.instruction
    begin, jitter = clock(), np.random.default_rng(0).uniform(0, 0.015, 50)
    for step in range(50):
        clock.now = begin + step * PERIOD_S + jitter[step]
        reading = robot.read()
        np.testing.assert_array_equal(reading.proprio, task.proprio(data))
        assert not reading.position.any(), "displacements stand at 0"
        assert reading.time_s == clock()
        action = task.expert_action(data, episode)
        robot.write(action.astype(np.float64))
        task.step(data, episode, action)
    assert robot.success
    assert len(robot.actions) == 50
    robot.disconnect()
    assert robot.success, "readable afterwards"


def test_the_world_goes_on_without_commands() -> None:
    """By a step at rest for each period without one, but never before the first."""
    clock = Clock()
    robot = connected(clock, "FetchPush")
    clock.sleep(3.0)
    robot.read()
    assert robot.actions == []
    command = np.array([1.0, 0.0, 0.0, -0.5])
    robot.write(command)
    clock.sleep(3.5 * PERIOD_S)
    robot.read()
    assert len(robot.actions) == 1 + 2
    # Displacements rest at 0; the gripper has no rest and repeats its command.
    np.testing.assert_array_equal(robot.actions[2], np.array([0, 0, 0, -0.5], np.float32))
    clock.sleep(100.0)
    robot.read()
    assert len(robot.actions) == 3 + 10, "long pauses are left out"
    robot.halt()
    clock.sleep(PERIOD_S)
    robot.read()
    np.testing.assert_array_equal(robot.actions[-1], robot.actions[2], "halting changes nothing")
    robot.disconnect()


def test_what_is_no_command_is_refused() -> None:
    """And after disconnecting, everything is."""
    robot = connected(Clock())
    for bad in ([np.nan, 0, 0, 0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="4 finite numbers"):
            robot.write(np.array(bad))
    robot.halt()
    robot.disconnect()
    robot.disconnect()
    with pytest.raises(ConnectionError, match="not connected"):
        robot.read()


def test_the_film_shows_the_commands(tmp_path: Path) -> None:
    """One frame a control step, and the first; drawn anew from what was executed."""
    clock = Clock()
    robot = connected(clock)
    for _ in range(3):
        robot.write(np.array([1.0, 0.0, 0.0, 0.0]))
        clock.sleep(PERIOD_S)
    robot.disconnect()
    robot.film(tmp_path / "run.mp4", size=64)
    with av.open(str(tmp_path / "run.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape == (64, 128, 3)


def test_limits_let_the_task_through_and_options_reach_it() -> None:
    """The largest displacement may reverse within a step."""
    robot = make(f"FetchReach --seed={SEED} --image_size=16 --latency_s=0.02")
    assert isinstance(robot, DegradedRobot)
    motion = robot.spec.motion
    assert motion is not None
    assert motion.kinds == ("displacement",) * 4
    assert motion.velocity[0] == pytest.approx(1.0 / PERIOD_S)
    assert motion.acceleration[0] == pytest.approx(2.0 / PERIOD_S**2)
    assert robot.spec.cameras[0].height == 16
    with pytest.raises(ValueError, match="valid names"):
        make("FetchFly")
