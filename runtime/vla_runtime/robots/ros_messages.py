"""ROS messages as rosbridge delivers them, decoded and checked; field by field, never trusted.

The fields are those of sensor_msgs, trajectory_msgs and std_msgs; ROS 1 and ROS 2 differ in the
names of a stamp's parts alone.
"""

from __future__ import annotations

import io
from base64 import b64decode
from typing import Any

import numpy as np
from PIL import Image

JOINT_STATE = "sensor_msgs/JointState"
COMPRESSED_IMAGE = "sensor_msgs/CompressedImage"
RAW_IMAGE = "sensor_msgs/Image"
JOINT_TRAJECTORY = "trajectory_msgs/JointTrajectory"
FLOAT_ARRAY = "std_msgs/Float64MultiArray"

# Encoding → channels, and which of them are red, green and blue.
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
# The robot's clock may run this much slower than ours before its messages look old.
_CLOCK_DRIFT = 2e-4


class StampClock:
    """From the header stamps of one source to local time.

    The two clocks may differ by any amount. The least delay seen so far between stamp and arrival
    counts as none, so that what arrives later than usual is as old as it is late: a backlog in the
    network shows although messages keep arriving.
    """

    def __init__(self) -> None:
        self._stamp_s = -np.inf
        self._arrival_s = -np.inf
        self._offset_s = np.inf

    def measured_s(self, stamp_s: float, arrival_s: float) -> float:
        """`time.monotonic()` at which a message was measured; never after its arrival.

        Raises:
            ValueError: the stamp is not newer than the last one.
        """
        if not stamp_s > self._stamp_s:
            back_s = self._stamp_s - stamp_s
            raise ValueError(
                f"went back by {back_s:.3f} s in its stamp: a clock was set, or two nodes publish"
                if back_s
                else f"repeats the stamp {stamp_s:.3f}: it is frozen"
            )
        if np.isfinite(self._offset_s):
            self._offset_s += _CLOCK_DRIFT * (arrival_s - self._arrival_s)
        self._offset_s = min(self._offset_s, arrival_s - stamp_s)
        self._stamp_s, self._arrival_s = stamp_s, arrival_s
        return stamp_s + self._offset_s

    def stamp_s(self, local_s: float) -> float:
        """The robot's time at a local time, late by the least delay seen."""
        return local_s - self._offset_s


def stamp_s(message: dict[str, Any]) -> float:
    """Seconds of a message's header.

    Raises:
        ValueError: there is none, or nobody filled it in.
    """
    stamp = _field(_field(message, "header"), "stamp")
    if not isinstance(stamp, dict):
        raise ValueError(f"the header's stamp is {stamp}")
    # ROS 1 says secs and nsecs, ROS 2 sec and nanosec.
    seconds = stamp.get("secs", stamp.get("sec"))
    nanoseconds = stamp.get("nsecs", stamp.get("nanosec"))
    if not isinstance(seconds, int) or not isinstance(nanoseconds, int):
        raise ValueError(f"the header's stamp is {stamp}")
    if not seconds and not nanoseconds:
        raise ValueError(
            "the header's stamp is 0; a driver that stamps nothing needs stamps = false"
        )
    return seconds + nanoseconds * 1e-9


def joint_columns(message: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A JointState by joint: name → what was given of position, velocity and effort.

    Raises:
        ValueError: a joint repeats, or a field is neither empty nor as long as the names.
    """
    names = _field(message, "name")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the joint names are {str(names)[:80]}")
    if len(set(names)) != len(names):
        raise ValueError(f"joints repeat: {names}")
    joints: dict[str, dict[str, float]] = {name: {} for name in names}
    for key in ("position", "velocity", "effort"):
        # null, the bridge's word for NaN and the infinities, becomes NaN here.
        values = np.array(_field(message, key), dtype=np.float64)
        if values.shape not in ((0,), (len(names),)):
            raise ValueError(f"{key} has the shape {values.shape}, there are {len(names)} names")
        for name, value in zip(names, values.tolist(), strict=False):
            joints[name][key] = value
    return joints


def image_of(message: dict[str, Any], message_type: str, height: int, width: int) -> np.ndarray:
    """The image of an Image or CompressedImage, uint8 [height, width, 3].

    Raises:
        ValueError: of another size, or of an encoding that is not known.
    """
    data = _field(message, "data")
    if isinstance(data, str):
        data = b64decode(data, validate=True)
    if not isinstance(data, bytes):
        raise ValueError(f"the image's data are a {type(data).__name__}")
    if message_type == RAW_IMAGE:
        return _raw_image(message, data, height, width)
    # Nothing is decoded before its size is known to be right.
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        _require_size(image.height, image.width, height, width)
        return np.asarray(image.convert("RGB"))


def _raw_image(message: dict[str, Any], data: bytes, height: int, width: int) -> np.ndarray:
    _require_size(_field(message, "height"), _field(message, "width"), height, width)
    encoding, step = _field(message, "encoding"), _field(message, "step")
    if encoding not in _ENCODINGS:
        raise ValueError(f"the encoding {encoding!r} is none of {sorted(_ENCODINGS)}")
    channels, order = _ENCODINGS[encoding]
    if not isinstance(step, int) or step < width * channels or len(data) != step * height:
        raise ValueError(f"{len(data)} bytes with rows of {step} are no {encoding} image")
    # A row may end in padding: step >= width * channels.
    rows = np.frombuffer(data, np.uint8).reshape(height, step)[:, : width * channels]
    return np.ascontiguousarray(rows.reshape(height, width, channels)[:, :, order])


def _require_size(height: Any, width: Any, wanted_height: int, wanted_width: int) -> None:
    if (height, width) != (wanted_height, wanted_width):
        raise ValueError(
            f"the image has {width} x {height} pixels, the contract says {wanted_width} x "
            f"{wanted_height}; set the camera's driver, or resize on the robot with image_proc"
        )


def _field(message: Any, name: str) -> Any:
    if not isinstance(message, dict) or name not in message:
        raise ValueError(f"the message has no field {name!r}: is its type as configured?")
    return message[name]


def trajectory(
    joints: list[str], positions: list[float], reach_s: float, stamp_s: float
) -> dict[str, Any]:
    """A JointTrajectory of one point.

    Args:
        joints: their names.
        positions: where they have to be, rad or m.
        reach_s: how long after the stamp.
        stamp_s: start, in the robot's time; 0 for "when it arrives". A controller drops a
            trajectory that ended before it came.
    """
    point = {
        "positions": positions,
        "velocities": [],
        "accelerations": [],
        "effort": [],
        "time_from_start": _time(reach_s),
    }
    return {
        "header": {"stamp": _time(stamp_s), "frame_id": ""},
        "joint_names": joints,
        "points": [point],
    }


def float_array(values: list[float]) -> dict[str, Any]:
    """A Float64MultiArray of one dimension."""
    return {"layout": {"dim": [], "data_offset": 0}, "data": values}


def _time(seconds: float) -> dict[str, int]:
    # These names are understood by the bridges of both, ROS 1 and ROS 2.
    whole, nanoseconds = divmod(round(seconds * 1e9), 1_000_000_000)
    return {"secs": whole, "nsecs": nanoseconds}
