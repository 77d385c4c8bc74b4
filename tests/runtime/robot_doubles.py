"""A clock that is set by hand, and a small arm in MuJoCo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from vla_runtime.contract import CameraSpec, Reading, RobotSpec, VectorSpec

ARM = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.002"/>
  <worldbody>
    <light pos="0 0 2"/>
    <camera name="top" pos="0.2 0 0.8"/>
    <body>
      <joint name="turn" type="hinge" axis="0 0 1" range="-1 1" limited="true" damping="1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" rgba="1 0 0 1"/>
      <body pos="0.3 0 0">
        <joint name="slide" type="slide" axis="1 0 0" range="0 0.1" limited="true" damping="10"/>
        <geom type="box" size="0.02 0.02 0.02"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="turn" joint="turn" kp="20" ctrlrange="-0.8 2" ctrllimited="true"/>
    <position name="reach" joint="slide" kp="200" gear="2"/>
  </actuator>
  <keyframe><key name="left" qpos="0.5 0.05"/></keyframe>
</mujoco>
"""
TWO_JOINTS = VectorSpec(("a", "b"), ("rad", "m"), (-1.0, 0.0), (1.0, 0.5))
SPEC = RobotSpec("double", TWO_JOINTS, TWO_JOINTS, (CameraSpec("eye", 2, 2),), 50.0)


class Clock:
    """Seconds that go on when they are told to."""

    def __init__(self, now: float = 100.0):
        self.now = now

    def __call__(self) -> float:
        """What it shows."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class CountingRobot:
    """Measures how often it has been read, in every number and pixel."""

    spec = SPEC
    halted = "it stands"

    def __init__(self, clock: Clock):
        self.clock = clock
        self.reads = 0
        self.calls: list[object] = []

    def connect(self) -> None:
        """Noted."""
        self.calls.append("connect")

    def read(self) -> Reading:
        """One more than before."""
        self.reads += 1
        image = np.full((2, 2, 3), self.reads, np.uint8)
        vector = np.full(2, self.reads / 100)
        return Reading({"eye": image}, vector.astype(np.float32), vector, self.clock())

    def write(self, command: np.ndarray) -> None:
        """Noted."""
        self.calls.append(command)

    def halt(self) -> None:
        """Noted."""
        self.calls.append("halt")

    def disconnect(self) -> None:
        """Noted."""
        self.calls.append("disconnect")


def write_arm(folder: Path, text: str = ARM, name: str = "arm.xml") -> Path:
    """The small arm as a file."""
    path = folder / name
    path.write_text(text)
    return path
