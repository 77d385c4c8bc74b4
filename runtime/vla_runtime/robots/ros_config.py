"""What connects a contract to a ROS system: topics, joints and time-outs, read from a TOML file."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vla_runtime.contract import MotionLimits, RobotSpec
from vla_runtime.robots.ros_messages import (
    COMPRESSED_IMAGE,
    FLOAT_ARRAY,
    JOINT_STATE,
    JOINT_TRAJECTORY,
    RAW_IMAGE,
)
from vla_runtime.robots.rosbridge import Compression

# Contract units for one ROS unit, REP 103: radians, metres, seconds, newtons.
_UNITS = {
    "rad": 1.0,
    "m": 1.0,
    "rad/s": 1.0,
    "m/s": 1.0,
    "N": 1.0,
    "N m": 1.0,
    "deg": 180.0 / math.pi,
    "deg/s": 180.0 / math.pi,
}
JOINT_FIELDS = ("position", "velocity", "effort")


@dataclass(frozen=True)
class StateTopic:
    """Where the robot's measurements come from: a JointState."""

    topic: str = "/joint_states"
    type: str = JOINT_STATE


@dataclass(frozen=True)
class CommandTopic:
    """Where commands go.

    Attributes:
        topic: of the controller.
        type: trajectory_msgs/JointTrajectory or std_msgs/Float64MultiArray.
        reach_ms: within which time the controller has to be there; 0: two control periods, 50 ms
            at least. A trajectory that took longer on its way is dropped by the controller.
    """

    topic: str
    type: str = JOINT_TRAJECTORY
    reach_ms: int = 0


@dataclass(frozen=True)
class CameraTopic:
    """Where a camera's images come from: sensor_msgs/CompressedImage or sensor_msgs/Image."""

    topic: str
    type: str = COMPRESSED_IMAGE


@dataclass(frozen=True)
class Joint:
    """What a name of the contract is in ROS: value = scale * joint + offset.

    Attributes:
        joint: its name in the JointState and in the trajectory; the contract's name by default.
        field: position, velocity or effort of the JointState.
        scale: contract units for one ROS unit; by default from the contract's unit.
        offset: in the contract's unit.
    """

    joint: str = ""
    field: str = "position"
    scale: float | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class RosConfig:
    """A ROS robot; see docs/deployment/ros.md for the file.

    Attributes:
        address: of the bridge, ws:// or wss://.
        contract: file of the contract that the robot has to keep, as `vla export` writes it.
        command: where commands go.
        state: where measurements come from.
        cameras: a topic for each camera of the contract.
        joints: name of the contract → joint; every name has an entry.
        motion: limits of the robot's motion, as `MotionLimits`; those of the contract by default.
        state_timeout_ms: age at which measurements of a joint no longer count.
        camera_timeout_ms: the same for an image.
        connect_timeout_s: how long `connect` waits for a first message of everything.
        compression: of the images that the bridge sends: none (base64 in JSON), png or cbor.
        stamps: whether the drivers fill in header stamps. Without them neither a frozen camera nor
            a backlog is noticed, and commands do not expire on their way.

    Raises:
        ValueError: naming the wrong entry and what is valid.
    """

    address: str
    contract: str
    command: CommandTopic
    state: StateTopic = field(default_factory=StateTopic)
    cameras: dict[str, CameraTopic] = field(default_factory=dict)
    joints: dict[str, Joint] = field(default_factory=dict)
    motion: MotionLimits | None = None
    state_timeout_ms: int = 200
    camera_timeout_ms: int = 500
    connect_timeout_s: float = 5.0
    compression: Compression = "none"
    stamps: bool = True

    def __post_init__(self) -> None:
        if not self.address.startswith(("ws://", "wss://")):
            raise ValueError(f"address {self.address!r} does not begin with ws:// or wss://")
        for name in ("state_timeout_ms", "camera_timeout_ms", "connect_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} has to be positive, got {getattr(self, name)}")
        if self.compression not in get_args(Compression):
            raise ValueError(
                f"compression {self.compression!r} is none of {list(get_args(Compression))}"
            )
        if self.command.reach_ms < 0:
            raise ValueError(f"command.reach_ms has to be 0 or more, got {self.command.reach_ms}")
        _require_type("state", self.state.type, JOINT_STATE)
        _require_type("command", self.command.type, JOINT_TRAJECTORY, FLOAT_ARRAY)
        for name, camera in self.cameras.items():
            _require_type(f"cameras.{name}", camera.type, COMPRESSED_IMAGE, RAW_IMAGE)
        topics = [self.state.topic, self.command.topic, *(c.topic for c in self.cameras.values())]
        if len(set(topics)) != len(topics):
            raise ValueError(f"topics repeat: {topics}")


def ros1_type(message_type: str) -> str:
    """sensor_msgs/msg/Image, as ROS 2 says, is sensor_msgs/Image in ROS 1; bridges take both."""
    return message_type.replace("/msg/", "/")


def _require_type(where: str, message_type: str, *valid: str) -> None:
    if ros1_type(message_type) not in valid:
        raise ValueError(f"{where}: type {message_type!r} is none of {list(valid)}")


def load_ros_config(argument: str) -> tuple[RosConfig, RobotSpec]:
    """The configuration and the contract that it names.

    Args:
        argument: of `--robot ros:`: FILE.toml, or ADDRESS?config=FILE.toml, whose address
            replaces the file's.

    Raises:
        ValueError: naming the file, the entry and what is valid.
        OSError: a file cannot be read.
    """
    address, found, file = argument.rpartition("?config=")
    if argument.startswith(("ws://", "wss://")) and not found:
        raise ValueError(
            f"ros:{argument} says nothing of topics and joints: ros:{argument}?config=ROBOT.toml"
        )
    if not file:
        raise ValueError("robot ros needs its description: ros:ROBOT.toml")
    path = Path(file)
    try:
        data = tomllib.loads(_read(path))
        if address:
            data["address"] = address
        config = _build(RosConfig, data, "")
        contract = json.loads(_read(path.parent / config.contract))
        spec = RobotSpec.from_dict(contract)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: the contract is no contract of this version: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if config.motion:
        spec = replace(spec, motion=config.motion)
    return config, spec


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text file") from error
    except OSError as error:
        raise OSError(f"robot ros: {file} cannot be read: {error.strerror}") from error


def resolve_joints(config: RosConfig, spec: RobotSpec) -> dict[str, Joint]:
    """The joint of every name of the contract that has one, with its scale.

    A displacement has none: nothing is measured of it, and it goes out as it is.

    Raises:
        ValueError: an entry for a name or camera that the contract lacks, or the other way round;
            a unit without a scale; a command that a topic's type cannot carry.
    """
    displaced = set(displacements(spec))
    units = dict(zip(spec.action.names, spec.action.units, strict=True))
    units = {name: unit for name, unit in units.items() if name not in displaced}
    measured = dict(zip(spec.proprio.names, spec.proprio.units, strict=True))
    if mixed := [name for name in units if measured.get(name, units[name]) != units[name]]:
        raise ValueError(f"{mixed} have one unit as action and another one as proprioception")
    units |= measured
    if unknown := set(config.joints) - set(units):
        raise ValueError(f"joints {sorted(unknown)} are not in the contract: {sorted(units)}")
    cameras = {camera.name for camera in spec.cameras}
    if cameras != set(config.cameras):
        raise ValueError(
            f"the contract has the cameras {sorted(cameras)}, the file has {sorted(config.cameras)}"
        )
    if displaced and ros1_type(config.command.type) != FLOAT_ARRAY:
        raise ValueError(f"displacements {sorted(displaced)} need a command of type {FLOAT_ARRAY}")
    joints = {name: _resolve(name, unit, config) for name, unit in units.items()}
    commanded = [name for name in spec.action.names if name not in displaced]
    if wrong := [name for name in commanded if joints[name].field != "position"]:
        raise ValueError(f"commands {wrong} need the field position")
    if len({joints[name].joint for name in commanded}) != len(commanded):
        raise ValueError(f"two of the commands {commanded} move one joint")
    return joints


def displacements(spec: RobotSpec) -> list[str]:
    """Names of the actions that say how far to go instead of where to be."""
    if spec.motion is None:
        return []
    kinds = zip(spec.action.names, spec.motion.kinds, strict=True)
    return [name for name, kind in kinds if kind == "displacement"]


def _resolve(name: str, unit: str, config: RosConfig) -> Joint:
    joint = config.joints.get(name, Joint())
    if joint.field not in JOINT_FIELDS:
        raise ValueError(f"joints.{name}: field {joint.field!r} is none of {list(JOINT_FIELDS)}")
    scale = _UNITS.get(unit, 0.0) if joint.scale is None else joint.scale
    if not scale or not math.isfinite(scale) or not math.isfinite(joint.offset):
        raise ValueError(
            f"joints.{name}: the unit {unit!r} needs a finite scale, contract units for one ROS "
            f"unit (rad, m, s, N); only {sorted(_UNITS)} have one"
        )
    return replace(joint, joint=joint.joint or name, scale=scale)


def _build[T](cls: type[T], data: Any, where: str) -> T:
    """A dataclass from a TOML table, refusing what it does not know."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}, it has to be a table")
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}  # pyright: ignore[reportArgumentType]
    if unknown := set(data) - set(known):
        raise ValueError(f"{where}{sorted(unknown)} are none of {sorted(known)}")
    required = [
        name
        for name, item in known.items()
        if item.default is MISSING and item.default_factory is MISSING
    ]
    if missing := [name for name in required if name not in data]:
        raise ValueError(f"{where}{missing} are missing")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint in (StateTopic, CommandTopic):
        return _build(hint, value, f"{where}.")
    if hint in (dict[str, CameraTopic], dict[str, Joint]):
        entry = get_args(hint)[1]
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}, it has to be a table")
        return {key: _build(entry, table, f"{where}.{key}.") for key, table in value.items()}
    if hint == MotionLimits | None:
        return _build(MotionLimits, value, f"{where}.")
    if isinstance(value, list):
        return tuple(value)
    number = (int, float)
    expected = {float: number, float | None: number, int: (int,), bool: (bool,)}.get(hint, (str,))
    # A bool is an int to Python, and never meant as a number here.
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        kind = "text" if str in expected else expected[-1].__name__
        raise ValueError(f"{where} is {value!r}, it has to be of type {kind}")
    return value
