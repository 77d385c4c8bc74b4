"""The recording process: refuses before anything moves, shows live, drops rather than blocks."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loop_doubles import SPEC, NumpyRobot
from vla_runtime import cli
from vla_runtime.child_process import MessageSocket
from vla_runtime.contract import ContractMismatchError
from vla_runtime.run_log import RunHeader, RunLogWriter, RunStep
from vla_runtime.run_recording import (
    RecordingError,
    RecordingTarget,
    RunRecorder,
    add_logs,
    open_recording,
)

HEADER = RunHeader(SPEC, "go", {"policy": "ramp"})
ACTION = np.array([0.5, -0.5])


@pytest.fixture
def viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake Rerun for this process and those that it spawns; the file of its calls."""
    shutil.copy(Path(__file__).with_name("fake_rerun.py"), tmp_path / "rerun.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FAKE_RERUN", str(tmp_path / "calls.txt"))
    return tmp_path / "calls.txt"


def calls(file: Path) -> list[list[object]]:
    """What the viewer was told."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_viewer_is_warm_before_the_run_and_sees_every_step(viewer: Path) -> None:
    """It shows an image before `wait_until_ready` returns; then images and numbers by name."""
    recorder = RunRecorder(RecordingTarget(HEADER, None, "spawn"))
    recorder.wait_until_ready()
    warm = calls(viewer)
    assert warm[0] == ["init", "vla run", True]
    assert ["log", "camera/front", [12, 16, 3]] in warm
    recorder.add(NumpyRobot().read(), 1.5, ACTION, ACTION + 1)
    assert recorder.finish() == {
        "recorded": 1,
        "dropped": 0,
        "failure": None,
        "frames": 0,
        "episodes": 0,
    }
    recorder.end()
    shown = calls(viewer)[len(warm) :]
    assert warm[-1] == shown[-1] == ["flush"], "before the run, and behind its last step"
    assert shown[0] == ["set_time", "run", 1.5]
    assert ["log", "action/b", -0.5] in shown
    assert ["log", "requested/b", 0.5] in shown
    assert ["log", "proprio/a", 0.0] in shown


def test_a_viewer_elsewhere(viewer: Path) -> None:
    """An address is connected to, and no window opens here."""
    recorder = RunRecorder(RecordingTarget(HEADER, None, "rerun+http://robot:9876/proxy"))
    recorder.wait_until_ready()
    recorder.finish()
    recorder.end()
    assert ["init", "vla run", False] in calls(viewer)
    assert ["connect_grpc", "rerun+http://robot:9876/proxy"] in calls(viewer)


def test_a_viewer_that_does_not_answer_is_refused(viewer: Path) -> None:
    """Rerun connects in the background and would throw everything away in silence."""
    recorder = RunRecorder(RecordingTarget(HEADER, None, "rerun+http://nobody:9876/proxy"))
    with pytest.raises(RecordingError, match=r"http://nobody:.* been unable .*; valid: spawn"):
        recorder.wait_until_ready()
    recorder.end()


def test_the_real_rerun(tmp_path: Path) -> None:
    """Every step is in the file that it writes, and what is no viewer is named."""
    pytest.importorskip("rerun", reason="the extra rerun is not installed")
    recording = pytest.importorskip("rerun.recording")
    file = tmp_path / "run.rrd"
    recorder = RunRecorder(RecordingTarget(HEADER, None, str(file)))
    recorder.wait_until_ready()
    for number in range(1, 101):
        recorder.add(NumpyRobot().read(), number / 50, ACTION, ACTION)
    assert recorder.finish()["failure"] is None
    recorder.end()
    chunks = [*recording.load_recording(file).chunks()]
    rows = {c.entity_path: 0 for c in chunks}
    for chunk in chunks:
        rows[chunk.entity_path] += chunk.num_rows
    assert rows["/camera/front"] == rows["/action/b"] == rows["/requested/a"] == 1 + 100
    for bad, message in (
        (str(file), "exists: name a new file"),
        ("somewhere", "invalid endpoint"),
        (str(tmp_path / "nowhere" / "run.rrd"), "No such file or directory"),
    ):
        recorder = RunRecorder(RecordingTarget(HEADER, None, bad))
        with pytest.raises(RecordingError, match=message):
            recorder.wait_until_ready()
        recorder.end()


def test_without_rerun_nothing_moves() -> None:
    """The extra is named."""
    if importlib.util.find_spec("rerun"):
        pytest.skip("Rerun is installed")
    recorder = RunRecorder(RecordingTarget(HEADER, None, "spawn"))
    with pytest.raises(RecordingError, match=r'pip install "vla-runtime\[rerun\]"'):
        recorder.wait_until_ready()
    recorder.end()


def test_a_slow_recorder_drops_and_never_blocks(
    viewer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many steps as there is room for, at once: half of them are dropped and counted."""
    monkeypatch.setenv("FAKE_RERUN_DELAY_S", "0.01")
    recorder = RunRecorder(RecordingTarget(HEADER, None, "spawn"))
    recorder.wait_until_ready()
    reading = NumpyRobot().read()
    for number in range(200):
        recorder.add(reading, 1.0 + number, ACTION, ACTION)
    report = recorder.finish()
    recorder.end()
    assert report["recorded"] + report["dropped"] == 200
    assert report["recorded"] >= 100, "two seconds are buffered"
    assert report["dropped"] > 0
    assert report["failure"] is None
    times = [call[2] for call in calls(viewer) if call[0] == "set_time"]
    assert times[1 : 1 + 100] == [1.0 + number for number in range(100)], "in order, none twice"
    assert len(times) == 1 + report["recorded"]


def log_in(folder: Path, spec: object = SPEC, steps: int = 3) -> Path:
    """A folder with the log of a run that was killed."""
    work = folder / ".recording"
    work.mkdir(parents=True)
    writer = RunLogWriter(work / "20260101T000000-1.log", replace(HEADER, spec=spec))
    for number in range(steps):
        image = np.full((12, 16, 3), number, np.uint8)
        writer.add(RunStep(number / 50, {"front": image}, ACTION, ACTION, ACTION + number))
    writer.close()
    return folder


def test_ctrl_c_while_the_recording_is_finished_ends_the_waiting_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding a log may take a minute: who does not wait still has the report, and the log."""
    recorder = RunRecorder(RecordingTarget(HEADER, tmp_path / "data", None))
    recorder.wait_until_ready()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MessageSocket, "receive", interrupted)
    summary = recorder.finish()
    recorder.end()
    assert "interrupted" in summary["failure"]
    assert "next run into this folder" in summary["kept"]


def test_another_robot_is_refused(tmp_path: Path) -> None:
    """Also where the folder has only the log of a run that was killed."""
    folder = log_in(tmp_path / "data", replace(SPEC, robot="other"))
    recorder = RunRecorder(RecordingTarget(HEADER, folder, None))
    with pytest.raises(RecordingError, match=r"(?s)robot: other != double.*another folder"):
        recorder.wait_until_ready()
    recorder.end()
    with pytest.raises(ContractMismatchError), open_recording(folder, SPEC):
        pass


def test_something_else_is_never_recorded_into(tmp_path: Path) -> None:
    """A folder of somebody's files is left alone."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no recording of runs"), open_recording(tmp_path, SPEC):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file of that name, and a file above it."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "data"):
        with (
            pytest.raises(OSError, match=f"cannot record in the folder {folder}: "),
            open_recording(folder, SPEC),
        ):
            pass


def test_one_process_records_at_a_time(tmp_path: Path) -> None:
    """A second one is told so."""
    folder = log_in(tmp_path / "data")
    with (folder / ".recording" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(BlockingIOError, match="another process records into"),
            open_recording(folder, SPEC),
        ):
            pass


def test_without_lerobot_the_log_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a robot does that has the runtime alone: the message has the command for elsewhere."""
    folder = log_in(tmp_path / "data")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kept = add_logs(folder)["kept"]
    assert f"vla-runtime dataset --folder {folder}" in kept
    assert len(list((folder / ".recording").glob("*.log"))) == 1


def test_a_log_becomes_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: what was logged is what LeRobot reads, and a second call adds nothing."""
    folder = log_in(tmp_path / "data")
    (folder / ".recording" / "20260101T000001-2.log").write_bytes(b"cut")  # killed at once
    assert cli.main(["dataset", "--folder", str(folder)]) == 0
    assert "frames: 3" in capsys.readouterr().out
    assert not list((folder / ".recording").glob("*.log"))
    assert cli.main(["dataset", "--folder", str(folder)]) == 0
    assert "frames: 3" in capsys.readouterr().out
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/data", root=folder, video_backend="pyav")
    assert len(data) == 3
    frame = data[2]
    np.testing.assert_allclose(frame["action"], ACTION)
    np.testing.assert_allclose(frame["requested.action"], ACTION + 2)
    assert float(frame["time_s"]) == pytest.approx(0.04)
    assert (frame["observation.images.front"] * 255).round().unique().tolist() == [2.0]
    assert json.loads((folder / "meta" / "contract.json").read_text())["robot"] == "double"


def test_a_kill_between_moving_and_forgetting_adds_nothing_twice(tmp_path: Path) -> None:
    """The data set lists the logs that it holds."""
    folder = log_in(tmp_path / "data")
    log = next((folder / ".recording").glob("*.log"))
    copy = log.read_bytes()
    with open_recording(folder, SPEC):
        first = add_logs(folder)
    log.write_bytes(copy)  # as if the kill had come before it was removed
    with open_recording(folder, SPEC):
        assert add_logs(folder) == first
    assert not log.exists()


def test_the_command_refuses_other_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and nothing is created."""
    assert cli.main(["dataset", "--folder", str(tmp_path / "none")]) == 2
    assert "no folder that `vla run --record` has written to" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_recorder_that_is_killed_is_reported(viewer: Path) -> None:
    """`add` never raises, whatever has become of the process."""
    recorder = RunRecorder(RecordingTarget(HEADER, None, "spawn"))
    recorder.wait_until_ready()
    recorder._child._process.kill()
    recorder._child._process.join()
    reading = NumpyRobot().read()
    until_s = time.monotonic() + 20
    while recorder.failure is None and time.monotonic() < until_s:
        recorder.add(reading, 1.0, ACTION, ACTION)
    assert recorder.failure is not None
    assert recorder.dropped > 0
    assert "kept" in recorder.finish()
    recorder.end()
