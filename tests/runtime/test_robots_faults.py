"""Faults on the way from a policy to the SO-101's servos: each ends with an arm that stands still.

The driver is the real one, the launch path that of `vla run`; the arm is the emulator in its own
process, which says what the servos were told and how the joints move.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_policies import load
from so101_process import JOINTS, EmulatedArm, PatientRobot, settled
from vla_runtime.robots.lerobot_robot import LeRobotOptions, LeRobotRobot
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.run_report import RunReport
from vla_runtime.safety.gate import SafetyConfig

# Long enough for a machine that is busy with other tests; `test_every_fault_in_time` has the
# defaults.
PATIENT = SafetyConfig(max_observation_age_s=2.0, heartbeat_s=1.5)
TORQUE_STAYS = "--disable_torque_on_disconnect=false"
Action = Callable[[], object]


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedArm]:
    """One emulator for the faults that leave its port in place."""
    arm = EmulatedArm(tmp_path_factory.mktemp("so101"))
    yield arm
    arm.close()


@pytest.fixture(autouse=True)
def _healthy(arm: EmulatedArm) -> Iterator[None]:
    yield
    for line in ("drop 0", "corrupt 0", "delay 0 0"):
        arm.tell(line)


@dataclass
class Run:
    """A run on the emulator with one fault.

    Attributes:
        arm: the emulator.
        folder: for limits, report, and the trigger of the policy's faults.
        policy: how the policy fails.
        safety: of the gate.
        timeout_s: of the driver.
        seconds: how long it would last.
        limit_deg: of all joints but the gripper.
        priority: of the control loop.
        injected_s: when the fault happened.
        speeds: (time, fastest joint in rad/s) since then.
    """

    arm: EmulatedArm
    folder: Path
    policy: str = "never"
    safety: SafetyConfig = PATIENT
    timeout_s: float = 0.4
    seconds: float = 60.0
    limit_deg: float = 25.0
    priority: int = 0
    injected_s: float = 0.0
    speeds: list[tuple[float, float]] = field(default_factory=list)

    def robot(self) -> LeRobotRobot:
        """The driver, which leaves torque on, so that the arm's last state can be seen."""
        return self.arm.robot(self.timeout_s, TORQUE_STAYS)

    @property
    def limits(self) -> Path:
        """The limits as a user writes them."""
        path = self.folder / "limits.toml"
        path.write_text(
            "".join(
                f'[action."{name}.pos"]\nkind = "position"\nvelocity = 60.0\nacceleration = 300.0\n'
                + (
                    f"low = {-self.limit_deg}\nhigh = {self.limit_deg}\n"
                    if name != "gripper"
                    else ""
                )
                for name in JOINTS
            )
        )
        return path

    @property
    def trigger(self) -> Path:
        """Its existence makes the policy fail."""
        return self.folder / "trigger"

    def go(self, fault: Action, robot: LeRobotRobot | None = None) -> RunReport:
        """Run; once the arm moves, the fault happens. What came of it."""
        begin = self.arm.tell()["goal_writes"]

        ended = threading.Event()

        def wait_and_fail() -> None:
            while self.arm.tell()["goal_writes"] < begin + 30:
                if ended.wait(0.02):  # before the arm has moved: the test will say why
                    return
            self.injected_s = time.monotonic()
            fault()
            while not ended.wait(0.005):
                self.speeds.append((time.monotonic(), max(self.arm.tell()["speed"])))

        thread = threading.Thread(target=wait_and_fail)
        thread.start()
        config = RunConfig(
            "lerobot",
            f"{self.policy}:{self.trigger}",
            "sway",
            seconds=self.seconds,
            limits=self.limits,
            out=self.folder / "run",
            safety=self.safety,
            priority=self.priority,
        )
        try:
            return run_robot(robot or self.robot(), config, load)
        finally:
            ended.set()
            thread.join()


def require_rest(arm: EmulatedArm, limit_deg: float = 25.0) -> dict[str, Any]:
    """The arm stands still, under torque, at a goal within the limits."""
    state = settled(arm)
    assert max(state["speed"]) < 1e-2
    assert state["torque"] == [True] * 6
    # Sag and friction: a servo without integrator stands a little beside its goal.
    np.testing.assert_allclose(state["position"], state["goal"], atol=0.1)
    bound = np.radians(limit_deg + 0.2)  # a count is 0.09 degrees
    for end in ("lowest_goal", "highest_goal"):
        assert (np.abs(state[end])[:5] < bound).all()  # the gripper's range is its own
    return state


def test_a_bus_that_gives_no_readings_stops_the_arm(arm: EmulatedArm, tmp_path: Path) -> None:
    """It slows down within its limits, since goals still reach the servos."""
    report = Run(arm, tmp_path).go(lambda: arm.tell("drop 1000000"))
    assert report.fault is not None
    assert re.search("heartbeat: no command.*could not be read", report.fault)
    require_rest(arm)


def test_a_single_lost_or_damaged_reply_stops_nothing(arm: EmulatedArm, tmp_path: Path) -> None:
    """And a wall clock that jumps neither: LeRobot's own time-outs would end at once."""
    jump = pytest.MonkeyPatch()

    def faults() -> None:
        arm.tell("drop 1")
        time.sleep(0.3)
        arm.tell("corrupt 1")
        now = time.time
        jump.setattr(time, "time", lambda: now() + 3600.0)

    with contextlib.ExitStack() as stack:
        stack.callback(jump.undo)
        report = Run(arm, tmp_path, seconds=4.0).go(faults)
    assert report.fault is None
    assert report.ended == "4 s are over"
    require_rest(arm)


def test_degrees_beyond_the_limits_never_leave(arm: EmulatedArm, tmp_path: Path) -> None:
    """The policy commands 500 of them to and fro; the driver itself would send that."""
    run = Run(arm, tmp_path, policy="wild", seconds=3.0, limit_deg=20.0)
    report = run.go(lambda: None)
    assert report.fault is None
    state = require_rest(arm, run.limit_deg)
    reached = np.degrees(state["highest_goal"][0])
    assert run.limit_deg - 1 < reached, "it was told to go to its limit"


def test_a_policy_that_is_killed_stops_the_arm(arm: EmulatedArm, tmp_path: Path) -> None:
    """SIGKILL of the inference process, in the middle of a motion."""
    run = Run(arm, tmp_path, policy="kill")
    report = run.go(run.trigger.touch)
    assert report.fault is not None
    assert "SIGKILL" in report.fault
    require_rest(arm)


class Camera:
    """A LeRobot camera whose thread the test stands for.

    Attributes:
        frozen: "" for new images; "thread" keeps image and time, "pixels" the image alone.
    """

    height, width, fps, use_rgb = 8, 8, 30, True
    is_connected = True
    frozen = ""
    _image = np.zeros((8, 8, 3), np.uint8)
    _taken_s = 0.0

    def connect(self) -> None:
        """Always there."""

    def disconnect(self) -> None:
        """Never gone."""

    @property
    def latest_timestamp(self) -> float:
        """Now, until its thread freezes."""
        if self.frozen != "thread":
            self._taken_s = time.perf_counter()
        return self._taken_s

    def read_latest(self) -> np.ndarray:
        """A new image unless it is frozen."""
        if not self.frozen:
            self._image = self._image + np.uint8(1)
        return self._image


def with_camera(run: Run, camera: Camera) -> LeRobotRobot:
    """The driver with that camera."""
    device = run.robot().device
    device.cameras = {"front": camera}
    device.__dict__.pop("observation_features", None)  # cached before there was a camera
    return PatientRobot(device, LeRobotOptions(rate_hz=50.0, timeout_s=run.timeout_s))


def test_a_camera_that_freezes_stops_the_arm(arm: EmulatedArm, tmp_path: Path) -> None:
    """The same pixels with new times, while the arm has moved."""
    run, camera = Run(arm, tmp_path), Camera()
    report = run.go(lambda: setattr(camera, "frozen", "pixels"), with_camera(run, camera))
    assert report.fault is not None
    assert re.search("^observation: observed", report.fault)
    require_rest(arm)


def test_a_port_that_vanishes_leaves_the_last_goal(tmp_path: Path) -> None:
    """Nothing can be sent any more; the report says what then holds."""
    arm = EmulatedArm(tmp_path)
    report = Run(arm, tmp_path).go(lambda: arm.tell("vanish"))
    assert report.fault is not None
    assert "with torque on" in report.fault
    require_rest(arm)
    arm.close()


def test_a_killed_run_leaves_the_last_goal(arm: EmulatedArm, tmp_path: Path) -> None:
    """SIGKILL of the control process: servos hold, and its inference process ends with it."""
    run = Run(arm, tmp_path)
    begin = arm.tell()["goal_writes"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fault_policies"),
            f"lerobot:{arm.argument(run.timeout_s, TORQUE_STAYS)}",
            *(f"never:{run.trigger}", str(run.limits), str(tmp_path / "run")),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    while arm.tell()["goal_writes"] < begin + 30:
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    writes = arm.tell()["goal_writes"]
    require_rest(arm)
    assert arm.tell()["goal_writes"] == writes
    assert children
    while any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "within_s", "reason"),
    [
        ("delay 1 3.0", 1.0, "heartbeat: no command.*could not be read"),
        ("drop 1000000", 1.0, "heartbeat: no command.*could not be read"),
        ("corrupt 1000000", 1.0, "heartbeat: no command.*could not be read"),
        ("vanish", 1.0, "with torque on"),
        ("crash", 1.0, "the policy has crashed"),
        ("gone", 1.0, "the server has closed the connection"),
        ("kill", 1.0, "SIGKILL"),
        ("hang", 1.0, "heartbeat: no command.*had been deciding"),
        ("nan", 1.0, "not finite"),
        ("thread", 2.0, "^observation: observed"),
        ("pixels", 2.0, "^observation: observed"),
    ],
)
def test_every_fault_in_time(tmp_path: Path, fault: str, within_s: float, reason: str) -> None:
    """With the defaults of a run, real-time scheduling, and the driver's 10 ms; prints the time."""
    arm, camera = EmulatedArm(tmp_path), Camera()
    run = Run(arm, tmp_path, fault, SafetyConfig(), timeout_s=0.01, priority=50)
    robot, happen = run.robot(), lambda: run.trigger.touch()
    if fault in ("thread", "pixels"):
        robot, happen = with_camera(run, camera), lambda: setattr(camera, "frozen", fault)
    elif " " in fault or fault == "vanish":
        happen = lambda: arm.tell(fault)  # noqa: E731
    report = run.go(happen, robot)
    assert report.fault is not None
    assert re.search(reason, report.fault), report.fault
    rest_s = max((t for t, speed in run.speeds if speed > 0.05), default=run.injected_s)
    print(f"\n{fault}: at rest after {rest_s - run.injected_s:.2f} s: {report.fault}")
    assert rest_s - run.injected_s < within_s
    require_rest(arm)
    arm.close()
