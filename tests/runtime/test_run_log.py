"""The log of a run: what is read is what was written, up to the last whole record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loop_doubles import SPEC
from vla_runtime.run_log import (
    RunHeader,
    RunLogError,
    RunLogWriter,
    RunStep,
    read_header,
    read_steps,
)

HEADER = RunHeader(SPEC, "go left", {"policy": "ramp"})


def step(number: int) -> RunStep:
    """A control step whose numbers all differ from those of the others."""
    image = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
    values = np.arange(2, dtype=np.float32)
    return RunStep(number / 50, {"front": image}, values + number, values - number, values * number)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Five control steps."""
    writer = RunLogWriter(tmp_path / "a.log", HEADER)
    for number in range(5):
        writer.add(step(number))
    writer.close()
    return tmp_path / "a.log"


def equal(a: RunStep, b: RunStep) -> bool:
    """Every number, and every pixel."""
    return (
        a.time_s == b.time_s
        and np.array_equal(a.images["front"], b.images["front"])
        and all(
            np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("proprio", "action", "requested")
        )
    )


def test_what_is_read_is_what_was_written(log: Path) -> None:
    """Header and steps, images without loss."""
    assert read_header(log) == HEADER
    read = list(read_steps(log))
    assert len(read) == 5
    assert all(equal(ours, step(number)) for number, ours in enumerate(read))


def test_every_cut_keeps_all_whole_records(log: Path) -> None:
    """A kill may end the file at any byte: what was whole before it is read, and nothing else."""
    data = log.read_bytes()
    counts = []
    for length in range(0, len(data) + 1, 7):
        log.write_bytes(data[:length])
        counts.append(len(list(read_steps(log))))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4, 5} - ({5} if len(data) % 7 else set())


def test_a_flipped_byte_ends_the_log_there(log: Path) -> None:
    """A damaged record is never taken for a measurement."""
    data = bytearray(log.read_bytes())
    data[-10] ^= 1
    log.write_bytes(data)
    assert [equal(s, step(i)) for i, s in enumerate(read_steps(log))] == [True] * 4


def test_a_log_is_never_written_over(log: Path) -> None:
    """A second run has a name of its own, or fails."""
    with pytest.raises(FileExistsError):
        RunLogWriter(log, HEADER)


def test_another_file_is_refused(tmp_path: Path) -> None:
    """By name, with what was expected."""
    (tmp_path / "b.log").write_bytes(b"12345678something else")
    with pytest.raises(RunLogError, match=r"b\.log is no log of a run in format 1"):
        read_header(tmp_path / "b.log")
