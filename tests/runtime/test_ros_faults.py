"""What goes wrong between robot and bridge ends in an error that says so, and never in a motion."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_arm import CAMERA, COMMAND, FAULTS, STATE, stamp_now
from ros_layer import encode
from ros_setup import (
    CAMERA_TIMEOUT_S,
    FILE,
    SPEC,
    STATE_TIMEOUT_S,
    BridgeProcess,
    Setup,
    jpegs,
    ros_setup,
    wait_for,
    write_files,
)
from vla_runtime.contract import CameraSpec
from vla_runtime.robots.ros import RosRobot, make

HOME = np.array([0.0, 0.0, 10.0])
# Later than a time-out by at most this, on a loaded machine.
MARGIN_S = 1.0


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    """Connected."""
    with ros_setup(tmp_path) as setup:
        setup.robot.connect()
        yield setup


def failure(robot: Any, within_s: float) -> str:
    """The error that reading ends in, within a time; until then readings are fresh."""
    end = time.monotonic() + within_s
    while True:
        try:
            robot.read()
        except ConnectionError as error:
            return str(error)
        assert time.monotonic() < end, "reading goes on"
        time.sleep(0.005)


def test_a_stopped_bridge_gets_no_command(setup: Setup) -> None:
    """It would take what is sent and hand it on later: without fresh state nothing is sent."""
    setup.bridge.pause()
    text = failure(setup.robot, STATE_TIMEOUT_S + MARGIN_S)
    assert "shoulder_joint" in text
    with pytest.raises(ConnectionError, match="nothing usable of joint 'shoulder_joint'"):
        setup.robot.write(HOME + 5)
    setup.robot.halt()
    assert "nothing more is sent; the controller ends at the last" in setup.robot.halted
    setup.bridge.resume()
    wait_for(lambda: not _fails(setup.robot.read))
    setup.robot.halt()  # nothing has been commanded that could be held
    assert not setup.arm.commands
    setup.robot.write(HOME + 5)
    wait_for(lambda: len(setup.arm.commands) == 1)


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except ConnectionError:
        return True
    return False


def test_a_killed_bridge_is_noticed_at_once(setup: Setup) -> None:
    """Reading, writing and holding say so; reconnecting is possible, and explicit."""
    setup.bridge.stop()
    assert "is lost" in failure(setup.robot, STATE_TIMEOUT_S)
    with pytest.raises(ConnectionError, match="is lost"):
        setup.robot.write(HOME)
    setup.robot.halt()
    assert "is lost" in setup.robot.halted
    with pytest.raises(ConnectionError, match="no rosbridge answers at ws:"):
        setup.robot.connect()
    setup.robot.halt()
    setup.robot.disconnect()


def test_sending_to_a_full_network_ends(setup: Setup) -> None:
    """When the kernel's buffers are full, a send fails in bounded time instead of blocking."""
    setup.bridge.pause()
    bridge = setup.robot._bridge
    assert bridge
    message = {"data": "x" * 1_000_000}
    wait_for(lambda: _fails(lambda: bridge.publish("/large", message)), 30)
    with pytest.raises(ConnectionError, match="is lost"):
        setup.robot.read()


def _state(message: dict, **change: Any) -> dict:
    return message | change


def _lacks(message: dict) -> dict:
    return _state(message, name=message["name"][1:], position=message["position"][1:], velocity=[])


def _stamped(seconds: int) -> Callable[[dict], dict]:
    return lambda message: _state(message, header={"stamp": {"secs": seconds, "nsecs": 1}})


BAD_STATES: dict[str, tuple[Callable[[dict], dict], str]] = {
    "a joint is missing": (_lacks, "nothing usable of joint 'shoulder_joint' for"),
    "NaN": (
        lambda message: _state(message, position=[float("nan"), 0.0, 0.0]),
        "joint 'shoulder_joint' has no finite position",
    ),
    "infinite": (
        lambda message: _state(message, position=[0.0, float("inf"), 0.0]),
        "joint 'elbow_joint' has no finite position",
    ),
    "no positions": (lambda message: _state(message, position=[]), "has no finite position"),
    "too short": (lambda message: _state(message, position=[0.0]), "there are 3 names"),
    "repeats a joint": (
        lambda message: _state(message, name=["shoulder_joint"] * 3),
        "joints repeat",
    ),
    "went back": (_stamped(1_000), "went back by .* a clock was set, or two nodes publish"),
    "no stamp": (
        lambda message: _state(message, header={"stamp": {"secs": 0, "nsecs": 0}}),
        "stamp is 0; a driver",
    ),
    "bad stamp": (
        lambda message: _state(message, header={"stamp": {"secs": "now"}}),
        "the header's stamp is",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_bad_joint_state_counts_as_none(case: str, setup: Setup) -> None:
    """The time-out's message says what was wrong with what came, and nothing is sent any more."""
    change, expected = BAD_STATES[case]
    setup.arm.change = change
    assert re.search(expected, failure(setup.robot, STATE_TIMEOUT_S + MARGIN_S))
    with pytest.raises(ConnectionError):
        setup.robot.write(HOME)
    assert not setup.arm.commands
    setup.arm.change = lambda message: message
    wait_for(lambda: not _fails(setup.robot.read))


def test_one_bad_joint_state_does_no_harm(setup: Setup) -> None:
    """The next one is a cycle later."""
    bad = {"header": {"stamp": stamp_now()}, "name": ["shoulder_joint"], "position": [None]}
    setup.bridge.send(json.dumps({"op": "publish", "topic": STATE, "msg": bad}))
    for _ in range(20):
        assert np.isfinite(setup.robot.read().position).all()
        time.sleep(0.005)


BAD_CAMERAS: dict[str, tuple[Callable[[Setup], Any], str]] = {
    "stopped": (lambda setup: FAULTS["the camera stops"](setup.arm), "camera 'front' for"),
    "frozen": (
        lambda setup: FAULTS["the camera repeats its last message"](setup.arm),
        "repeats the stamp",
    ),
    "other size": (lambda setup: setattr(setup.arm, "images", jpegs(50, 60)), "60 x 50 pixels"),
    "no image": (
        lambda setup: setattr(setup.arm, "images", [b"nonsense"]),
        "cannot identify image",
    ),
    "cut": (lambda setup: setattr(setup.arm, "images", [jpegs()[0][:-300]]), "Truncated"),
}


@pytest.mark.parametrize("case", BAD_CAMERAS)
def test_a_bad_camera_is_named(case: str, setup: Setup) -> None:
    """It stops, repeats its last image, or sends what is none; joints alone are no observation."""
    change, expected = BAD_CAMERAS[case]
    change(setup)
    text = failure(setup.robot, CAMERA_TIMEOUT_S + MARGIN_S)
    assert "camera 'front'" in text
    assert expected in text
    with pytest.raises(ConnectionError, match="camera"):
        setup.robot.write(HOME)


MALFORMED: list[str | bytes] = [
    "",
    "{",
    "nonsense",
    "[]",
    "17",
    "null",
    "{}",
    "[" * 50_000,
    '{"op": 3}',
    '{"op": "publish"}',
    '{"op": "publish", "topic": "/other", "msg": {}}',
    '{"op": "publish", "topic": ["a"], "msg": {}}',
    '{"op": "publish", "topic": "/joint_states", "msg": null}',
    '{"op": "publish", "topic": "/joint_states", "msg": {"name": 3}}',
    '{"op": "publish", "topic": "/joint_states", "msg": {"name": [], "position": {}}}',
    f'{{"op": "publish", "topic": "{CAMERA}", "msg": {{"data": "%%%"}}}}',
    '{"op": "png", "data": "QUJD"}',
    '{"op": "png", "data": 3}',
    '{"op": "service_response"}',
    '{"op": "status", "level": "error", "msg": null}',
    '{"op": "fragment", "data": "", "num": 0, "total": 1}',
    b"",
    b"\xff\xff",
    b"\x9b" + b"\xff" * 8,  # a list of 2**64 - 1 entries
    b"\x81" * 50_000,
]


def test_malformed_messages_change_nothing(setup: Setup) -> None:
    """They end up in the text of a later error, not in the measurements."""
    started_s = time.monotonic()
    for data in MALFORMED:
        setup.bridge.send(data)
    bridge = setup.robot._bridge
    assert bridge
    wait_for(lambda: bool(bridge.trouble(started_s)))
    for _ in range(10):
        assert np.isfinite(setup.robot.read().position).all()
        time.sleep(0.01)


def test_mutated_messages_leave_readings_valid(setup: Setup) -> None:
    """Bytes of recorded messages are flipped, cut and doubled: whatever is accepted is finite."""
    rng = random.Random(0)
    state = {
        "header": {"stamp": stamp_now(), "frame_id": ""},
        "name": list(setup.arm.position),
        "position": [0.1, 0.2, 0.3],
        "velocity": [0.0, 0.0, 0.0],
        "effort": [],
    }
    image = {"header": {"stamp": stamp_now()}, "format": "jpeg", "data": jpegs()[0]}
    recorded = [
        encode({"op": "publish", "topic": topic, "msg": message}, compression)
        for topic, message in ((STATE, state), (CAMERA, image))
        for compression in ("none", "png", "cbor")
    ]
    bridge = setup.robot._bridge
    assert bridge
    for _ in range(5_000):
        original = rng.choice(recorded)
        data = bytearray(original.encode() if isinstance(original, str) else original)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randint(1, 20)]
                case _:
                    data[at:at] = data[at : at + rng.randint(1, 20)]
        text = isinstance(original, str)
        # As if it had just arrived: an error that escapes would end the receiving thread.
        bridge._take(data.decode(errors="replace") if text else bytes(data), time.monotonic())
    assert bridge.lost is None
    # A mutation may have been a stamp of the far future; a new connection forgets it.
    setup.robot.connect()
    assert np.isfinite(setup.robot.read().position).all()


@pytest.mark.parametrize("binary", [False, True])
def test_a_huge_message_ends_the_connection(binary: bool, setup: Setup) -> None:
    """The bound comes from the largest image of the contract."""
    size = 48 * 64 * 4 * 4 // 3 + 65536 + 1
    setup.bridge.send(b"x" * size if binary else "x" * size)
    text = failure(setup.robot, STATE_TIMEOUT_S + MARGIN_S)
    assert "is lost" in text
    assert "exceeds limit" in text


def test_a_topic_that_nobody_publishes(tmp_path: Path) -> None:
    """The bridge says nothing; rosapi, where it runs, says that there is no such topic."""
    text = f'[state]\ntopic = "/wrong"\n{FILE[FILE.index("[command]") :]}'
    text = FILE[: FILE.index("[command]")].replace("3.0", "0.3") + text
    with (
        ros_setup(tmp_path, text) as setup,
        pytest.raises(ConnectionError, match="nothing usable of joint 'shoulder_joint' at all"),
    ):
        setup.robot.connect()


def test_a_command_topic_that_nobody_listens_to(tmp_path: Path) -> None:
    """A robot that does not move would be the only sign."""
    text = FILE.replace(f'"{COMMAND}"', '"/wrong"')
    with (
        ros_setup(tmp_path, text) as setup,
        pytest.raises(ConnectionError, match="listens to the command topic /wrong"),
    ):
        setup.robot.connect()


def test_a_camera_of_another_type(tmp_path: Path) -> None:
    """Said with the type that the robot has."""
    text = FILE.replace(f'"{CAMERA}"', f'"{CAMERA}"\ntype = "sensor_msgs/Image"')
    with (
        ros_setup(tmp_path, text.replace("3.0", "0.5")) as setup,
        pytest.raises(ConnectionError, match=f"{CAMERA} on the robot: sensor_msgs/Compressed"),
    ):
        setup.robot.connect()


def test_a_camera_that_the_robot_lacks(tmp_path: Path) -> None:
    """The joints come, the image does not."""
    spec = replace(SPEC, cameras=(*SPEC.cameras, CameraSpec("wrist", 48, 64)))
    text = FILE.replace("3.0", "0.5") + '\n[cameras.wrist]\ntopic = "/wrist"\n'
    with ros_setup(tmp_path, text, spec) as setup:
        with pytest.raises(ConnectionError, match="nothing usable of camera 'wrist' at all"):
            setup.robot.connect()
        assert not setup.bridge.sessions or wait_for(lambda: not setup.bridge.sessions) is None


def test_what_the_bridge_reports_is_in_the_error(tmp_path: Path) -> None:
    """Some bridges answer to set_level."""
    text = FILE.replace("3.0", "0.5").replace(
        f'"{CAMERA}"', f'"{CAMERA}"\ntype = "sensor_msgs/Image"'
    )
    with (
        ros_setup(tmp_path, text, reports=True) as setup,
        pytest.raises(ConnectionError, match="the bridge says: /camera/compressed is of type"),
    ):
        setup.robot.connect()


def test_nobody_answers(tmp_path: Path) -> None:
    """The address is named, and how a bridge is started."""
    path = write_files(tmp_path)
    with pytest.raises(ConnectionError, match=r"ws://127\.0\.0\.1:1 .*rosbridge_websocket"):
        make(str(path)).connect()
    text = FILE.replace("3.0", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and says nothing
        address = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        robot = make(f"{address}?config={write_files(tmp_path, text)}")
        with pytest.raises(ConnectionError, match="no rosbridge answers"):
            robot.connect()
    for action in (robot.read, lambda: robot.write(HOME)):
        with pytest.raises(ConnectionError, match="not connected"):
            action()
    robot.halt()
    assert "not connected" in robot.halted


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[BridgeProcess, RosRobot]]:
    """A bridge and its arm in a process of their own, and a connected robot."""
    bridge = BridgeProcess(tmp_path)
    robot = make(bridge.name.removeprefix("ros:"))
    robot.connect()
    yield bridge, robot
    bridge.close()
    robot.disconnect()


def test_a_stopped_process_executes_nothing_later(process: tuple[BridgeProcess, RosRobot]) -> None:
    """What was sent into it before the stop was noticed has expired when it goes on."""
    bridge, robot = process
    bridge.process.send_signal(signal.SIGSTOP)
    robot.write(HOME + 5)  # the state is still fresh
    wait_for(lambda: _fails(lambda: robot.write(HOME + 5)))
    time.sleep(0.1)
    bridge.process.send_signal(signal.SIGCONT)
    wait_for(lambda: not _fails(robot.read))
    time.sleep(0.1)
    np.testing.assert_array_equal(robot.read().position, HOME)


def test_a_killed_process_is_lost(process: tuple[BridgeProcess, RosRobot]) -> None:
    """The kernel closes its sockets."""
    bridge, robot = process
    bridge.process.kill()
    wait_for(lambda: _fails(robot.read))
    with pytest.raises(ConnectionError, match="is lost"):
        robot.write(HOME)
    robot.halt()
    assert "nothing more is sent" in robot.halted
