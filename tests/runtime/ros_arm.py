"""A robot's ROS side for the tests: drivers that publish, and a trajectory controller.

    python ros_arm.py [IMAGE.jpg ...]   a node of a running roscore, on Debian's Python

Standard library alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

JOINTS = ("shoulder_joint", "elbow_joint", "finger_joint")
STATE, CAMERA, COMMAND = "/joint_states", "/camera/compressed", "/arm_controller/command"
RATE_HZ = 50.0
# Speed of its motors, rad/s.
SPEED = 2.0


class Arm:
    """Publishes state and image at 50 Hz, and follows trajectories of one point.

    Attributes:
        position: of its joints.
        target: where they go.
        images: what its camera sees, one after the other.
        commands: the trajectories that were executed.
        expired: how many were dropped, because they ended before they came.
        running: what stops when its flag is cleared: "state", "camera".
        change: called on every JointState before it is published.
    """

    def __init__(self, ros: Any, images: Sequence[bytes] = ()) -> None:
        self.ros, self.images = ros, images
        self.position = dict.fromkeys(JOINTS, 0.0)
        self.commands: list[dict[str, Any]] = []
        self.expired = 0
        self.running = {"state": True, "camera": bool(images)}
        self.change = lambda message: message
        self.frozen_stamp: dict[str, int] | None = None
        self._seen = 0
        self.target = dict(self.position)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Arm:
        """Advertise, subscribe, publish from a thread."""
        self.ros.advertise(STATE, "sensor_msgs/JointState")
        if self.images:
            self.ros.advertise(CAMERA, "sensor_msgs/CompressedImage")
        self.ros.subscribe(COMMAND, "trajectory_msgs/JointTrajectory", self._follow)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        # Absolute deadlines: a late tick does not move the following ones.
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due += 1 / RATE_HZ
            self.tick()

    def tick(self) -> None:
        """Move for one period, and publish."""
        step = SPEED / RATE_HZ
        for joint, target in self.target.items():
            error = target - self.position[joint]
            self.position[joint] += max(-step, min(step, error))
        header = {"stamp": stamp_now(), "frame_id": ""}
        if self.running["state"]:
            state = {
                "header": header,
                "name": list(self.position),
                "position": list(self.position.values()),
                "velocity": [0.0] * len(JOINTS),
                "effort": [],
            }
            self.ros.publish(STATE, self.change(state))
        if self.running["camera"]:
            header = {**header, "stamp": self.frozen_stamp or header["stamp"]}
            self._seen += 1
            data = self.images[self._seen % len(self.images)]
            self.ros.publish(CAMERA, {"header": header, "format": "jpeg", "data": data})

    @property
    def points(self) -> list[list[float]]:
        """Positions of the commands that were executed, [command][joint]."""
        return [command["points"][0]["positions"] for command in self.commands]

    def _follow(self, message: dict[str, Any]) -> None:
        [point] = message["points"]
        stamp, reach = message["header"]["stamp"], point["time_from_start"]
        if stamp["secs"] and seconds(stamp) + seconds(reach) < time.time():
            self.expired += 1
            return
        self.commands.append(message)
        names = message["joint_names"]
        self.target.update(zip(names, point["positions"], strict=True))


def _freeze(arm: Arm) -> None:
    arm.frozen_stamp = stamp_now()


def _keep_one_image(arm: Arm) -> None:
    arm.images = arm.images[:1]


def _measure_nan(arm: Arm) -> None:
    arm.change = lambda message: message | {"position": [float("nan")] * len(JOINTS)}


# What may go wrong with its drivers.
FAULTS: dict[str, Callable[[Arm], object]] = {
    "the joint driver stops": lambda arm: arm.running.update(state=False),
    "the camera stops": lambda arm: arm.running.update(camera=False),
    "the camera repeats its last message": _freeze,
    "the camera stamps its last image anew": _keep_one_image,
    "NaN": _measure_nan,
}


def seconds(stamp: dict[str, int]) -> float:
    """Of a time or a duration."""
    return stamp["secs"] + stamp["nsecs"] * 1e-9


def stamp_now() -> dict[str, int]:
    """The robot's clock, which is not ours."""
    whole, rest = divmod(time.time_ns(), 1_000_000_000)
    return {"secs": whole, "nsecs": rest}


def main() -> None:
    """Run until killed; prints what it executed, a line a command."""
    from ros_backends import RospyRos

    arm = Arm(RospyRos("arm"), [Path(name).read_bytes() for name in sys.argv[1:]]).start()
    printed = 0
    print("ready", flush=True)
    while True:
        time.sleep(0.02)
        for point in arm.points[printed:]:
            print(point, flush=True)
            printed += 1


if __name__ == "__main__":
    main()
