"""An arm on ROS, its bridge, and the robot of ours that is connected to both."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ros_arm import CAMERA, COMMAND, Arm
from ros_backends import LoopbackRos
from ros_layer import Bridge
from vla_runtime.contract import CameraSpec, RobotSpec, VectorSpec
from vla_runtime.robots.ros import RosRobot, make

# Long for an arm at 50 Hz, because test machines are loaded.
STATE_TIMEOUT_S = 0.3
CAMERA_TIMEOUT_S = 0.5
# The arm's own joints: one in degrees, one in radians, a finger in hundredths of its way.
ACTION = VectorSpec(
    names=("shoulder", "elbow_joint", "finger"),
    units=("deg", "rad", "1"),
    low=(-90.0, -3.0, 0.0),
    high=(90.0, 3.0, 100.0),
)
SPEC = RobotSpec(
    robot="ros_arm",
    action=ACTION,
    proprio=ACTION,
    cameras=(CameraSpec("front", 48, 64),),
    control_rate_hz=50.0,
)
FILE = f"""
address = "ws://127.0.0.1:1"
contract = "contract.json"
state_timeout_ms = {STATE_TIMEOUT_S * 1e3:.0f}
camera_timeout_ms = {CAMERA_TIMEOUT_S * 1e3:.0f}
connect_timeout_s = 3.0

[command]
topic = "{COMMAND}"

[cameras.front]
topic = "{CAMERA}"

[joints]
shoulder = {{ joint = "shoulder_joint" }}
finger = {{ joint = "finger_joint", scale = 50.0, offset = 10.0 }}

[motion]
kinds = ["position", "position", "position"]
velocity = [60.0, 2.0, 100.0]
acceleration = [600.0, 20.0, 1000.0]
"""


def write_files(folder: Path, text: str = FILE, spec: RobotSpec = SPEC) -> Path:
    """The robot's file and the contract beside it."""
    (folder / "contract.json").write_text(json.dumps(spec.to_dict()))
    (folder / "robot.toml").write_text(text)
    return folder / "robot.toml"


def jpegs(height: int = 48, width: int = 64) -> list[bytes]:
    """Two images of one colour, as good as equal: a camera's images never repeat exactly."""
    files = [io.BytesIO(), io.BytesIO()]
    for red, file in zip((199, 201), files, strict=True):
        pixels = np.full((height, width, 3), (red, 50, 100), np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
    return [file.getvalue() for file in files]


@dataclass
class Setup:
    """What a test holds of both sides."""

    robot: RosRobot
    bridge: Bridge
    arm: Arm
    folder: Path


@contextmanager
def ros_setup(
    folder: Path,
    text: str = FILE,
    spec: RobotSpec = SPEC,
    reports: bool = False,
    prepare: Callable[[Arm], object] = lambda arm: None,
) -> Iterator[Setup]:
    """An arm that runs, a bridge, and a robot that is not connected yet."""
    ros = LoopbackRos()
    arm = Arm(ros, jpegs())
    prepare(arm)
    arm.start()
    bridge = Bridge(ros, reports=reports)
    path = write_files(folder, text, spec)
    robot = make(f"ws://127.0.0.1:{bridge.port}?config={path}")
    try:
        yield Setup(robot, bridge, arm, folder)
    finally:
        robot.disconnect()
        bridge.stop()
        arm.stop()


class BridgeProcess:
    """A bridge and its arm on a loopback, in a process of their own.

    Args:
        folder: for the images of the arm's camera, and the robot's file.
        text: of the robot's file.

    Attributes:
        process: the running program.
        name: of the robot, as `--robot` takes it.
    """

    def __init__(self, folder: Path, text: str = FILE) -> None:
        names = [str(folder / f"{k}.jpg") for k in range(2)]
        for name, image in zip(names, jpegs(), strict=True):
            Path(name).write_bytes(image)
        words = [sys.executable, str(Path(__file__).parent / "ros_layer.py"), "0", *names]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        address = f"ws://127.0.0.1:{int(self._line())}"
        self.name = f"ros:{address}?config={write_files(folder, text)}"

    def tell(self, line: str = "tell") -> dict[str, Any]:
        """Let a fault happen; the arm's position, its target, and the commands it executed."""
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)
        return json.loads(self._line())

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll until it holds; a generous bound, so that a loaded machine passes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
