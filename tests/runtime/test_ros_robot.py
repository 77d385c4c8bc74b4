"""The ROS robot against a bridge and an arm on a loopback: what it reads, sends and holds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ros_arm import COMMAND, FAULTS, seconds
from ros_setup import FILE, SPEC, STATE_TIMEOUT_S, Setup, ros_setup, wait_for
from vla_runtime.contract import MotionLimits, Observation, Robot, VectorSpec


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    """Connected."""
    with ros_setup(tmp_path) as setup:
        setup.robot.connect()
        yield setup


def test_it_is_a_robot(setup: Setup) -> None:
    """The protocol's methods, and the limits of its file."""
    assert isinstance(setup.robot, Robot)
    assert setup.robot.spec.motion == MotionLimits(
        ("position",) * 3, (60.0, 2.0, 100.0), (600.0, 20.0, 1000.0)
    )


def test_readings_are_in_the_units_of_the_contract(setup: Setup) -> None:
    """Radians become degrees, or what a joint's scale and offset say; images have their colours."""
    setup.arm.target.update(shoulder_joint=0.5, elbow_joint=-0.5, finger_joint=0.1)
    expected = [np.degrees(0.5), -0.5, 50 * 0.1 + 10]
    wait_for(lambda: np.allclose(setup.robot.read().position, expected))
    reading = setup.robot.read()
    assert reading.position.dtype == np.float64
    assert reading.proprio.dtype == np.float32
    np.testing.assert_allclose(reading.proprio, expected, rtol=1e-6)
    Observation(reading.images, reading.proprio, "").validate(SPEC)
    assert abs(reading.images["front"].mean(axis=(0, 1)) - (200, 50, 100)).max() < 3
    assert 0 <= time.monotonic() - reading.time_s < 2.0


def test_a_command_moves_the_arm_where_it_says(setup: Setup) -> None:
    """Contract units go back to ROS units, one point, stamped in the robot's time."""
    setup.robot.write(np.array([30.0, 0.4, 60.0]))
    wait_for(lambda: bool(setup.arm.commands))
    [command] = setup.arm.commands
    assert command["joint_names"] == ["shoulder_joint", "elbow_joint", "finger_joint"]
    [point] = command["points"]
    np.testing.assert_allclose(point["positions"], [np.radians(30), 0.4, 1.0])
    assert seconds(point["time_from_start"]) == pytest.approx(0.05)
    assert abs(seconds(command["header"]["stamp"]) - time.time()) < 0.5
    wait_for(lambda: np.allclose(setup.robot.read().position, [30.0, 0.4, 60.0]))


def test_an_image_that_stays_while_the_arm_moves_is_old(setup: Setup) -> None:
    """Whatever its stamp says; one that stays while the arm rests is not."""
    FAULTS["the camera stamps its last image anew"](setup.arm)
    time.sleep(0.1)
    since_s = time.monotonic()
    assert setup.robot.read().time_s > since_s - 0.2
    setup.robot.write(np.array([30.0, 0.4, 60.0]))
    wait_for(lambda: np.allclose(setup.robot.read().position, [30.0, 0.4, 60.0]))
    assert setup.robot.read().time_s < time.monotonic() - 0.1


def test_reading_waits_a_little_for_what_is_on_its_way(setup: Setup) -> None:
    """After this process stood still, messages wait to be taken; half a control period at most."""
    setup.arm.running["state"] = False
    wait_for(lambda: setup.robot._problem() is not None)
    setup.robot._longest_wait_s = 10.0
    threading.Timer(0.05, setup.arm.running.update, kwargs={"state": True}).start()
    assert time.monotonic() - setup.robot.read().time_s < STATE_TIMEOUT_S


def test_receiving_threads_run_as_the_thread_that_reads(setup: Setup) -> None:
    """Batch scheduling here, which needs no permission; FIFO in a real run."""
    seen: list[int] = []

    def read() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        setup.robot.read()
        seen.append(os.sched_getscheduler(bridge._thread.native_id or 0))

    bridge = setup.robot._bridge
    assert bridge
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_BATCH]


def test_a_late_command_has_expired(setup: Setup) -> None:
    """What waits in a stopped bridge is dropped by the controller when the bridge goes on."""
    setup.bridge.pause()
    setup.robot.write(np.array([30.0, 0.4, 60.0]))  # the state is still fresh
    time.sleep(0.15)
    setup.bridge.resume()
    wait_for(lambda: setup.arm.expired == 1)
    assert not setup.arm.commands


def test_halt_keeps_the_last_command(setup: Setup) -> None:
    """However far the arm is behind it, and where it sags to; nothing before the first command."""
    setup.robot.halt()
    assert "nothing more is sent" in setup.robot.halted
    setup.robot.write(np.array([80.0, 0.0, 10.0]))
    wait_for(lambda: setup.robot.read().position[0] > 10)
    setup.robot.halt()
    setup.arm.position["shoulder_joint"] -= 0.1  # gravity
    time.sleep(0.05)
    setup.robot.halt()
    wait_for(lambda: len(setup.arm.commands) == 3)
    asked, *held = [command["points"][0]["positions"] for command in setup.arm.commands]
    assert asked[0] == pytest.approx(np.radians(80))
    assert held == [asked, asked]
    assert "hold the last command" in setup.robot.halted
    setup.robot.connect()
    setup.robot.halt()
    time.sleep(0.05)
    assert len(setup.arm.commands) == 3, "a new connection has commanded nothing"


def test_subscriptions_ask_for_the_newest_alone(setup: Setup) -> None:
    """Throttled to twice the control rate, a queue of one; errors are asked for."""
    sent = setup.bridge.received
    assert sent[0] == {"op": "set_level", "level": "warning"}
    subscriptions = [message for message in sent if message["op"] == "subscribe"]
    assert len(subscriptions) == 2
    for message in subscriptions:
        assert (message["throttle_rate"], message["queue_length"]) == (10, 1)


@pytest.mark.parametrize("compression", ["png", "cbor"])
def test_compressed_messages_say_the_same(compression: str, tmp_path: Path) -> None:
    """Whatever the bridge packs them into."""
    with ros_setup(tmp_path, f'compression = "{compression}"\n{FILE}') as setup:
        setup.robot.connect()
        reading = setup.robot.read()
        assert abs(reading.images["front"].mean(axis=(0, 1)) - (200, 50, 100)).max() < 3
        np.testing.assert_allclose(reading.position, [0.0, 0.0, 10.0])


def test_joints_may_come_in_any_order_and_from_several_publishers(tmp_path: Path) -> None:
    """They are found by name, each with its own age."""
    state = {"header": {}, "velocity": [], "effort": []}

    def shuffle(message: dict) -> dict:
        parts = list(zip(message["name"], message["position"], strict=True))
        turn = message["header"]["stamp"]["nsecs"] // 20_000_000 % 2
        parts = parts[:1] if turn else parts[:0:-1]
        names, positions = zip(*parts, ("wheel", float("nan")), strict=True)
        return state | message | {"name": [*names], "position": [*positions], "velocity": []}

    with ros_setup(tmp_path, prepare=lambda arm: setattr(arm, "change", shuffle)) as setup:
        setup.arm.target.update(shoulder_joint=0.5, elbow_joint=-0.5, finger_joint=0.1)
        setup.robot.connect()
        wait_for(lambda: np.allclose(setup.robot.read().position, [np.degrees(0.5), -0.5, 15.0]))


def test_displacements_go_to_an_array_as_they_are(tmp_path: Path) -> None:
    """A node of the robot moves by them; halting is a displacement of zero."""
    spec = replace(
        SPEC,
        action=VectorSpec(("dx", "finger"), ("0.05 m", "1"), (-1.0, 0.0), (1.0, 100.0)),
        motion=MotionLimits(("displacement", "position"), (1.0, 100.0), (1.0, 100.0)),
    )
    text = FILE[: FILE.index("[motion]")].replace(
        f'topic = "{COMMAND}"', 'topic = "/delta"\ntype = "std_msgs/Float64MultiArray"'
    )
    got: list[list[float]] = []
    with ros_setup(tmp_path, text, spec) as setup:
        callback = lambda message: got.append(message["data"])  # noqa: E731
        setup.bridge.ros.subscribe("/delta", "std_msgs/Float64MultiArray", callback)
        setup.robot.connect()
        np.testing.assert_allclose(setup.robot.read().position, [0.0, 10.0])
        setup.robot.write(np.array([0.5, 60.0]))
        setup.robot.halt()
        wait_for(lambda: len(got) == 2)
    np.testing.assert_allclose(got, [[0.5, 1.0], [0.0, 1.0]])


def test_a_state_may_have_no_stamps(tmp_path: Path) -> None:
    """Where the file says so: the arrival counts, and commands start when they come."""

    def unstamp(message: dict) -> dict:
        return message | {"header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}}

    prepare = lambda arm: setattr(arm, "change", unstamp)  # noqa: E731
    text = FILE.replace("connect_timeout_s = 3.0", "connect_timeout_s = 0.5")
    with (
        ros_setup(tmp_path, text, prepare=prepare) as setup,
        pytest.raises(ConnectionError, match="stamps = false"),
    ):
        setup.robot.connect()
    with ros_setup(tmp_path, f"stamps = false\n{FILE}", prepare=prepare) as setup:
        setup.robot.connect()
        setup.robot.write(np.array([0.0, 0.4, 10.0]))
        wait_for(lambda: bool(setup.arm.commands))
        assert setup.arm.commands[0]["header"]["stamp"] == {"secs": 0, "nsecs": 0}


def test_a_second_connection_keeps_nothing_of_the_first(setup: Setup) -> None:
    """Reconnecting is explicit, and waits for fresh measurements again."""
    setup.arm.running["state"] = False
    setup.robot.disconnect()
    with pytest.raises(ConnectionError, match="not connected"):
        setup.robot.read()
    setup.arm.running["state"] = True
    setup.robot.connect()
    setup.robot.connect()
    wait_for(lambda: len(setup.bridge.sessions) == 1)
    setup.robot.read()


@pytest.mark.parametrize("command", [[1.0, 2.0], [0.0, np.nan, 0.0], [0.0, np.inf, 0.0]])
def test_only_finite_commands_of_the_right_length_are_sent(
    command: list[float], setup: Setup
) -> None:
    """JSON has no word for NaN: it would be the bridge that refuses it, in silence."""
    before = len(setup.bridge.received)
    with pytest.raises(ValueError, match="shoulder"):
        setup.robot.write(np.array(command))
    assert len(setup.bridge.received) == before
