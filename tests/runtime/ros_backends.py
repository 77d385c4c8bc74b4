"""ROS for the tests: a loopback of our own, and the real rospy; both take messages as plain data.

Standard library alone, Python 3.11: rospy runs on Debian's own Python.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

Message = dict[str, Any]
Callback = Callable[[Message], None]

# Type → fields; what the loopback checks of a message.
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "sensor_msgs/JointState": {
        "header": dict,
        "name": list,
        "position": list,
        "velocity": list,
        "effort": list,
    },
    "sensor_msgs/CompressedImage": {"header": dict, "format": str, "data": bytes},
    "sensor_msgs/Image": {
        "header": dict,
        "height": int,
        "width": int,
        "encoding": str,
        "is_bigendian": int,
        "step": int,
        "data": bytes,
    },
    "trajectory_msgs/JointTrajectory": {"header": dict, "joint_names": list, "points": list},
    "std_msgs/Float64MultiArray": {"layout": dict, "data": list},
    "std_msgs/String": {"data": str},
}


class RosError(Exception):
    """What a bridge writes into its log."""


class LoopbackRos:
    """Topics within this process."""

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        self.subscribers: dict[str, list[Callback]] = {}
        self._lock = threading.Lock()

    def advertise(self, topic: str, message_type: str) -> None:
        """Establish a topic; it keeps its type."""
        message_type = message_type.replace("/msg/", "/")
        if message_type not in FIELDS:
            raise RosError(f"unknown type {message_type}")
        if self.types.setdefault(topic, message_type) != message_type:
            raise RosError(f"{topic} is of type {self.types[topic]}, not {message_type}")

    def publish(self, topic: str, message: Message) -> None:
        """Check the message and hand it to everyone who listens."""
        if topic not in self.types:
            raise RosError(f"{topic} is not advertised")
        fields = FIELDS[self.types[topic]]
        for name, value in message.items():
            if name not in fields or not isinstance(value, fields[name]):
                raise RosError(f"{self.types[topic]} has no field {name} = {str(value)[:40]}")
        with self._lock:
            callbacks = list(self.subscribers.get(topic, []))
        for callback in callbacks:
            callback(message)

    def subscribe(self, topic: str, message_type: str, callback: Callback) -> None:
        """Listen; with the wrong type nothing ever comes."""
        self.advertise(topic, message_type)
        with self._lock:
            self.subscribers.setdefault(topic, []).append(callback)

    def unsubscribe(self, topic: str, callback: Callback) -> None:
        """Listen no more."""
        with self._lock:
            self.subscribers[topic].remove(callback)

    def call(self, service: str, arguments: Message) -> Message:
        """Two services of rosapi."""
        topic = arguments["topic"]
        if service == "/rosapi/topic_type":
            return {"type": self.types.get(topic, "")}
        if service == "/rosapi/subscribers":
            return {"subscribers": ["/node"] * len(self.subscribers.get(topic, []))}
        raise RosError(f"no service {service}")


class RospyRos:
    """A node of a running roscore; messages become real genpy messages on their way."""

    def __init__(self, node: str) -> None:
        # By name, as no package that a pyproject.toml could list provides it.
        self._rospy = import_module("rospy")
        self._rospy.init_node(node, disable_signals=True, anonymous=True)
        self._publishers: dict[str, Any] = {}
        self._subscribers: dict[tuple[str, Callback], Any] = {}

    def advertise(self, topic: str, message_type: str) -> None:
        """Register a publisher; the master keeps a topic's type."""
        known = self.call("/rosapi/topic_type", {"topic": topic})["type"]
        if known and known != message_type:
            raise RosError(f"{topic} is of type {known}, not {message_type}")
        self._publishers[topic] = self._rospy.Publisher(
            topic, message_class(message_type), queue_size=1
        )

    def publish(self, topic: str, message: Message) -> None:
        """Build the genpy message and publish it; genpy refuses what the type does not hold."""
        if topic not in self._publishers:
            raise RosError(f"{topic} is not advertised")
        publisher = self._publishers[topic]
        try:
            publisher.publish(to_genpy(publisher.data_class(), message))
        except (self._rospy.ROSException, ValueError) as error:
            raise RosError(str(error)) from error

    def subscribe(self, topic: str, message_type: str, callback: Callback) -> None:
        """Listen; rospy connects to publishers of the same type alone."""
        self._subscribers[topic, callback] = self._rospy.Subscriber(
            topic,
            message_class(message_type),
            lambda message: callback(from_genpy(message)),
            queue_size=1,
        )

    def unsubscribe(self, topic: str, callback: Callback) -> None:
        """Listen no more."""
        self._subscribers.pop((topic, callback)).unregister()

    def call(self, service: str, arguments: Message) -> Message:
        """Two services of rosapi, from the master's own lists."""
        master, topic = self._rospy.get_master(), arguments["topic"]
        if service == "/rosapi/topic_type":
            return {"type": dict(master.getTopicTypes()[2]).get(topic, "")}
        if service == "/rosapi/subscribers":
            return {"subscribers": dict(master.getSystemState()[2][1]).get(topic, [])}
        raise RosError(f"no service {service}")


def message_class(message_type: str) -> Any:
    """The class that genpy generated for a type."""
    found = import_module("roslib.message").get_message_class(message_type)
    if found is None:
        raise RosError(f"unknown type {message_type}")
    return found


def to_genpy(message: Any, values: Message) -> Any:
    """Fill a genpy message from plain data; fields that are not named keep their default."""
    slots = dict(zip(message.__slots__, message._slot_types, strict=True))
    for name, value in values.items():
        if name not in slots:
            raise RosError(f"{message._type} has no field {name}")
        kind = slots[name]
        current = getattr(message, name)
        if kind in ("time", "duration"):
            current.secs, current.nsecs = value["secs"], value["nsecs"]
        elif kind == "uint8[]":
            message_bytes = base64.b64decode(value) if isinstance(value, str) else bytes(value)
            setattr(message, name, message_bytes)
        elif hasattr(current, "_slot_types"):
            to_genpy(current, value)
        elif kind.endswith("[]") and "/" in kind:
            item = message_class(kind[:-2])
            setattr(message, name, [to_genpy(item(), entry) for entry in value])
        else:
            setattr(message, name, value)
    return message


def from_genpy(message: Any) -> Message:
    """Plain data of a genpy message; bytes stay bytes."""
    values: Message = {}
    for name, kind in zip(message.__slots__, message._slot_types, strict=True):
        value = getattr(message, name)
        if kind in ("time", "duration"):
            value = {"secs": value.secs, "nsecs": value.nsecs}
        elif hasattr(value, "_slot_types"):
            value = from_genpy(value)
        elif kind.endswith("[]") and "/" in kind:
            value = [from_genpy(entry) for entry in value]
        elif isinstance(value, tuple):
            value = list(value)
        values[name] = value
    return values
