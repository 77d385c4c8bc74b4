"""One process at a time writes a run folder or a report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policies.folder_lock import FolderInUseError, lock_folder
from policies.run_folder import RunFolder
from scripts.evaluate import EvaluateConfig, main

# A process without our packages, so that it starts at once: it locks the file as ours does.
HOLD = """
import fcntl, os, sys
file = open(sys.argv[1] + "/.lock", "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(str(os.getpid()))
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts another process that writes this test's folder."""
    started = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", HOLD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_folder_that_another_process_writes_is_refused(tmp_path: Path, hold: Callable) -> None:
    """By its process id, and before anything is written; a killed process leaves no lock."""
    other = hold()
    with pytest.raises(FolderInUseError, match=rf"writes .* \(process id {other.pid}\).*choose"):
        RunFolder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    other.kill()
    other.wait()
    RunFolder(tmp_path, {}).open({})
    assert (tmp_path / "run.json").is_file()


def test_a_folder_that_another_process_made_meanwhile_is_refused(
    tmp_path: Path, hold: Callable
) -> None:
    """Both begin where there is none; the later one writes nothing."""
    tmp_path.rmdir()
    folder = RunFolder(tmp_path, {})
    tmp_path.mkdir()
    hold()
    with pytest.raises(FolderInUseError):
        folder.open({})
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_evaluation_does_not_write_into_anothers_report(tmp_path: Path, hold: Callable) -> None:
    """Refused before the first episode."""
    hold()
    config = EvaluateConfig(task="FetchReach", policies=("zero",), out=tmp_path, films=0)
    with pytest.raises(FolderInUseError):
        main(config)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_process_may_take_its_own_lock_again(tmp_path: Path) -> None:
    """An interrupted run in a notebook is begun anew; once closed, others may write."""
    first = lock_folder(tmp_path)
    again = RunFolder(tmp_path, {})
    again.open({})
    again.close()
    first.close()
    held = subprocess.run(
        [sys.executable, "-S", "-c", HOLD, str(tmp_path)], input="", text=True, timeout=60
    )
    assert held.returncode == 0
