"""The SO-101 emulator in a process of its own, and LeRobot's driver on it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vla_runtime.robots.lerobot_robot import LeRobotOptions, LeRobotRobot, make

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def light_arm() -> str:
    """SO-101's joints without its meshes, which take seconds to load and to draw."""
    link, end = "", ""
    for index, name in enumerate(JOINTS):
        low, high = (-0.17, 1.75) if name == "gripper" else (-1.9, 1.9)
        axis = "0 0 1" if index % 2 == 0 else "0 1 0"
        link += (
            f'<body pos="0 0 0.05"><joint name="{name}" axis="{axis}" range="{low} {high}" '
            'damping="0.6" frictionloss="0.05" armature="0.028"/>'
            '<geom type="capsule" fromto="0 0 0 0 0 0.05" size="0.01" mass="0.05"/>'
        )
        end += "</body>"
    servos = "".join(f'<position name="{name}" joint="{name}" kp="17.8"/>' for name in JOINTS)
    return (
        '<mujoco><compiler angle="radian"/><worldbody><light pos="0 0 2"/>'
        '<camera name="front" pos="0.5 0 0.2" xyaxes="0 1 0 0 0 1"/>'
        f"{link}{end}</worldbody><actuator>{servos}</actuator></mujoco>"
    )


class PatientRobot(LeRobotRobot):
    """Connects in as many tries as it takes: 50 ms for a ping may be too short on a busy one."""

    def connect(self) -> None:
        """Until it answers."""
        for _ in range(20):
            try:
                return super().connect()
            except ConnectionError as error:
                trouble = error
        raise trouble


class EmulatedArm:
    """A running emulator.

    Args:
        folder: for its link and its calibration.
        more: further flags.
    """

    def __init__(self, folder: Path, more: str = ""):
        self.port, self.folder = folder / "port", folder
        words = ["--link", str(self.port), "--calibration", str(folder / "emulated.json")]
        model = folder / "arm.xml"
        model.write_text(light_arm())
        words += ["--model", str(model), *more.split()]
        # Several threads of a test ask.
        self._one_at_a_time = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vla_runtime.robots.so101_emulator", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self._answer()) == {"port": str(self.port)}

    def tell(self, line: str = "state") -> dict[str, Any]:
        """Give it a line; its answer."""
        assert self._process.stdin
        with self._one_at_a_time:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return json.loads(self._answer())

    def close(self) -> None:
        """End it; it takes its link away."""
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        assert not self.port.is_symlink()

    def argument(self, timeout_s: float = 0.4, more: str = "") -> str:
        """The robot's text. The time-out allows for a busy machine."""
        return (
            f"so101_follower --port={self.port} --id=emulated --calibration_dir={self.folder} "
            f"--rate_hz=50 --timeout_s={timeout_s} {more}"
        )

    def robot(self, timeout_s: float = 0.4, more: str = "") -> LeRobotRobot:
        """LeRobot's driver on it, not connected."""
        made = make(self.argument(timeout_s, more))
        assert isinstance(made, LeRobotRobot)
        return PatientRobot(made.device, LeRobotOptions(rate_hz=50.0, timeout_s=timeout_s))

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


def settled(arm: EmulatedArm) -> dict[str, Any]:
    """The emulator's state once the arm stands still."""
    time.sleep(0.2)  # a goal that has just been sent moves nothing yet
    end_s = time.monotonic() + 30
    while (state := arm.tell()) and max(state["speed"]) > 1e-3 and time.monotonic() < end_s:
        time.sleep(0.05)
    return state
