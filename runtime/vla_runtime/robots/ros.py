"""A ROS 1 or ROS 2 robot behind a rosbridge: JointState and images in, trajectories out."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vla_runtime.contract import CameraSpec, Reading, RobotSpec
from vla_runtime.robots.image_age import ImageAges
from vla_runtime.robots.ros_config import (
    RosConfig,
    displacements,
    load_ros_config,
    resolve_joints,
    ros1_type,
)
from vla_runtime.robots.ros_messages import (
    FLOAT_ARRAY,
    JOINT_TRAJECTORY,
    StampClock,
    float_array,
    image_of,
    joint_columns,
    stamp_s,
    trajectory,
)
from vla_runtime.robots.rosbridge import Rosbridge

_LOG = logging.getLogger(__name__)
# Beside the largest image, a JointState of a hundred joints is about this.
_MESSAGE_MARGIN_BYTES = 65536
_CLOSE_TIMEOUT_S = 0.5
_FIRST_WAIT_S = 1.0
# Share of a dimension's range after which an image that has not changed counts as old.
_MOVED = 0.02
_SERVICE_TIMEOUT_S = 2.0
# What holds when nothing is sent any more, by the type of the command.
_UNSENT = {
    JOINT_TRAJECTORY: "nothing more is sent; the controller ends at the last commanded position "
    "and holds it, as long as its driver runs. Only the robot's own stop takes its power",
    FLOAT_ARRAY: "nothing more is sent; what the robot does then is up to the node that takes its "
    "commands. Only the robot's own stop takes its power",
}
_WHERE_TO_LOOK = "the bridge itself reports nothing: compare topics and types, and read its log"


def make(argument: str) -> RosRobot:
    """The robot of `--robot ros:FILE.toml` or `--robot ros:ws://HOST:PORT?config=FILE.toml`.

    Raises:
        ValueError, OSError: see `load_ros_config`.
    """
    return RosRobot(*load_ros_config(argument))


@dataclass
class _Source:
    """The newest valid data of one joint or camera."""

    timeout_s: float
    clock: StampClock = field(default_factory=StampClock)
    data: Any = None
    measured_s: float = -math.inf


class RosRobot:
    """A robot that is reached through a rosbridge.

    What cannot be used (a missing joint, a null, an image of another size, a stamp that repeats or
    goes back) counts as not having come, and the source's time-out ends in a ConnectionError
    that says what was wrong with it.

    Args:
        config: topics, joints, time-outs.
        spec: the contract.

    Raises:
        ValueError: configuration and contract do not fit.
    """

    def __init__(self, config: RosConfig, spec: RobotSpec) -> None:
        self.spec = spec
        self.halted = self._unsent = _UNSENT[ros1_type(config.command.type)]
        self._config = config
        self._joints = resolve_joints(config, spec)
        # ROS joint → the fields of a JointState that are needed.
        self._fields: dict[str, set[str]] = {}
        for joint in self._joints.values():
            self._fields.setdefault(joint.joint, set()).add(joint.field)
        # Actions that say where to be.
        self._placed = [name for name in spec.action.names if name not in displacements(spec)]
        self._is_placed = np.array([name in self._placed for name in spec.action.names])
        self._bridge: Rosbridge | None = None
        self._changed = threading.Condition()
        self._longest_wait_s = 0.5 / spec.control_rate_hz
        self._has_read = False
        self._sources = self._new_sources()
        self._ages = self._new_ages()
        # The last command that was written; None before the first one.
        self._last: np.ndarray | None = None

    def connect(self) -> None:
        """Subscribe, and wait for a first message of every joint and camera.

        A lost connection is replaced; nothing of the old one is kept.

        Raises:
            ConnectionError: nobody answers, something does not come, or nobody listens to the
                commands (told only where the robot runs rosapi).
        """
        self.disconnect()
        config = self._config
        started_s = time.monotonic()
        with self._changed:
            self._sources, self._ages = self._new_sources(), self._new_ages()
        self._bridge = bridge = Rosbridge(
            config.address,
            max_message_bytes=self._largest_message(),
            open_timeout_s=config.connect_timeout_s,
            close_timeout_s=_CLOSE_TIMEOUT_S,
        )
        try:
            self._subscribe(bridge)
            bridge.advertise(config.command.topic, config.command.type)
            while problem := self._problem():
                if bridge.lost:
                    raise ConnectionError(problem)
                if time.monotonic() - started_s > config.connect_timeout_s:
                    hints = self._hints(bridge)
                    raise ConnectionError("\n  ".join([problem, *hints, _WHERE_TO_LOOK]))
                time.sleep(0.01)
            self._require_listener(bridge)
        except ConnectionError:
            self.disconnect()
            raise

    def read(self) -> Reading:
        """The newest measurements, at once; half a control period later when they are too old.

        The first reading waits for up to a second: a loop collects garbage before it begins.

        Raises:
            ConnectionError: the connection is lost, or a joint or camera is older than its
                time-out; with what was wrong with the messages meanwhile.
        """
        longest_wait_s = self._longest_wait_s
        if self._bridge and not self._has_read:
            self._bridge.share_scheduling()
            self._has_read, longest_wait_s = True, _FIRST_WAIT_S
        with self._changed:
            # This process may have stood still, and what came meanwhile waits to be taken.
            self._changed.wait_for(lambda: not self._problem(), longest_wait_s)
            self._require_fresh()
            proprio = np.array([self._measured(n) for n in self.spec.proprio.names], np.float32)
            images = {c.name: self._sources[_camera(c.name)].data for c in self.spec.cameras}
            position = self._position()
            measured_s = min(source.measured_s for source in self._sources.values())
        # A driver may stamp an old image anew: its pixels tell.
        unchanged_s = self._ages.oldest_s(images, proprio, time.monotonic())
        return Reading(images, proprio, position, min(measured_s, unchanged_s))

    def write(self, command: np.ndarray) -> None:
        """Send a command, at once.

        A stopped bridge would take it, and execute it when it goes on: without fresh measurements
        nothing is sent.

        Raises:
            ConnectionError: see `read`.
            ValueError: not float64 [action.dim], or not finite.
        """
        if command.shape != (self.spec.action.dim,) or not np.isfinite(command).all():
            raise ValueError(
                f"the command {command} is not one finite number for each of "
                f"{list(self.spec.action.names)}"
            )
        with self._changed:
            self._require_fresh()
        self._last = command.copy()
        self._send(command)

    def halt(self) -> None:
        """Send the last command once more, with displacements of 0; nothing before the first one.

        Where measurements are stale nothing is sent either: a stopped bridge would carry it out
        later. The controller then ends at the same position by itself.
        """
        self.halted = self._unsent
        try:
            with self._changed:
                self._require_fresh()
            if self._last is None:
                return
            self._send(np.where(self._is_placed, self._last, 0.0))
        except ConnectionError as error:
            self.halted = f"{error}; {self._unsent}"
            return
        self.halted = (
            "the robot was told to hold the last command; whether it does shows in the "
            "measurements alone, and torque stays on"
        )

    def disconnect(self) -> None:
        """Close the connection."""
        if self._bridge:
            self._bridge.close()
        self._bridge = None
        self._last, self._has_read = None, False

    def _new_sources(self) -> dict[str, _Source]:
        joint_s = self._config.state_timeout_ms / 1e3
        camera_s = self._config.camera_timeout_ms / 1e3
        joints = {_joint(name): _Source(joint_s) for name in self._fields}
        return joints | {_camera(camera.name): _Source(camera_s) for camera in self.spec.cameras}

    def _new_ages(self) -> ImageAges:
        proprio = self.spec.proprio
        return ImageAges(_MOVED * np.subtract(proprio.high, proprio.low))

    def _largest_message(self) -> int:
        pixels = max((camera.height * camera.width for camera in self.spec.cameras), default=0)
        # Four bytes a pixel at most, in base64.
        return pixels * 4 * 4 // 3 + _MESSAGE_MARGIN_BYTES

    def _subscribe(self, bridge: Rosbridge) -> None:
        # Twice the control rate: at the rate itself, every second message of a slightly faster
        # source would be dropped.
        throttle_ms = int(500 / self.spec.control_rate_hz)
        state = self._config.state
        bridge.subscribe(state.topic, state.type, self._take_joints, throttle_ms=throttle_ms)
        for camera in self.spec.cameras:
            topic = self._config.cameras[camera.name]
            bridge.subscribe(
                topic.topic,
                topic.type,
                partial(self._take_image, camera, ros1_type(topic.type)),
                throttle_ms=throttle_ms,
                # Of images alone: ROS 1's bridge fails to pack a JointState's names into CBOR.
                compression=self._config.compression,
            )

    def _take_joints(self, message: dict[str, Any], arrival_s: float) -> None:
        columns, stamp = joint_columns(message), self._stamp(message)
        troubles = []
        # Joints may come in any order, and from several publishers: each is judged by itself.
        for name in self._fields.keys() & columns.keys():
            try:
                values = {key: columns[name].get(key, math.nan) for key in self._fields[name]}
                if bad := [key for key, value in values.items() if not math.isfinite(value)]:
                    raise ValueError(f"has no finite {', '.join(sorted(bad))}")
                self._store(_joint(name), values, stamp, arrival_s)
            except ValueError as error:
                troubles.append(f"{_joint(name)} {error}")
        if troubles:
            raise ValueError("; ".join(troubles))

    def _take_image(
        self, camera: CameraSpec, message_type: str, message: dict[str, Any], arrival_s: float
    ) -> None:
        image = image_of(message, message_type, camera.height, camera.width)
        self._store(_camera(camera.name), image, self._stamp(message), arrival_s)

    def _stamp(self, message: dict[str, Any]) -> float | None:
        return stamp_s(message) if self._config.stamps else None

    def _store(self, key: str, data: Any, stamp: float | None, arrival_s: float) -> None:
        source = self._sources[key]
        measured_s = arrival_s
        if stamp is not None:
            measured_s = source.clock.measured_s(stamp, arrival_s)
        with self._changed:
            source.data, source.measured_s = data, measured_s
            self._changed.notify_all()

    def _problem(self) -> str | None:
        """Why the measurements are not to be used; None when they are."""
        if self._bridge is None:
            return "the robot is not connected"
        if self._bridge.lost:
            return f"the connection to {self._config.address} is lost: {self._bridge.lost}"
        now = time.monotonic()
        stale = {k: s for k, s in self._sources.items() if now - s.measured_s > s.timeout_s}
        if not stale:
            return None
        ages = [
            f"{key} for {1e3 * (now - source.measured_s):.0f} ms"
            if source.data is not None
            else f"{key} at all"
            for key, source in stale.items()
        ]
        since_s = min(source.measured_s for source in stale.values())
        return "\n  ".join([f"nothing usable of {', '.join(ages)}", *self._bridge.trouble(since_s)])

    def _require_fresh(self) -> None:
        if problem := self._problem():
            raise ConnectionError(problem)

    def _measured(self, name: str) -> float:
        joint = self._joints[name]
        return self._sources[_joint(joint.joint)].data[joint.field] * joint.scale + joint.offset

    def _position(self) -> np.ndarray:
        # [action.dim]; a displacement of 0 is what holds.
        names = self.spec.action.names
        return np.array([self._measured(n) if n in self._placed else 0.0 for n in names])

    def _send(self, command: np.ndarray) -> None:
        """Raises ConnectionError; `command` is finite and of the right length."""
        if self._bridge is None:
            raise ConnectionError("the robot is not connected")
        values = dict(zip(self.spec.action.names, command.tolist(), strict=True))
        for name in self._placed:
            joint = self._joints[name]
            values[name] = (values[name] - joint.offset) / joint.scale
        topic = self._config.command
        if ros1_type(topic.type) == JOINT_TRAJECTORY:
            joints = [self._joints[name].joint for name in values]
            message = trajectory(joints, list(values.values()), self._reach_s(), self._stamp_s())
        else:
            message = float_array(list(values.values()))
        self._bridge.publish(topic.topic, message)

    def _reach_s(self) -> float:
        return self._config.command.reach_ms / 1e3 or max(2 / self.spec.control_rate_hz, 0.05)

    def _stamp_s(self) -> float:
        if not self._config.stamps:
            return 0.0
        joint = self._joints[self.spec.action.names[0]].joint
        return self._sources[_joint(joint)].clock.stamp_s(time.monotonic())

    def _require_listener(self, bridge: Rosbridge) -> None:
        topic = self._config.command.topic
        reply = bridge.call("/rosapi/subscribers", {"topic": topic}, _SERVICE_TIMEOUT_S)
        if reply is None:
            _LOG.warning("no rosapi on the robot: whether anybody listens to %s is unknown", topic)
        elif not reply.get("subscribers"):
            raise ConnectionError(f"nobody on the robot listens to the command topic {topic}")

    def _hints(self, bridge: Rosbridge) -> list[str]:
        """What rosapi says of topics that are not as configured."""
        hints = []
        for topic in (self._config.state, *self._config.cameras.values()):
            arguments = {"topic": topic.topic}
            reply = bridge.call("/rosapi/topic_type", arguments, _SERVICE_TIMEOUT_S)
            if reply is None:
                break
            there = str(reply.get("type"))
            if ros1_type(there) != ros1_type(topic.type):
                hints.append(f"{topic.topic} on the robot: {there or 'no such topic'}")
        return hints


def _joint(name: str) -> str:
    return f"joint {name!r}"


def _camera(name: str) -> str:
    return f"camera {name!r}"
