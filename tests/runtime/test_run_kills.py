"""SIGKILL of each process of a run, at random moments: what was recorded stays, and what ends ends.

`KILLS=100 pytest -m slow tests/runtime/test_run_kills.py` kills as often as issue and docs say.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from vla_runtime.cli import DatasetConfig, add_to_dataset
from vla_runtime.run_log import read_steps

PROGRAM = Path(__file__).with_name("run_process.py")
PROCESSES = ("control", "inference", "recording")


class Run:
    """A run that has begun to move.

    Attributes:
        pids: name of the process → its id.
        seconds: how long it is to run.
    """

    def __init__(self, folder: Path, seconds: float, policy: str = "ramp"):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), str(seconds), policy],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = ""
        while not line.startswith("{"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
        self.pids: dict[str, int] = json.loads(line)

    def kill(self, name: str) -> None:
        """SIGKILL one of its processes."""
        os.kill(self.pids[name], signal.SIGKILL)

    def finish(self) -> dict[str, Any]:
        """Wait for its end; what its report says, or nothing where it was killed."""
        out, err = self.process.communicate(timeout=1200)
        assert self.process.returncode in (0, -signal.SIGKILL), err
        return json.loads(out.splitlines()[-1]) if self.process.returncode == 0 else {}

    def wait_for_children(self) -> None:
        """Until every process has ended by itself."""
        until_s = time.monotonic() + 120
        while any(map(is_running, self.pids.values())):
            assert time.monotonic() < until_s, f"still there: {self.pids}"
            time.sleep(0.02)

    def robot(self) -> list[str]:
        """What was done to the robot."""
        return (self.folder / "robot.txt").read_text().splitlines()

    def steps(self) -> int:
        """Control steps in its data set and in logs that are not added yet."""
        data = self.folder / "data"
        logged = sum(len(list(read_steps(log))) for log in (data / ".recording").glob("*.log"))
        info = data / "meta" / "info.json"
        return logged + (json.loads(info.read_text())["total_frames"] if info.is_file() else 0)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def named_shared_memory(pid: int) -> list[str]:
    """Mapped blocks of shared memory that would stay when the process is killed."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    blocks = [line for line in maps if "/dev/shm/" in line]
    assert blocks, "images are shared"
    return [line for line in blocks if not line.endswith("(deleted)")]


def kill_during_a_run(folder: Path, name: str, after_s: float, logged: int = 0) -> None:
    """One kill, once so many steps of the run are logged, and what has to hold afterwards."""
    known = kept = 0
    if (folder / "robot.txt").is_file():
        known, kept = len(_Past(folder).robot()), _Past(folder).steps()
    run = Run(folder, seconds=20.0 if name != "recording" else after_s + 1.0)
    assert not [block for pid in run.pids.values() for block in named_shared_memory(pid)]
    time.sleep(after_s)
    until_s = time.monotonic() + 120
    while run.steps() < kept + logged:  # on a busy machine that takes longer
        assert time.monotonic() < until_s, "nothing is logged"
        time.sleep(0.02)
    run.kill(name)
    report = run.finish()
    run.wait_for_children()
    done = run.robot()[known:]
    commands = [line for line in done if line != "halt"]
    if name == "control":
        assert report == {}
        assert "halt" not in done, "nobody is left to halt it: what holds is the robot's affair"
    else:
        assert done[-1] == "halt"
        assert commands[-1] == commands[-2], "at rest before it is halted"
    if name == "inference":
        assert report["fault"]
    if name == "recording":
        assert report["fault"] is None, "the robot goes on without it"
        assert report["recording"]["failure"]


class _Past(Run):
    """An earlier run's folder."""

    def __init__(self, folder: Path):
        self.folder = folder


def test_a_kill_of_each_process(tmp_path: Path) -> None:
    """One after the other into one folder: no logged step is ever lost, and all start again."""
    folder, kept = tmp_path / "run", 0
    for name in PROCESSES:
        kill_during_a_run(folder, name, after_s=0.5, logged=1)
        before, kept = kept, _Past(folder).steps()
        assert kept > before
    add_to_dataset(DatasetConfig(folder / "data"))
    assert not list((folder / "data" / ".recording").glob("*.log"))
    assert _Past(folder).steps() == kept
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/data", root=folder / "data", video_backend="pyav")
    assert len(data) == kept
    assert data[kept - 1]["task"] == "go"
    runs = json.loads((folder / "data" / "meta" / "runs.json").read_text())
    assert len(runs) == 3
    assert runs[0]["policy"] == "ramp"


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_many_kills_at_random_moments(tmp_path: Path) -> None:
    """As above, and of the recording process also while the data set is being written."""
    moments = random.Random(0)
    folder, kept = tmp_path / "run", 0
    for number in range(int(os.environ.get("KILLS", "100"))):
        name = PROCESSES[number % 3]
        if name == "recording" and number % 2:
            kill_after_a_run(folder, moments.uniform(0.0, 10.0))
        else:
            kill_during_a_run(folder, name, moments.uniform(0.0, 1.5))
        before, kept = kept, _Past(folder).steps()
        assert kept >= before
    add_to_dataset(DatasetConfig(folder / "data"))
    assert _Past(folder).steps() == kept


def kill_after_a_run(folder: Path, after_s: float) -> None:
    """Kill the recording process while it adds the log, or after that."""
    run = Run(folder, seconds=0.2)
    time.sleep(0.5 + after_s)
    with contextlib.suppress(ProcessLookupError):  # it had done all its work
        run.kill("recording")
    report = run.finish()
    assert report["fault"] is None
    assert report["recording"].keys() & {"frames", "kept"}
