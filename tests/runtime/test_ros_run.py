"""`vla run` on the ROS robot: policy, loop and safety gate, through faults to an arm at rest."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ros_policy import load
from ros_setup import FILE, BridgeProcess, wait_for
from vla_runtime.robots.registry import make_robot
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.run_report import RunReport
from vla_runtime.safety.gate import SafetyConfig

# Longer than the defaults, for a machine that is busy with other tests.
PATIENT = SafetyConfig(max_observation_age_s=2.5, heartbeat_s=2.0)
TEXT = FILE.replace("_ms = 300", "_ms = 1500").replace("_ms = 500", "_ms = 1500")

# Seconds each, and they differ from the others in what `test_ros_faults` looks at.
SLOW = pytest.mark.slow


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[BridgeProcess]:
    """With an arm that nobody is connected to yet."""
    bridge = BridgeProcess(tmp_path, TEXT.replace("3.0", "10.0"))
    yield bridge
    bridge.close()


def run(
    bridge: BridgeProcess, folder: Path, fault: Callable[[], object] | None = None
) -> RunReport:
    """Run for 3 s, or until the fault, which happens once the arm moves."""

    def wait_and_fail() -> None:
        wait_for(lambda: len(bridge.tell()["commands"]) > 20, 30)
        if fault:
            fault()

    thread = threading.Thread(target=wait_and_fail)
    thread.start()
    seconds = 60.0 if fault else 3.0
    config = RunConfig(
        bridge.name,
        "",
        "sway",
        # Far from the end of a chunk, which expires when the machine makes the loop miss periods.
        execution="receding:5",
        seconds=seconds,
        out=folder / "run",
        safety=PATIENT,
        priority=0,
    )
    report = run_robot(make_robot(config.robot), config, load)
    thread.join()
    return report


def require_rest(bridge: BridgeProcess) -> np.ndarray:
    """The arm stands still within its limits; the shoulder's commands, degrees."""

    def rests() -> bool:
        before = bridge.tell()
        time.sleep(0.1)
        return bridge.tell() == before and before["position"] == before["target"]

    wait_for(rests)
    shoulder = np.degrees(bridge.tell()["commands"])[:, 0]
    assert np.abs(shoulder).max() < 30, "15 degrees, and the way in which it brakes"
    return shoulder


def test_a_run_moves_the_arm_and_ends_at_rest(bridge: BridgeProcess, tmp_path: Path) -> None:
    """From the policy's chunks to the trajectory controller and back."""
    report = run(bridge, tmp_path)
    assert report.fault is None
    assert report.ended == "3 s are over"
    assert np.ptp(require_rest(bridge)) > 20, "it has swayed"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("NaN", "no finite position"),
        pytest.param("the joint driver stops", "nothing usable of joint", marks=SLOW),
        pytest.param("the camera stops", "nothing usable of camera 'front'", marks=SLOW),
        pytest.param("the camera repeats its last message", "repeats the stamp", marks=SLOW),
        pytest.param("the camera stamps its last image anew", "^observation: obs", marks=SLOW),
    ],
)
def test_a_driver_that_fails_stops_the_arm(
    fault: str, reason: str, bridge: BridgeProcess, tmp_path: Path
) -> None:
    """And the report says why, unless the chunk was over before the robot's silence was noticed."""
    report = run(bridge, tmp_path, lambda: bridge.tell(fault))
    assert report.fault
    assert re.search(f"{reason}|^expired", report.fault, re.DOTALL), report.fault
    require_rest(bridge)


def test_a_bridge_that_stops_moves_nothing_when_it_goes_on(
    bridge: BridgeProcess, tmp_path: Path
) -> None:
    """What was sent into it meanwhile has expired."""
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(len(bridge.tell()["commands"]))
        bridge.process.send_signal(signal.SIGSTOP)

    report = run(bridge, tmp_path, stop)
    assert report.fault
    assert "nothing usable of joint" in report.fault
    bridge.process.send_signal(signal.SIGCONT)
    require_rest(bridge)
    # Those that were on their way, of hundreds.
    assert len(bridge.tell()["commands"]) < stopped[0] + 10


@SLOW
def test_a_bridge_that_is_killed_ends_the_run(bridge: BridgeProcess, tmp_path: Path) -> None:
    """At once: a closed socket needs no time-out."""
    report = run(bridge, tmp_path, bridge.process.kill)
    assert report.fault
    assert "is lost" in report.fault
