"""The file that connects a contract to a ROS system: what is read, and what refuses it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ros_setup import FILE, SPEC, write_files
from vla_runtime.contract import MotionLimits, VectorSpec
from vla_runtime.robots.ros import make
from vla_runtime.robots.ros_config import load_ros_config, resolve_joints


def test_a_file_is_enough(tmp_path: Path) -> None:
    """With its address, or with another one before it."""
    path = write_files(tmp_path)
    assert load_ros_config(str(path))[0].address == "ws://127.0.0.1:1"
    config, spec = load_ros_config(f"ws://robot:9090?config={path}")
    assert config.address == "ws://robot:9090"
    assert spec == replace(SPEC, motion=spec.motion)


def test_names_and_units_have_defaults(tmp_path: Path) -> None:
    """The contract's name is the joint's, and its unit the scale; the file's word comes first."""
    joints = resolve_joints(*load_ros_config(str(write_files(tmp_path))))
    assert joints["elbow_joint"].joint == "elbow_joint"
    assert joints["elbow_joint"].scale == 1.0
    assert joints["shoulder"].scale == pytest.approx(180 / math.pi)
    assert (joints["finger"].scale, joints["finger"].offset) == (50.0, 10.0)


def test_limits_of_the_contract_stay_where_the_file_has_none(tmp_path: Path) -> None:
    """A robot without limits is refused by the safety gate, not here."""
    motion = MotionLimits(("position",) * 3, (1.0,) * 3, (2.0,) * 3)
    text = FILE[: FILE.index("[motion]")]
    path = write_files(tmp_path, text, replace(SPEC, motion=motion))
    assert make(str(path)).spec.motion == motion
    assert make(str(write_files(tmp_path, text))).spec.motion is None


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("ws://127.0.0.1:1", "http://robot", "does not begin with ws://"),
        ("address", "adress", "'adress'.* are none of .*'address'"),
        ('contract = "contract.json"', "", "'contract'.* are missing"),
        ("[command]", "[command]\ntype = 'std_msgs/String'", "command: type 'std_msgs/String'"),
        ("[command]", "[state]\ntype = 'a/B'\n[command]", "state: type 'a/B' is none of"),
        ("[cameras.front]", "[cameras.front]\ntype = 'a/B'", "cameras.front: type 'a/B'"),
        ("[cameras.front]", "[cameras.side]", r"contract has the cameras \['front'\]"),
        ("[cameras.front]", "[cameras.front]\nrate = 3", r"cameras.front.\['rate'\] are none of"),
        ("shoulder =", "sholder =", r"joints \['sholder'\] are not in the contract"),
        ("scale = 50.0, ", "", "joints.finger: the unit '1' needs a finite scale"),
        ("scale = 50.0", "scale = inf", "joints.finger: the unit '1' needs a finite scale"),
        ("scale = 50.0", "scale = 0.0", "joints.finger: the unit '1' needs a finite scale"),
        ('joint = "finger_joint"', 'joint = "elbow_joint"', "move one joint"),
        ("[command]", "[command]\nreach_ms = -1", "reach_ms has to be 0 or more"),
        ("scale = 50.0", "scale = 'x'", "joints.finger.scale is 'x', it has to be of type float"),
        ("scale = 50.0", "field = 'speed'", "joints.finger: field 'speed' is none of"),
        ("scale = 50.0", "scale = 1, field = 'velocity'", r"\['finger'\] need the field position"),
        ("timeout_ms = ", "timeout_ms = -", "state_timeout_ms has to be positive"),
        ("connect_timeout_s = 3.0", "connect_timeout_s = nan", "connect_timeout_s has to be pos"),
        ("connect_timeout_s = 3.0", "stamps = 1", "stamps is 1, it has to be of type bool"),
        ("connect_timeout_s = 3.0", "state = 3", "state. is 3, it has to be a table"),
        ("connect_timeout_s = 3.0", "joints = 3", "joints is 3, it has to be a table"),
        ("connect_timeout_s = 3.0", "compression = 'zip'", "'zip' is none of"),
        ("[motion]", "[motion]\nspeed = 3", r"motion.\['speed'\] are none of"),
        ("[60.0, 2.0, 100.0]", "[60.0, -2.0, 100.0]", "positive and finite"),
        ("[60.0, 2.0, 100.0]", "[60.0]", "velocity has 1 entries"),
        ('kinds = ["position"', 'kinds = ["displacement"', "need a command of type std_msgs/Float"),
        ("/camera/compressed", "/joint_states", "topics repeat"),
        ("[motion]", "[motion", "robot.toml: "),
    ],
)
def test_a_wrong_entry_is_named(old: str, new: str, text: str, tmp_path: Path) -> None:
    """Before anything is opened, with what is valid."""
    changed = FILE.replace(old, new)
    if "joints = 3" in new:
        changed = changed.replace("[joints]\nshoulder", "[other]\nshoulder").replace("[other]", "")
    assert changed != FILE
    with pytest.raises(ValueError, match=text):
        make(str(write_files(tmp_path, changed)))


def test_one_name_has_one_unit(tmp_path: Path) -> None:
    """One scale cannot serve two."""
    proprio = replace(SPEC.proprio, units=("rad", "rad", "1"))
    path = write_files(tmp_path, spec=replace(SPEC, proprio=proprio))
    with pytest.raises(ValueError, match=r"\['shoulder'\] have one unit as action and another"):
        make(str(path))


def test_what_is_no_contract(tmp_path: Path) -> None:
    """The file's name is in the message."""
    path = write_files(tmp_path)
    (tmp_path / "contract.json").write_text(json.dumps({"robot": "arm"}))
    with pytest.raises(ValueError, match=r"robot\.toml: .*no contract of this version: 'action'"):
        make(str(path))
    (tmp_path / "contract.json").write_text("{")
    with pytest.raises(ValueError, match=r"robot\.toml"):
        make(str(path))
    (tmp_path / "contract.json").unlink()
    with pytest.raises(OSError, match=r"contract\.json cannot be read: No such file"):
        make(str(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    """Named, with what is valid."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for argument, message in (
        ("", r"needs its description: ros:ROBOT\.toml"),
        (str(tmp_path / "none.toml"), r"none\.toml cannot be read: No such file"),
        (str(tmp_path), "cannot be read: Is a directory"),
        (str(tmp_path / "binary.toml"), r"binary\.toml is no text file"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            make(argument)


def test_an_address_alone_is_not_enough() -> None:
    """The message says how a file is given."""
    with pytest.raises(ValueError, match=r"ros:ws://robot:9090\?config=ROBOT\.toml"):
        make("ws://robot:9090")


def test_velocities_and_efforts_are_measured_too(tmp_path: Path) -> None:
    """Proprioception may take any field of a joint."""
    names = ("elbow_joint", "elbow_speed")
    spec = replace(
        SPEC, proprio=VectorSpec(names, ("rad", "deg/s"), (-np.inf, -np.inf), (np.inf, np.inf))
    )
    text = FILE.replace(
        "[motion]", 'elbow_speed = { joint = "elbow_joint", field = "velocity" }\n[motion]'
    )
    joints = resolve_joints(*load_ros_config(str(write_files(tmp_path, text, spec))))
    assert joints["elbow_speed"].field == "velocity"
    assert joints["elbow_speed"].scale == pytest.approx(180 / math.pi)


def test_the_file_of_the_document_is_valid(tmp_path: Path) -> None:
    """What a reader copies is read, with a contract of those names."""
    text = (Path(__file__).parents[2] / "docs/deployment/ros.md").read_text()
    [example] = [block for block in text.split("```text\n") if block.startswith("address")]
    names = ("shoulder.pos", "elbow.pos", "gripper.pos")
    vector = VectorSpec(names, ("deg", "deg", "1"), (-90.0, -90.0, 0.0), (90.0, 90.0, 100.0))
    (tmp_path / "exports/arm").mkdir(parents=True)
    contract = replace(SPEC, action=vector, proprio=vector).to_dict()
    (tmp_path / "exports/arm/contract.json").write_text(json.dumps(contract))
    (tmp_path / "robot.toml").write_text(example.partition("```")[0])
    robot = make(str(tmp_path / "robot.toml"))
    assert robot.spec.motion
    assert robot.spec.motion.velocity == (60.0, 60.0, 100.0)
