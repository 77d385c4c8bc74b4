"""The control loop with a robot and policies of numpy, in real processes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_doubles import CHUNK_LENGTH, SPEC, NumpyRobot, RampPolicy, load
from vla_runtime.contract import ContractMismatchError
from vla_runtime.inference import InferenceError
from vla_runtime.loop import ControlLoop
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.run_recording import RunRecorder
from vla_runtime.run_report import RunReport
from vla_runtime.safety.gate import SafetyConfig
from vla_runtime.safety.limits import LimitsError

PERIOD_S = 1 / SPEC.control_rate_hz
Play = Callable[..., RunReport]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run a policy on a robot, with ordinary scheduling, since other tests run beside it."""

    def run(robot: NumpyRobot, policy: str = "ramp", **flags: Any) -> RunReport:
        flags = {"seconds": 1.0, "priority": 0, "out": tmp_path / "out", **flags}
        # Tests share a machine: a tick that comes late must not end the run.
        flags.setdefault("safety", SafetyConfig(heartbeat_s=2.0, max_observation_age_s=5.0))
        return run_robot(robot, RunConfig("double", policy, "go", **flags), load)

    return run


def speeds(robot: NumpyRobot) -> np.ndarray:
    """Changes from command to command, [writes - 1, action.dim]."""
    return np.diff(robot.commands, axis=0)


def test_a_run_from_start_to_end(play: Play, tmp_path: Path) -> None:
    """The chunk's commands reach the robot in their order; it is halted, then disconnected."""
    robot = NumpyRobot()
    report = play(robot, "ramp", execution="receding:4")
    assert report.succeeded, report.ended
    assert report.ended == "1 s are over"
    assert robot.log == ["connect", "halt", "disconnect"]
    steps = speeds(robot)
    # Never more than a step of the ramp, or of a switch to a chunk decided a little earlier.
    assert steps.max() <= 2 * RampPolicy.STEP + 1e-6
    assert robot.commands[-1, 0] > 5 * RampPolicy.STEP
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["ticks"] == report.ticks > 0
    assert written["lateness_ms"]["count"] >= report.ticks
    assert written["decision_ms"]["count"] >= 1
    assert written["config"]["execution"] == "receding:4"
    assert "--priority 0" in written["scheduling"]
    (shown,) = [line for line in report.lines() if line.startswith("ticks by lateness")]
    counts = [int(count) for count in re.findall(r"up to [\d.]+: (\d+)", shown)]
    assert sum(counts) == written["lateness_ms"]["count"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 s are over" in page
    assert page.count("<rect") == len(written["lateness_histogram_ms"])
    assert not list((tmp_path / "out").glob("*.part"))


def test_the_scheduling_is_said_before_the_robot_moves(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who may not use FIFO is told how to allow it while nothing has happened yet."""
    said = []

    class Robot(NumpyRobot):
        def write(self, command: np.ndarray) -> None:
            said.append(capsys.readouterr().out)
            super().write(command)

    play(Robot(), seconds=0.2)
    assert "scheduling: ordinary scheduling, as --priority 0 asks\nrunning; to stop: " in said[0]


def test_the_report_does_not_wait_for_the_recording(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding a long run to the data set takes long; a kill meanwhile costs no report."""
    written = []

    def finish(recorder: RunRecorder) -> dict[str, Any]:
        written.append(json.loads((tmp_path / "out" / "report.json").read_text()))
        return {"recorded": recorder.recorded, "dropped": recorder.dropped, "failure": None}

    monkeypatch.setattr(RunRecorder, "finish", finish)
    report = play(NumpyRobot(), record=tmp_path / "data", seconds=0.2)
    assert written[0]["ended"] == report.ended
    assert written[0]["recording"] == {}
    after = json.loads((tmp_path / "out" / "report.json").read_text())
    assert after["recording"]["recorded"] == report.ticks


@pytest.mark.parametrize("execution", ["chunk", "ensemble:0.1", "realtime:3"])
def test_every_execution_drives_the_robot(play: Play, execution: str) -> None:
    """With a policy that takes longer than a period."""
    robot = NumpyRobot()
    report = play(robot, "inpainting:0.03", execution=execution)
    assert report.succeeded, report.ended
    assert robot.commands[-1, 0] > 5 * RampPolicy.STEP
    assert speeds(robot).min() > -3 * RampPolicy.STEP
    skipped = report.details["skipped_steps"]
    assert skipped == 0 if execution == "chunk" else skipped > 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("error", "the fifth decision fails"),
        ("killed", "the inference process was ended by SIGKILL"),
        ("nan", "action chunk is not finite in ['a', 'b']"),
        ("short", "the chunk has 3 steps instead of 8"),
        ("server gone", "the server has closed the connection"),
        ("hangs", "the policy had been deciding for"),
    ],
)
def test_a_policy_that_fails_stops_the_robot(play: Play, how: str, reason: str) -> None:
    """The gate brakes and halts, and the report has the reason; nothing of the failure is sent."""
    robot = NumpyRobot()
    report = play(robot, f"fails:{how}", seconds=30.0)
    assert report.fault is not None
    assert reason in report.fault
    assert "halt" in robot.log
    assert np.isfinite(robot.commands).all()
    assert (speeds(robot)[-1] == 0).all(), "at rest before it is halted"
    # 5 chunks, then at most the ticks of `play`'s heartbeat, then the few that a stop takes.
    assert len(robot.written) <= 5 * CHUNK_LENGTH + 2.0 / PERIOD_S + 25


def test_a_late_reply_does_not_stop_the_robot(play: Play) -> None:
    """0.6 s: the robot waits and goes on, and the chunk begins where it stands."""
    robot = NumpyRobot()
    report = play(robot, "fails:slow", seconds=3.0)
    assert report.succeeded, report.ended
    assert report.details["ticks_without_command"] > 0
    assert abs(speeds(robot)).max() <= 2 * RampPolicy.STEP + 1e-6


def test_a_first_decision_from_long_ago_moves_nothing(play: Play) -> None:
    """The robot may wait for it as long as it takes, but the scene may have changed meanwhile."""
    robot = NumpyRobot()
    safety = SafetyConfig(heartbeat_s=2.0, max_observation_age_s=1.0)
    report = play(robot, "ramp:1.5", seconds=20.0, safety=safety)
    assert report.fault is not None
    assert re.search(
        r"observation: observed (1\.[5-9]|[2-9]).*had waited .* s for the policy", report.fault
    )
    assert not robot.commands.any()


def test_a_policy_of_another_robot_moves_nothing(play: Play) -> None:
    """Refused with every difference, before the robot is connected."""
    robot = NumpyRobot()
    with pytest.raises(
        ContractMismatchError, match=r"(?s)robot: double.*control_rate_hz: 50.*\nset "
    ):
        play(robot, "other")
    assert robot.log == []


def test_a_policy_may_look_at_fewer_cameras(play: Play) -> None:
    """It is shown those that it knows, and no others."""
    robot = NumpyRobot()
    report = play(robot, "blind")
    assert report.succeeded, report.ended
    assert robot.commands[-1, 0] > 0


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"execution": "realtime:3"}, ValueError, "cannot inpaint"),
        ({"policy": "unknown"}, InferenceError, "no policy 'unknown'"),
    ],
)
def test_what_cannot_run_moves_nothing(
    play: Play, flags: dict[str, Any], error: type[Exception], message: str
) -> None:
    """One error that says why, and the robot is not even connected."""
    robot = NumpyRobot()
    with pytest.raises(error, match=message):
        play(robot, **flags)
    assert robot.log == []


def test_a_report_that_cannot_be_written_is_refused_first(play: Play, tmp_path: Path) -> None:
    """A file of that name, and a folder that takes no files."""
    (tmp_path / "file").touch()
    robot = NumpyRobot()
    for out in (tmp_path / "file", Path("/proc/self")):
        with pytest.raises(OSError, match=f"cannot write the report to --out {out}: "):
            play(robot, out=out)
    assert robot.log == []


def test_an_earlier_report_is_kept(play: Play, tmp_path: Path) -> None:
    """A second run into the same folder is refused before the robot is connected."""
    (tmp_path / "report.json").write_text("{}")
    robot = NumpyRobot()
    with pytest.raises(ValueError, match="holds the report of an earlier run"):
        play(robot, out=tmp_path)
    assert robot.log == []
    assert (tmp_path / "report.json").read_text() == "{}"


def test_a_connection_that_hangs_can_be_given_up(
    play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first signal waits for the robot, whose torque may be on; the second one does not."""

    class Hanging(NumpyRobot):
        def connect(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            self.log.append("asked once")
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it went on")

    robot = Hanging()
    with pytest.raises(KeyboardInterrupt):
        play(robot)
    assert robot.log == ["asked once", "disconnect"]
    assert robot.written == []
    assert "once more to give it up" in capfd.readouterr().err


def test_limits_are_required(play: Play, tmp_path: Path) -> None:
    """Without any the flag is named; a file that has them is enough."""
    robot = NumpyRobot(replace(SPEC, motion=None))
    with pytest.raises(LimitsError, match=r"no motion limits.*--limits FILE"):
        play(robot)
    assert robot.log == []
    limits = tmp_path / "limits.toml"
    rows = [
        f'[action.{name}]\nkind = "position"\nvelocity = 0.05\nacceleration = 9.0' for name in "ab"
    ]
    limits.write_text("\n".join(rows))
    report = play(robot, limits=limits)
    assert report.succeeded, report.ended
    # The file is tighter than the ramp, which moves 0.1 a second.
    assert speeds(robot).max() <= 0.05 * PERIOD_S * (1 + 1e-9)


def test_limits_that_cannot_be_read_name_their_flag(play: Play, tmp_path: Path) -> None:
    """A file that is missing, and a folder."""
    for limits in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(OSError, match=f"--limits {limits} cannot be read: "):
            play(NumpyRobot(), limits=limits)


def test_a_workspace_needs_a_model(play: Play, tmp_path: Path) -> None:
    """Boxes without kinematics would limit nothing: refused, with the flag that gives it."""
    limits = tmp_path / "limits.toml"
    limits.write_text("[workspace.tip]\nlow = [0.0, 0.0, 0.0]\nhigh = [1.0, 1.0, 1.0]\n")
    with pytest.raises(LimitsError, match=r"workspace of \['tip'\].*--kinematics FILE"):
        play(NumpyRobot(), limits=limits)


def test_a_model_without_a_workspace_guards_nothing(play: Play, tmp_path: Path) -> None:
    """Refused: whoever names a model believes that the robot stays in a box."""
    with pytest.raises(LimitsError, match=r"arm\.xml guards nothing: .*no \[workspace\]"):
        play(NumpyRobot(), kinematics=tmp_path / "arm.xml")


def test_a_robot_outside_its_limits_is_moved_only_when_that_is_asked_for(
    play: Play, tmp_path: Path
) -> None:
    """By default nothing is written; with the flag it comes back, and goes no further out."""
    robot = NumpyRobot(position=1.2)
    report = play(robot)
    assert report.fault is not None
    assert "outside its limits" in report.fault
    assert robot.written == []
    assert "halt" in robot.log
    robot = NumpyRobot(position=1.02)
    play(robot, return_inside=True, out=tmp_path / "again")
    assert robot.commands.max() <= 1.02
    assert robot.commands[-1].max() < 1.02


def test_readings_that_fail_stop_the_robot_if_it_lasts(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lost reply is a tick without a command; a robot that never answers again is a fault."""
    robot, tick = NumpyRobot(), ControlLoop._tick

    def lose_replies(self: ControlLoop) -> None:
        done = self.statistics.ticks
        robot.reads_fail = done == 10 or done > 20
        tick(self)

    monkeypatch.setattr(ControlLoop, "_tick", lose_replies)
    report = play(robot, seconds=30.0)
    assert report.fault is not None
    assert "the double does not answer" in report.fault
    assert report.ticks > 20, "the single one was survived"
    assert report.details["failed_reads"] >= 2
    assert (speeds(robot)[-1] == 0).all()
    assert "halt" in robot.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_the_run(
    play: Play, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Without an interruption in the middle of a tick: braked, halted, reported."""
    robot, tick = NumpyRobot(), ControlLoop._tick

    def signal_once(self: ControlLoop) -> None:
        tick(self)
        if self.statistics.ticks == 10:
            threading.Thread(target=os.kill, args=(os.getpid(), number)).start()

    monkeypatch.setattr(ControlLoop, "_tick", signal_once)
    before = signal.getsignal(number)
    report = play(robot, seconds=30.0)
    assert report.succeeded
    assert report.ended == f"stopped by {number.name}"
    assert robot.log == ["connect", "halt", "disconnect"]
    assert (speeds(robot)[-1] == 0).all()
    assert signal.getsignal(number) is before


def test_nobody_has_to_listen(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind `| head -1`: the run goes on to its end and is reported."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    report = play(NumpyRobot(), seconds=0.2)
    assert report.succeeded
    assert report.ended == "0.2 s are over"


@pytest.mark.parametrize("call", ["halt", "disconnect"])
def test_a_robot_that_cannot_be_halted_is_in_the_report(
    play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    """A vanished port: the run cannot end well, and the report says what then holds."""
    robot = NumpyRobot()

    def fail() -> None:
        raise ConnectionError("the port has vanished")

    monkeypatch.setattr(robot, call, fail)
    report = play(robot, seconds=0.2)
    assert report.fault is not None
    assert "the port has vanished" in report.fault
    assert robot.halted in report.fault
    assert not report.succeeded
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"instruction": " "}, "instruction is empty"),
        ({"seconds": 0.0}, "seconds must be a positive number"),
        ({"seconds": float("nan")}, "seconds must be a positive number"),
        ({"priority": 100}, "priority must lie from 0 to 99"),
    ],
)
def test_unusable_flags_are_refused(flags: dict[str, Any], message: str) -> None:
    """With what is valid."""
    with pytest.raises(ValueError, match=message):
        RunConfig(**{"robot": "double", "policy": "ramp", "instruction": "go", **flags})
