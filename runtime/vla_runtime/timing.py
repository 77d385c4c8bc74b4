"""Absolute deadlines, how late they were met, and what the operating system can do about it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import signal
import time
from collections.abc import Iterator

import numpy as np

_TOLERATED = 0.25
"""How much of a period a tick may begin late before it is left out."""
_SHORTEST_S, _DECADES, _BINS_A_DECADE = 1e-6, 8, 50


class DurationHistogram:
    """Durations by logarithmic bins: memory does not grow, however long a run is.

    A percentile is the upper edge of its bin: at most 4.7% more than the truth, never less, between
    1 microsecond and 100 s.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_DECADES * _BINS_A_DECADE + 1, np.int64)
        self.count = 0
        self.longest_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        ratio = max(duration_s / _SHORTEST_S, 1.0)
        self._counts[min(math.ceil(math.log10(ratio) * _BINS_A_DECADE), len(self._counts) - 1)] += 1
        self.count += 1
        self.longest_s = max(self.longest_s, duration_s)

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of the durations do not exceed; NaN where there are none."""
        if not self.count:
            return math.nan
        rank = max(math.ceil(percent / 100 * self.count), 1)
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(_SHORTEST_S * 10 ** (index / _BINS_A_DECADE), self.longest_s)

    def summary_ms(self) -> dict[str, float | int]:
        """Count, percentiles and the longest, for a report; percentiles are None without data."""
        percents = {"p50": 50, "p99": 99, "p99.9": 99.9}
        if not self.count:
            return {"count": 0}
        values = {name: self.percentile(percent) * 1e3 for name, percent in percents.items()}
        return {"count": self.count, **values, "max": self.longest_s * 1e3}

    def bins_ms(self) -> list[tuple[float, int]]:
        """(upper edge in ms, count) of every bin that is not empty."""
        return [
            (_SHORTEST_S * 10 ** (int(index) / _BINS_A_DECADE) * 1e3, int(self._counts[index]))
            for index in np.flatnonzero(self._counts)
        ]


class Ticker:
    """Control periods by absolute deadlines, so that lateness never adds up.

    Attributes:
        lateness: how long after its deadline each tick began.
        missed: deadlines that passed by more than a quarter of a period while an earlier tick was
            still at work; they are skipped.
    """

    def __init__(self, period_s: float):
        self._period_s = period_s
        self._deadline_s = time.monotonic()
        self.lateness = DurationHistogram()
        self.missed = 0

    @property
    def deadline_s(self) -> float:
        """When the present tick should have begun, `time.monotonic()`."""
        return self._deadline_s

    def start(self) -> None:
        """The first deadline is one period from now."""
        self._deadline_s = time.monotonic()

    def wait(self) -> None:
        """Sleep until the next deadline that is not missed."""
        self._deadline_s += self._period_s
        behind = (time.monotonic() - self._deadline_s) / self._period_s
        # Ticks that follow each other too closely are refused by the safety gate.
        if behind > _TOLERATED:
            skipped = math.ceil(behind - _TOLERATED)
            self.missed += skipped
            self._deadline_s += skipped * self._period_s
        # clock_nanosleep with an absolute deadline inside; no spinning, which backfires on a shared
        # machine.
        time.sleep(max(self._deadline_s - time.monotonic(), 0.0))
        self.lateness.add(time.monotonic() - self._deadline_s)


def use_fifo(priority: int) -> str:
    """Schedule this thread before all ordinary ones; what came of it, for people.

    Processes that it starts afterwards are ordinary ones.
    """
    if priority == 0:
        return "ordinary scheduling, as --priority 0 asks"
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except PermissionError:
        return (
            "ordinary scheduling: FIFO is not permitted. Allow it with `ulimit -r` "
            f"{priority} or more: a line `@realtime - rtprio {priority}` in "
            "/etc/security/limits.d, LimitRTPRIO in a systemd unit, or in a container "
            f"--ulimit rtprio={priority} --cap-add=sys_nice"
        )
    return f"FIFO, priority {priority}"


@contextlib.contextmanager
def real_time(priority: int) -> Iterator[str]:
    """FIFO scheduling and no garbage collection inside; yields what `use_fifo` says."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    collects = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield use_fifo(priority)
    finally:
        # Reset-on-fork stays: who may use FIFO by `rtprio` alone may not take that flag back.
        kept = os.sched_getscheduler(0) & os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, before[0] | kept, before[1])
        gc.unfreeze()
        if collects:
            gc.enable()


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one with the id `parent` ends, however it does."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)
