"""Worker processes and their shared memory: refused with a reason, and nothing left by a kill."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from vla_runtime import shared_arrays
from vla_runtime.shared_arrays import SharedArrays

from sim.render import NoRendererError
from sim.vector import CpuVecEnv
from sim.worker_channel import WorkerChannel
from sim.worker_pool import WorkerPool
from sim.worker_process import WorkerError, WorkerProcess

ROOT = Path(__file__).parents[2]


def run_script(folder: Path, text: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a person who imports this repository."""
    path = folder / "script.py"
    path.write_text(text)
    return subprocess.run(
        [*before, sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# --- errors


class OddError(Exception):
    """Cannot be made from its message alone, hence not be sent."""

    def __init__(self, first: int, second: int):
        super().__init__(f"{first} and {second}")


def raise_odd() -> None:
    """As somebody's environment might."""
    raise OddError(1, 2)


def raise_plain() -> None:
    """An error as any other one."""
    raise ValueError("no such goal")


def test_an_error_that_cannot_be_sent_is_told_with_its_place() -> None:
    """Of a class with arguments of its own; the worker lives on, and any other error is itself."""
    pool = WorkerPool(1, prepare=os.getpid)
    try:
        with pytest.raises(WorkerError, match=r"(?s)in raise_odd\n.*OddError: 1 and 2"):
            pool.submit(raise_odd).result()
        with pytest.raises(ValueError, match="no such goal") as caught:
            pool.submit(raise_plain).result()
        assert "in raise_plain" in caught.value.__notes__[0]
    finally:
        pool.close()


# --- shared memory


def test_arrays_are_zeros_and_writable() -> None:
    """Of their own shapes and types, and apart from each other."""
    shared = SharedArrays({"one": ((2, 3), "float32"), "other": ((5,), "bool")})
    assert shared.arrays["one"].shape == (2, 3)
    assert not shared.arrays["one"].any()
    shared.arrays["one"][:] = 7.0
    assert not shared.arrays["other"].any()
    shared.close()
    shared.close()


def test_too_little_shared_memory_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before any process starts, and with what helps."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_arrays.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"2\.\d MB of shared memory are needed, .* MB are free"):
        CpuVecEnv("FetchReach", 32)


def test_32_environments_do_not_fit_into_1_mb(tmp_path: Path) -> None:
    """A real file system that is too small: an error, where SIGBUS ended the process before."""
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    allowed = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("mounting a file system in a namespace is not permitted here")
    script = "from sim.vector import CpuVecEnv\nCpuVecEnv('FetchReach', 32)\n"
    within = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    run = run_script(tmp_path, script, *within)
    assert run.returncode == 1
    needed = r"2\.\d MB of shared memory are needed, 1\.0 MB are free in /dev/shm"
    assert re.search(needed, run.stderr)
    assert "--shm-size" in run.stderr


def test_no_process_holds_anything_that_has_a_name(tmp_path: Path) -> None:
    """What has no name in /dev/shm cannot stay there, however all processes end at once."""
    path = tmp_path / "script.py"
    path.write_text(
        "from sim.vector import CpuVecEnv\n"
        "if __name__ == '__main__':\n"
        "    env = CpuVecEnv('FetchReach', 2, 2, render=False)\n"
        "    print('ready', *(w.process.pid for w in env._workers), flush=True)\n"
        "    input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout
    ready, *workers = parent.stdout.readline().split()
    assert ready == "ready"
    pids = [parent.pid, *map(int, workers)]
    held = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    held = [line for line in held if "/dev/shm" in line]
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    assert len(held) >= len(pids)
    assert all(line.endswith("(deleted)") for line in held), held
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/maps").exists() for pid in pids[1:]) and time.monotonic() < until:
        time.sleep(0.05)  # killed processes take a moment to go


def named_memory() -> set[str]:
    """Names in /dev/shm that this process has mapped, as a semaphore of multiprocessing has one."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in maps if "/dev/shm/" in line and "(deleted)" not in line}


# --- processes


def echo(channel: WorkerChannel, first: int) -> None:
    """Answer with the sum of `first` and what comes, until None comes."""
    while (number := channel.receive()) is not None:
        channel.send(("ok", first + number))


def fail(channel: WorkerChannel) -> None:
    """Raise at once."""
    raise KeyError("no such thing")


def exit_with_7(channel: WorkerChannel) -> None:
    """End without an answer."""
    os._exit(7)


def fill(channel: WorkerChannel, shared: SharedArrays) -> None:
    """Write to an array that came along."""
    shared.arrays["numbers"][1:] = 3.0
    channel.send(("ok", None))


def test_a_worker_answers_and_ends() -> None:
    """In order, as often as it is asked."""
    worker = WorkerProcess("worker 0", echo, 40)
    for number in range(3):
        worker.send(number)
        assert worker.receive() == 40 + number
    worker.ask_to_end()
    worker.join()
    assert worker.process.exitcode == 0


def test_a_worker_writes_to_the_same_memory() -> None:
    """The parent sees it without a copy."""
    shared = SharedArrays({"numbers": ((3,), "float64")})
    worker = WorkerProcess("worker 0", fill, shared)
    worker.receive()
    np.testing.assert_array_equal(shared.arrays["numbers"], [0.0, 3.0, 3.0])
    worker.join()
    shared.close()


def test_how_a_worker_failed_is_told() -> None:
    """A traceback, an exit code, or the signal that ended it, each under the worker's name."""
    failing = WorkerProcess("worker 2", fail)
    with pytest.raises(WorkerError, match=r"worker 2 failed: [\s\S]*KeyError: 'no such thing'"):
        failing.receive()
    failing.join()
    ending = WorkerProcess("worker 3", exit_with_7)
    with pytest.raises(WorkerError, match="worker 3 ended with exit code 7"):
        ending.receive()
    ending.join()
    killed = WorkerProcess("worker 4", echo, 0)
    killed.send(1)
    assert killed.receive() == 1
    killed.process.terminate()
    killed.process.join()
    with pytest.raises(WorkerError, match="worker 4 was ended by SIGTERM"):
        killed.receive()
    killed.ask_to_end()  # nothing to ask any more, and no error
    killed.join()


def add(one: int, other: int) -> int:
    """A call with a result."""
    return one + other


def refuse(path: str) -> None:
    """A call that raises what the caller catches by its type."""
    raise FileNotFoundError(errno.ENOENT, "no such file", path)


def kill_me() -> None:
    """What the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pool_gives_results_and_errors_back_and_holds_no_name() -> None:
    """Errors keep their type, and say where in the worker they were raised."""
    before = named_memory()
    pool = WorkerPool(2, prepare=os.getpid)
    calls = [pool.submit(add, number, 1) for number in range(6)]
    assert [call.result() for call in calls] == [1, 2, 3, 4, 5, 6]
    assert named_memory() <= before
    with pytest.raises(FileNotFoundError, match="no such file") as raised:
        pool.submit(refuse, "here").result()
    assert "in refuse" in raised.value.__notes__[0]
    assert pool.submit(add, 2, 2).result() == 4  # the worker goes on
    with pytest.raises(WorkerError, match=r"SIGKILL.*out of memory: use fewer workers"):
        pool.submit(kill_me).result()
    pool.close()


def test_our_own_errors_come_without_a_traceback() -> None:
    """They are written to be read."""
    worker = WorkerProcess("worker 0", refuse_to_draw)
    with pytest.raises(WorkerError) as raised:
        worker.receive()
    assert str(raised.value) == "worker 0 failed: nothing draws here"
    worker.join()


def refuse_to_draw(channel: WorkerChannel) -> None:
    """As a worker without a GL library does."""
    raise NoRendererError("nothing draws here")


UNGUARDED = {
    "environments": "from sim.vector import CpuVecEnv\nCpuVecEnv('FetchReach', 2, 2)\n",
    # Each worker would record once more.
    "recording": "from sim.record import RecordConfig, record\n"
    "record(RecordConfig(('FetchReach',), 1, Path({folder!r}) / 'new', workers=1))\n",
    # Its workers would wait for the lock that their parent holds.
    "scenes": "from sim.scenes import ScenesConfig, make_scenes\n"
    "make_scenes(ScenesConfig(('FetchReach',), 1, Path({folder!r}), workers=1))\n",
    # Its workers would find the folder in use, and say so instead.
    "a run that is resumed": "from policies.run_folder import RunFolder\n"
    "from sim.vector import CpuVecEnv\n"
    "folder = RunFolder({folder!r}, {{}})\nCpuVecEnv('FetchReach', 1, 1)\n",
}


@pytest.mark.parametrize("script", UNGUARDED.values(), ids=UNGUARDED)
def test_a_script_without_a_main_guard_is_told_so(script: str, tmp_path: Path) -> None:
    """By name, and not by a traceback of each worker."""
    text = "from pathlib import Path\n" + script.format(folder=str(tmp_path))
    run = run_script(tmp_path, text)
    assert run.returncode == 1
    assert 'lacks a main guard, `if __name__ == "__main__":`' in run.stderr.splitlines()[-1]
    assert "spawn_main" not in run.stderr
