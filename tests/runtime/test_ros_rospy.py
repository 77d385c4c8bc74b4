"""The same robot against the real rospy, genpy and master, and roslibpy against the same bridge.

Debian 12: apt-get install python3-rospy python3-rosmaster python3-sensor-msgs
python3-trajectory-msgs python3-websockets. Elsewhere these tests are skipped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ros_arm import CAMERA, COMMAND, STATE, stamp_now
from ros_setup import FILE, Setup, jpegs, ros_setup, wait_for, write_files
from vla_runtime.contract import Observation
from vla_runtime.robots.ros import RosRobot, make

HERE = Path(__file__).parent
SYSTEM_PYTHON = "/usr/bin/python3"
NEEDED = "rospy, rosmaster, websockets, sensor_msgs.msg, trajectory_msgs.msg, std_msgs.msg"
# A node of ROS on a loaded machine.
START_S = 30.0


def rospy_trouble() -> str:
    """Why the real ROS is not here; empty when it is."""
    command = [SYSTEM_PYTHON, "-c", f"import {NEEDED}"]
    try:
        run = subprocess.run(command, env=system_environment(1), capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return run.stderr.strip().splitlines()[-1] if run.returncode else ""


def system_environment(master_port: int) -> dict[str, str]:
    """Nothing of this process's Python, and a master of the test's own."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    master = f"http://127.0.0.1:{master_port}"
    return kept | {"ROS_MASTER_URI": master, "ROS_HOSTNAME": "127.0.0.1"}


@dataclass
class RealRos:
    """Processes of a running ROS, what the arm executed, and our robot."""

    robot: RosRobot
    arm: subprocess.Popen[str]
    layer: subprocess.Popen[str]
    executed: list[list[float]]
    text: str
    folder: Path


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(stack: ExitStack, words: list[str], master_port: int) -> subprocess.Popen[str]:
    """A process on Debian's Python that ends with the test."""
    process = subprocess.Popen(
        [SYSTEM_PYTHON, *words],
        cwd=HERE,
        env=system_environment(master_port),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRos]:
    """Master, arm, bridge; started once, because that takes seconds."""
    if trouble := rospy_trouble():
        pytest.skip(f"the real rospy is not here: {trouble}")
    tmp_path = tmp_path_factory.mktemp("ros")
    (tmp_path / "image.jpg").write_bytes(jpegs()[0])
    file = write_files(tmp_path, FILE.replace("3.0", "20.0"))
    master_port = free_port()
    with ExitStack() as stack:
        master = "import rosmaster; rosmaster.rosmaster_main()"
        start(stack, ["-c", master, "--core", "-p", str(master_port)], master_port)
        wait_for(lambda: answers(master_port), START_S)
        arm = start(stack, ["ros_arm.py", str(tmp_path / "image.jpg")], master_port)
        layer = start(stack, ["ros_layer.py", "0", "--rospy"], master_port)
        assert arm.stdout
        assert layer.stdout
        assert arm.stdout.readline() == "ready\n"
        address = f"ws://127.0.0.1:{int(layer.stdout.readline())}"
        executed: list[list[float]] = []
        threading.Thread(target=follow, args=(arm.stdout, executed), daemon=True).start()
        robot = make(f"{address}?config={file}")
        yield RealRos(robot, arm, layer, executed, file.read_text(), tmp_path)


@pytest.fixture
def ros(started: RealRos) -> Iterator[RealRos]:
    """With the robot connected."""
    started.robot.connect()
    started.executed.clear()
    yield started
    started.robot.disconnect()


def follow(lines: Iterator[str], executed: list[list[float]]) -> None:
    """Collect the commands that the arm's process prints."""
    for line in lines:
        executed.append([float(word) for word in line.strip("[]\n").split(",")])


def error_of(action: Callable[[], object]) -> str:
    """The ConnectionError that it ends in; empty when it ends well."""
    try:
        action()
    except ConnectionError as error:
        return str(error)
    return ""


def test_real_messages_arrive_and_real_commands_move_the_arm(ros: RealRos) -> None:
    """JointState, CompressedImage and JointTrajectory as genpy writes and reads them."""
    reading = ros.robot.read()
    Observation(reading.images, reading.proprio, "").validate(ros.robot.spec)
    assert abs(reading.images["front"].mean(axis=(0, 1)) - (200, 50, 100)).max() < 3
    goal = np.array([20.0, 0.3, 40.0])

    def arrived() -> bool:
        # Again and again, as a loop does: rospy loses what is published before it has connected.
        ros.robot.write(goal)
        return bool(np.allclose(ros.robot.read().position, goal))

    wait_for(arrived, START_S)
    np.testing.assert_allclose(ros.executed[-1], [np.radians(20), 0.3, 0.6])
    ros.robot.halt()
    assert "was told to hold" in ros.robot.halted


def test_a_stopped_bridge_process(ros: RealRos) -> None:
    """SIGSTOP: sends still succeed, so only the state's age tells; nothing is executed later."""
    os.kill(ros.layer.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: bool(error_of(ros.robot.read)))
        for _ in range(10):
            with pytest.raises(ConnectionError, match="nothing usable of joint"):
                ros.robot.write(np.array([30.0, 0.5, 60.0]))
    finally:
        os.kill(ros.layer.pid, signal.SIGCONT)
    wait_for(lambda: not error_of(ros.robot.read))
    assert ros.executed == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            f'"{CAMERA}"',
            f'"{CAMERA}"\ntype = "sensor_msgs/Image"',
            f"{CAMERA} on the robot: sensor_msgs/CompressedImage",
        ),
        (f'"{CAMERA}"', '"/nothing"', "nothing usable of camera 'front' at all"),
        (f'"{COMMAND}"', '"/nobody"', "nobody on the robot listens to the command topic /nobody"),
    ],
)
def test_topics_and_types_that_the_master_does_not_know(
    old: str, new: str, expected: str, started: RealRos
) -> None:
    """What rosapi says of them is in the error."""
    file = write_files(started.folder, started.text.replace("20.0", "1.0").replace(old, new))
    address = started.robot._config.address
    with pytest.raises(ConnectionError, match=expected):
        make(f"{address}?config={file}").connect()


def test_killed_processes(ros: RealRos) -> None:
    """The driver's death leaves a bridge that works, and silence; the bridge's a closed socket."""
    ros.arm.kill()
    wait_for(lambda: bool(error_of(ros.robot.read)))
    with pytest.raises(ConnectionError, match="nothing usable of joint"):
        ros.robot.write(np.array([0.0, 0.0, 10.0]))
    ros.robot.halt()
    assert "nothing usable of joint" in ros.robot.halted
    ros.layer.kill()
    wait_for(lambda: "is lost" in error_of(ros.robot.read))
    ros.robot.halt()
    assert "is lost" in ros.robot.halted


def test_roslibpy_speaks_with_the_same_bridge(tmp_path: Path) -> None:
    """Another client sees the same robot, so that the layer is no dialect of ours."""
    roslibpy = pytest.importorskip("roslibpy")
    with ros_setup(tmp_path) as setup:
        client = roslibpy.Ros("127.0.0.1", setup.bridge.port)
        client.run(timeout=START_S)
        try:
            _drive(roslibpy, client, setup)
        finally:
            client.close()


def _drive(roslibpy: ModuleType, client: Any, setup: Setup) -> None:
    """Read a state, and command the arm, with the other client alone."""
    states: list[dict] = []
    listener = roslibpy.Topic(client, STATE, "sensor_msgs/JointState")
    listener.subscribe(states.append)
    wait_for(lambda: bool(states), START_S)
    assert states[0]["name"] == list(setup.arm.position)
    talker = roslibpy.Topic(client, COMMAND, "trajectory_msgs/JointTrajectory")
    point = {"positions": [0.1, 0.2, 0.3], "time_from_start": {"secs": 1, "nsecs": 0}}
    header = {"stamp": stamp_now(), "frame_id": ""}
    message = {"header": header, "joint_names": list(setup.arm.position), "points": [point]}
    talker.publish(message)
    wait_for(lambda: bool(setup.arm.commands), START_S)
    assert setup.arm.commands[0]["points"] == [point]
    wait_for(lambda: bool(np.allclose(list(setup.arm.position.values()), [0.1, 0.2, 0.3])))
