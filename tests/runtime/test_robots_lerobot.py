"""LeRobot's robots: the SO-101's real driver on the emulator, and drivers that misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from so101_process import JOINTS, EmulatedArm, settled
from vla_runtime.contract import Robot, RobotSpec
from vla_runtime.robots import lerobot_contract
from vla_runtime.robots.lerobot_contract import read_contract
from vla_runtime.robots.lerobot_robot import LeRobotOptions, LeRobotRobot, make

import sim.lerobot_plugin.config_robot  # noqa: F401  registers the robot type vla_sim


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedArm]:
    """One emulator for the tests that leave its port in place."""
    arm = EmulatedArm(tmp_path_factory.mktemp("so101"))
    yield arm
    arm.close()


@pytest.fixture
def robot(arm: EmulatedArm) -> Iterator[LeRobotRobot]:
    """Connected to it."""
    robot = arm.robot()
    robot.connect()
    yield robot
    arm.tell("drop 0")
    robot.disconnect()


def until_read(robot: LeRobotRobot) -> np.ndarray:
    """The first position that is measured after failures."""
    for _ in range(100):
        try:
            return robot.read().position
        except ConnectionError:
            time.sleep(0.01)
    raise AssertionError("no reading in 100 tries")


def measured(arm: EmulatedArm) -> np.ndarray:
    """Where the emulator says that the arm stands, as LeRobot counts: degrees, and percent."""
    state, calibration = settled(arm), json.loads((arm.folder / "emulated.json").read_text())
    counts = 2047.5 + np.array(state["position"]) * 4095 / (2 * np.pi)
    low = np.array([calibration[joint]["range_min"] for joint in JOINTS])
    high = np.array([calibration[joint]["range_max"] for joint in JOINTS])
    degrees = (counts - (low + high) / 2) * 360 / 4095
    degrees[5] = ((counts - low) / (high - low) * 100)[5]
    return degrees


def test_the_contract_is_that_of_the_driver_and_its_calibration(arm: EmulatedArm) -> None:
    """Names in LeRobot's order; degrees around the middle, the gripper in percent."""
    robot = arm.robot()
    assert isinstance(robot, Robot)
    spec = robot.spec
    assert spec.action.names == spec.proprio.names == tuple(f"{name}.pos" for name in JOINTS)
    assert spec.action.units == ("deg",) * 5 + ("percent",)
    assert spec.action.high[0] == pytest.approx(np.degrees(1.9), abs=0.1)
    assert spec.action.low[0] == -spec.action.high[0]
    assert (spec.action.low[5], spec.action.high[5]) == (0.0, 100.0)
    assert spec.control_rate_hz == 50
    assert spec.motion is None
    [normalised] = [
        make(
            f"so101_follower --port={arm.port} --id=emulated --calibration_dir={arm.folder} "
            "--use_degrees=false"
        )
    ]
    assert normalised.spec.action.units[0] == "percent"
    assert (normalised.spec.action.low[0], normalised.spec.action.high[0]) == (-100.0, 100.0)


def test_the_arm_goes_where_it_is_told(arm: EmulatedArm, robot: LeRobotRobot) -> None:
    """Through the real driver, the bus and the physics, and back."""
    goal = np.array([20.0, -10.0, 15.0, 5.0, -30.0, 40.0])
    robot.write(goal)
    assert arm.tell()["torque"] == [True] * 6
    expected = measured(arm)
    before = time.monotonic()
    reading = robot.read()
    np.testing.assert_allclose(reading.position, expected, atol=0.2)
    # A position servo without integrator sags a little under the arm's weight.
    np.testing.assert_allclose(reading.position, goal, atol=6.0)
    np.testing.assert_array_equal(reading.proprio, reading.position.astype(np.float32))
    assert before <= reading.time_s <= time.monotonic()


def test_halting_keeps_the_last_goal(arm: EmulatedArm, robot: LeRobotRobot) -> None:
    """Also when no reply comes; disconnecting switches torque off, as `halted` says."""
    robot.halt()
    robot.write(np.array([-40.0, 10.0, 5.0, 0.0, 30.0, 20.0]))
    before = settled(arm)
    assert before["goal"][0] == pytest.approx(np.radians(-40.0), abs=2e-3)
    arm.tell("drop 1000000")
    robot.halt()
    state = settled(arm)
    assert state["goal"] == before["goal"]
    assert state["goal_writes"] == before["goal_writes"] + 1
    arm.tell("drop 0")
    robot.disconnect()
    assert arm.tell()["torque"] == [False] * 6
    assert "torque off" in robot.halted


@pytest.mark.parametrize("fault", ["drop 1", "corrupt 1", "drop 40"])
def test_lost_and_damaged_replies_are_no_readings(
    arm: EmulatedArm, robot: LeRobotRobot, fault: str
) -> None:
    """A retry or an error, never a wrong number; then readings again."""
    robot.write(np.full(6, 10.0))
    expected = measured(arm)
    arm.tell(fault)
    for _ in range(3):
        np.testing.assert_allclose(until_read(robot), expected, atol=0.2)
    assert arm.tell()["drop"] == arm.tell()["corrupt"] == 0


def test_a_late_reply_is_never_a_later_reading(arm: EmulatedArm, robot: LeRobotRobot) -> None:
    """The driver alone would return the old position with success."""
    robot.write(np.full(6, 10.0))
    settled(arm)
    arm.tell("delay 1 1.0")
    with pytest.raises(ConnectionError, match="could not be read"):
        robot.read()
    robot.write(np.full(6, -10.0))
    time.sleep(1.0)  # the reply has come
    expected = measured(arm)
    np.testing.assert_allclose(until_read(robot), expected, atol=0.2)


@pytest.mark.parametrize("bad", [[np.nan] * 6, [np.inf] * 6, [0.0] * 5, [[0.0] * 6]])
def test_what_is_no_command_is_not_sent(
    arm: EmulatedArm, robot: LeRobotRobot, bad: list[float]
) -> None:
    """LeRobot would turn NaN into a count, or die in the middle of a packet."""
    writes = arm.tell()["goal_writes"]
    with pytest.raises(ValueError, match="6 finite numbers"):
        robot.write(np.array(bad))
    assert arm.tell()["goal_writes"] == writes


def test_a_port_that_vanishes_is_an_error_everywhere(tmp_path: Path) -> None:
    """Disconnecting raises nothing, and `halted` says that torque stays on."""
    arm = EmulatedArm(tmp_path)
    robot = arm.robot()
    robot.connect()
    robot.write(np.zeros(6))
    arm.tell("vanish")
    for call in (robot.read, lambda: robot.write(np.zeros(6)), robot.halt):
        with pytest.raises(ConnectionError, match="LeRobot's so_follower could not"):
            call()
    assert "with torque on" in robot.halted
    robot.disconnect()
    assert "torque cannot be switched off" in robot.halted
    assert arm.tell()["torque"] == [True] * 6
    robot.disconnect()
    arm.close()


def test_another_calibration_is_refused(arm: EmulatedArm, tmp_path: Path) -> None:
    """Degrees would mean something else; nothing asks questions on a terminal."""
    calibration = json.loads((arm.folder / "emulated.json").read_text())
    calibration["shoulder_pan"]["range_min"] += 100
    (tmp_path / "other.json").write_text(json.dumps(calibration))
    robot = make(f"so101_follower --port={arm.port} --id=other --calibration_dir={tmp_path}")
    # A ping may be lost on a busy machine: then it is another message.
    for _ in range(20):
        with pytest.raises(ConnectionError) as refusal:
            robot.connect()
        if "motor check failed" not in str(refusal.value):
            break
    assert "another calibration" in str(refusal.value)
    assert "lerobot-calibrate" in str(refusal.value)
    assert isinstance(robot, LeRobotRobot)
    assert not robot.device.bus.is_connected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("so999", "LeRobot has no robot 'so999'; it has .*so101_follower"),
        ("", "LeRobot has no robot ''"),
        ("so101_follower", "port"),
        ("so101_follower --port=x --prt=y", "unrecognized arguments: --prt=y"),
        ("so101_follower --port=x --use_degrees=7", "use_degrees"),
        ("so101_follower --port=x --rate_hz=0", "rate_hz must be positive"),
    ],
)
def test_bad_flags_are_named(monkeypatch: pytest.MonkeyPatch, argument: str, message: str) -> None:
    """LeRobot's and ours, in one line."""
    # Plug-ins take long to import, and none has these names.
    monkeypatch.setattr("lerobot.utils.import_utils.register_third_party_plugins", lambda: None)
    with pytest.raises(ValueError, match=message):
        make(argument)


def test_a_missing_port_is_named() -> None:
    """Before anything moves."""
    with pytest.raises(ConnectionError, match="/dev/nowhere"):
        make("so101_follower --port=/dev/nowhere --id=emulated").connect()


@pytest.mark.render
def test_robots_of_plug_ins_work_too() -> None:
    """Without a serial bus, each call is bounded by a thread."""
    robot = make("vla_sim --task=FetchReach --image_size=16 --timeout_s=60")
    assert robot.spec.action.names[0] == "dx.vel"
    assert robot.spec.action.units[0] == "unknown"
    assert robot.spec.cameras[0].name == "front"
    robot.connect()
    before = robot.read()
    assert before.images["front"].shape == (16, 16, 3)
    np.testing.assert_array_equal(before.position, np.zeros(4))
    robot.write(np.array([1.0, 0.0, 0.0, 0.0]))
    assert robot.read().proprio[0] > before.proprio[0]
    robot.halt()
    robot.disconnect()
    robot.disconnect()


class Device:
    """A LeRobot robot without serial bus, whose observation the test sets."""

    name = "double"
    is_calibrated = True
    config = SimpleNamespace()

    def __init__(self) -> None:
        self.observation_features: dict[str, Any] = {"a.pos": float, "eye": (2, 2, 3)}
        self.action_features: dict[str, Any] = {"a.pos": float, "wheel.vel": float}
        self.cameras: dict[str, Any] = {}
        self.found: dict[str, Any] = {"a.pos": 0.5, "eye": np.zeros((2, 2, 3), np.uint8)}
        self.sent: list[dict[str, float]] = []
        self.is_connected = False
        self.go = threading.Event()
        self.go.set()

    def connect(self, calibrate: bool) -> None:
        """Calibration would ask questions."""
        assert not calibrate
        self.is_connected = True

    def get_observation(self) -> dict[str, Any]:
        """As set, once the test lets it go."""
        self.go.wait(60)
        return dict(self.found)

    def send_action(self, action: dict[str, float]) -> None:
        """Noted."""
        self.sent.append(action)

    def disconnect(self) -> None:
        """As LeRobot's."""
        self.is_connected = False


def test_a_driver_that_hangs_is_given_up() -> None:
    """Its late answer is thrown away."""
    device = Device()
    robot = LeRobotRobot(device, LeRobotOptions(timeout_s=0.05))
    robot.connect()
    device.go.clear()
    for _ in range(2):
        with pytest.raises(ConnectionError, match="could not be read"):
            robot.read()
    device.found["a.pos"] = 0.7
    device.go.set()
    assert until_read(robot)[0] == 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.pos": np.nan}, r"not finite in \['a.pos'\]"),
        ({"a.pos": None}, "no usable reading"),
        ({"eye": np.zeros((2, 3, 3), np.uint8)}, "camera 'eye' is uint8"),
        ({"eye": np.zeros((2, 2, 3))}, "camera 'eye' is float64"),
    ],
)
def test_unusable_readings_are_errors(change: dict[str, Any], message: str) -> None:
    """As no reading at all, so that they stop the robot."""
    device = Device()
    robot = LeRobotRobot(device, LeRobotOptions(timeout_s=60.0))
    robot.connect()
    device.found |= change
    with pytest.raises(ConnectionError, match=message):
        robot.read()
    del device.found[next(iter(change))]
    with pytest.raises(ConnectionError, match="no usable reading"):
        robot.read()


def derived(device: Device) -> dict[str, Any]:
    """A contract as it is derived from a data set of that robot: no units, ranges of the data."""
    spec = read_contract(device, 25.0)
    unknown = ("unknown",) * spec.action.dim
    action = replace(spec.action, units=unknown, low=(-0.5, -2.0), high=(0.8, 2.0))
    proprio = replace(spec.proprio, units=unknown[:1], low=(-0.6,), high=(0.9,))
    return replace(spec, action=action, proprio=proprio).to_dict()


def test_a_robot_takes_over_the_contract_of_its_recordings(tmp_path: Path) -> None:
    """Its ranges and its units; so that policy and robot share one."""
    device = Device()
    contract = derived(device)
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    options = LeRobotOptions(rate_hz=25.0, contract=str(tmp_path))
    spec = LeRobotRobot(device, options).spec
    assert spec.action.high == (0.8, 2.0)
    assert spec.differences(RobotSpec.from_dict(contract)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robot": "another"}, "robot: double != another"),
        ({"control_rate_hz": 30.0}, "control_rate_hz: 25.0 != 30.0"),
        ({"cameras": []}, "cameras"),
        ({"action": 3}, "is no contract"),
        ({"range": 99.0}, r"outside the calibrated range of \['a.pos'\]"),
        ({"unit": "rad"}, "action.units"),
        ({"name": "b.pos"}, "action.names"),
    ],
)
def test_the_contract_of_another_robot_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """Every difference is named, and commands stay in the calibrated range."""
    device = Device()
    known = ("deg", -90.0, 90.0)
    ranges = {"a.pos": known, "wheel.vel": known}.items()
    monkeypatch.setattr(lerobot_contract, "_motor_ranges", lambda device: iter(ranges))
    contract = derived(device)
    match next(iter(change)):
        case "range":
            contract["action"]["high"] = (change["range"], 2.0)
        case "unit":
            contract["action"]["units"] = (change["unit"], "unknown")
        case "name":
            contract["action"]["names"] = (change["name"], "wheel.vel")
        case _:
            contract |= change
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(contract))
    with pytest.raises(ValueError, match=message):
        LeRobotRobot(device, LeRobotOptions(rate_hz=25.0, contract=str(path)))


@pytest.mark.parametrize("measured", [{}, {"wheel.vel": 0.3}])
def test_velocities_stand_at_zero_and_halt_at_zero(measured: dict[str, float]) -> None:
    """A wheel has no position, whether it measures its speed or not; the joint's goal is held."""
    device = Device()
    device.observation_features |= dict.fromkeys(measured, float)
    device.found |= measured
    robot = LeRobotRobot(device, LeRobotOptions(timeout_s=60.0))
    robot.connect()
    np.testing.assert_array_equal(robot.read().position, [0.5, 0.0])
    robot.halt()
    assert device.sent == []
    robot.write(np.array([0.6, 2.0]))
    robot.halt()
    assert device.sent[1:] == [{"a.pos": 0.6, "wheel.vel": 0.0}]
    robot.disconnect()
    robot.connect()
    robot.halt()
    assert len(device.sent) == 2, "a new connection has commanded nothing"


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"observation": {"eye": (2, 2, 1)}}, r"\['eye'\] are neither numbers nor RGB images"),
        ({"observation": {"words": str}}, r"\['words'\] are neither"),
        ({"action": {"b.pos": float}}, r"does not measure \['b.pos'\]"),
        ({"action": {"b.pos": int}}, r"\['b.pos'\] are neither"),
    ],
)
def test_features_that_make_no_contract_are_named(
    features: dict[str, dict[str, Any]], message: str
) -> None:
    """A position that is never measured could not be limited."""
    device = Device()
    device.observation_features |= features.get("observation", {})
    device.action_features |= features.get("action", {})
    with pytest.raises(ValueError, match=message):
        LeRobotRobot(device)


def test_a_camera_that_stands_still_makes_readings_old() -> None:
    """Whether its driver says so, or only its pixels."""
    device = Device()
    device.observation_features["a.pos"] = float
    robot = LeRobotRobot(device, LeRobotOptions(timeout_s=60.0))
    robot._ages._tolerance[:] = 0.1  # a double has no range, so nothing would count as motion
    robot.connect()
    first = robot.read()
    device.found["a.pos"] = 0.9
    assert robot.read().time_s == first.time_s
    device.found["eye"] = device.found["eye"] + np.uint8(1)
    assert robot.read().time_s > first.time_s
    stamp = time.perf_counter() - 5.0
    device.cameras = {"eye": SimpleNamespace(latest_timestamp=stamp, is_connected=True)}
    device.found["eye"] = device.found["eye"] + np.uint8(1)
    assert robot.read().time_s == stamp
