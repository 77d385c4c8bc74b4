"""Absolute deadlines, the histogram of lateness, and what is asked of the operating system."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from vla_runtime import timing
from vla_runtime.timing import DurationHistogram, Ticker, real_time, use_fifo


class Clock:
    """Stands for `time` in the module: sleeping takes as long as asked, plus `late_s`."""

    def __init__(self) -> None:
        self.now_s, self.late_s = 100.0, 0.0

    def monotonic(self) -> float:
        """The time."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds + self.late_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The module's clock."""
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_lateness_does_not_add_up(clock: Clock) -> None:
    """A tick that begins 3 ms late and works 5 ms leaves the next deadline where it was."""
    ticker = Ticker(0.02)
    ticker.start()
    clock.late_s = 0.003
    for tick in range(1, 51):
        ticker.wait()
        assert ticker.deadline_s == pytest.approx(100.0 + 0.02 * tick)
        clock.now_s += 0.005
    assert ticker.lateness.count == 50
    assert ticker.lateness.longest_s == pytest.approx(0.003)
    assert ticker.missed == 0


@pytest.mark.parametrize(
    ("work_s", "missed", "late_s"),
    [(0.019, 0, 0.0), (0.024, 0, 0.004), (0.026, 1, 0.0), (0.044, 1, 0.004), (0.061, 2, 0.001)],
)
def test_missed_periods_are_counted_and_skipped(
    clock: Clock, work_s: float, missed: int, late_s: float
) -> None:
    """A tick begins late by a quarter of a period, or waits for the next deadline; no bursts."""
    ticker = Ticker(0.02)
    ticker.start()
    ticker.wait()
    clock.now_s += work_s
    ticker.wait()
    assert ticker.missed == missed
    assert ticker.deadline_s == pytest.approx(100.0 + 0.02 * (2 + missed))
    assert clock.now_s - ticker.deadline_s == pytest.approx(late_s, abs=1e-9)


def test_percentiles_never_understate() -> None:
    """Against numpy's on the same numbers: at most one bin (4.7%) more."""
    durations = np.random.default_rng(0).lognormal(-8, 2, 20_000).clip(1e-6, 10)
    histogram = DurationHistogram()
    for duration in durations:
        histogram.add(float(duration))
    for percent in (50, 99, 99.9, 100):
        exact = float(np.percentile(durations, percent, method="inverted_cdf"))
        assert exact <= histogram.percentile(percent) * (1 + 1e-9)
        assert histogram.percentile(percent) <= exact * 1.048
    assert histogram.longest_s == durations.max()
    assert sum(count for _, count in histogram.bins_ms()) == 20_000


@pytest.mark.parametrize("duration_s", [-0.001, 0.0, 1e-9, 1e3])
def test_durations_beyond_the_bins_count(duration_s: float) -> None:
    """An early wake-up or a stop of minutes is in the count and in the maximum."""
    histogram = DurationHistogram()
    histogram.add(duration_s)
    assert histogram.summary_ms()["count"] == 1
    assert histogram.summary_ms()["max"] == max(duration_s, 0) * 1e3


def test_an_empty_histogram_says_so() -> None:
    """A run that was stopped before its first tick still has a report."""
    assert DurationHistogram().summary_ms() == {"count": 0}
    assert np.isnan(DurationHistogram().percentile(50))


def test_real_time_is_undone() -> None:
    """Scheduling and garbage collection are afterwards as they were."""
    before = os.sched_getscheduler(0)
    with real_time(0) as scheduling:
        assert not gc.isenabled()
        assert "--priority 0" in scheduling
    assert gc.isenabled()
    assert os.sched_getscheduler(0) == before


def test_fifo_is_used_or_its_lack_explained() -> None:
    """With the permission it holds; without it the message has what gives it."""
    with real_time(7) as scheduling:
        if os.sched_getscheduler(0) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK:
            assert scheduling == "FIFO, priority 7"
            assert os.sched_getparam(0).sched_priority == 7
        else:
            assert "LimitRTPRIO" in scheduling


def test_real_time_ends_without_the_right_to_take_its_flag_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has `rtprio` alone may set reset-on-fork, not clear it: a run must still end well."""
    now = [os.SCHED_OTHER]

    def as_the_kernel(_: int, policy: int, param: os.sched_param) -> None:
        if now[0] & os.SCHED_RESET_ON_FORK and not policy & os.SCHED_RESET_ON_FORK:
            raise PermissionError
        now[0] = policy

    monkeypatch.setattr(os, "sched_setscheduler", as_the_kernel)
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: now[0])
    with real_time(7) as scheduling:
        assert scheduling == "FIFO, priority 7"
    assert now[0] == os.SCHED_OTHER | os.SCHED_RESET_ON_FORK


def test_no_permission_for_fifo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user without rights reads."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert "not permitted" in use_fifo(50)
    assert "rtprio 50" in use_fifo(50)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    """SIGKILL of the parent, which it cannot react to, ends a child that is busy."""
    child = (
        "import os, sys, time; from vla_runtime.timing import end_with_parent; "
        "end_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())]); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s and _runs(pid):
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
