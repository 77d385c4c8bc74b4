"""The proof: hostile commands, clocks, readings and robots, judged from what was written."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safety_adversary import Adversary
from safety_checker import Checker, Segment
from safety_robot import DT, LIMITS, Bench
from vla_runtime.safety.checks import FaultKind


def prove(adversaries: int, steps: int) -> dict[str, object]:
    """Run so many gates for so many steps; what was seen, or an AssertionError with the seed."""
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    used: dict[str, float] = {}
    writes = pauses = 0
    ways = list(product((1.0, 1.0, 0.0), (False, True), (False, True)))
    for seed in range(adversaries):
        hostile, jerk, workspace = ways[seed % len(ways)]
        adversary = Adversary(seed, jerk, workspace, hostile)
        try:
            adversary.run(steps)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {ways[seed % len(ways)]}: {error}") from error
        faults += adversary.faults
        counts += adversary.gate.counts
        writes += adversary.checker.writes
        pauses += adversary.checker.pauses
        for label, use in adversary.checker.used.items():
            used[label] = max(used.get(label, 0.0), use)
    return {
        "steps": adversaries * steps,
        "commands written": writes,
        "pauses": pauses,
        "faults": dict(faults),
        "counts": dict(counts),
        "largest use of a limit": used,
    }


def require_that_it_was_hard(seen: dict) -> None:
    """Every limit was pushed against, and every kind of fault happened."""
    assert seen["commands written"] > 0.8 * seen["steps"]
    for label, use in seen["largest use of a limit"].items():
        assert use == pytest.approx(1.0, abs=1e-6), label
    # Ruckig does not fail on purpose; test_safety_gate.py makes it.
    assert set(seen["faults"]) >= set(get_args(FaultKind)) - {"motion"}
    assert set(seen["counts"]) == {"limited", "workspace", "early", "missed"}
    assert seen["pauses"] > 0


def test_no_limit_is_broken() -> None:
    """24,000 steps."""
    require_that_it_was_hard(prove(adversaries=48, steps=500))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_limit_is_broken_in_a_million_steps() -> None:
    """A thousand gates; prints what was seen."""
    seen = prove(adversaries=1_000, steps=1_000)
    print(*(f"{label}: {value}" for label, value in seen.items()), sep="\n")
    require_that_it_was_hard(seen)


COMMANDS = st.tuples(
    *[st.sampled_from((-1e308, -2.0, -1.0, -0.0, 1e-300, 0.3, 1.0, 2.0, math.inf, math.nan))] * 2
)
GAPS = st.sampled_from((0.0, 0.4, 0.5, 1.0, 1.0, 1.0, 1.49, 1.51, 5.0, 11.0, -1.0))


@settings(max_examples=60, deadline=None)
@given(ticks=st.lists(st.tuples(COMMANDS, GAPS), max_size=50), jerk=st.booleans())
def test_no_short_story_breaks_a_limit(ticks: list, jerk: bool) -> None:
    """The same on few values, so that hypothesis can shrink what it finds."""
    limits = replace(LIMITS, jerk=(100.0, 50.0) if jerk else ())
    bench = Bench(limits).start()
    segment = Segment(np.zeros(2))
    for command, gap in ticks:
        before = len(bench.robot.written)
        bench.tick(*command, after_s=gap * DT)
        segment.clock_jumped |= gap < 0
        segment.commands += bench.robot.written[before:]
        segment.times += [bench.now] * (len(bench.robot.written) - before)
    checker_of(jerk).check(segment)


def checker_of(jerk: bool) -> Checker:
    """For the two joints of `safety_robot`."""
    low, high = np.array([-1.0, -2.0]), np.array([1.0, 2.0])
    return Checker(
        low,
        high,
        np.array([1.0, 2.0]),
        np.array([5.0, 10.0]),
        np.array([100.0, 50.0]) if jerk else None,
        np.array([False, False]),
        DT,
    )


def positions(*steps: float, start: float = 0.0) -> Segment:
    """A segment of the first joint: steps in units of A dt^2, one period apart."""
    moved = start + np.cumsum(steps) * 5 * DT**2
    commands = [np.array([x, 0.0]) for x in moved]
    return Segment(np.array([start, 0.0]), list(np.arange(len(steps)) * DT), commands)


@pytest.mark.parametrize(
    ("segment", "complaint"),
    [
        (positions(1.000001), "command 0 breaks a limit"),
        (positions(1, 2, 3.00001), "command 2 breaks a limit"),
        (positions(1, -0.00001), "command 1 breaks a limit"),
        (positions(*range(1, 12)), "command 10 breaks a limit"),
        (positions(1, start=0.9999), "a command outside its range"),
        (positions(math.nan), "a command that is no number"),
    ],
)
def test_the_checker_finds_what_breaks_a_limit(segment: Segment, complaint: str) -> None:
    """By a millionth too fast, too soon, too far."""
    with pytest.raises(AssertionError, match=complaint):
        checker_of(jerk=False).check(segment)


def test_the_checker_finds_jerk_pauses_and_bursts() -> None:
    """Only a pause that is long enough excuses a sudden stop, and too many writes are none."""
    checker_of(jerk=False).check(positions(1, 2, 1, 0, 1))
    with pytest.raises(AssertionError, match="breaks a limit"):
        checker_of(jerk=True).check(positions(1, 2, 1, 0, 1))
    sudden = positions(1, 2, 3, 0)
    with pytest.raises(AssertionError, match="command 3 breaks a limit"):
        checker_of(jerk=False).check(sudden)
    for pause, excused in ((2.9, False), (3.1, True)):
        sudden.times[3] = sudden.times[2] + pause * DT
        if excused:
            checker_of(jerk=False).check(sudden)
        else:
            with pytest.raises(AssertionError, match="command 3 breaks a limit"):
                checker_of(jerk=False).check(sudden)
    burst = positions(1, 1, 1)
    burst.times[2] = burst.times[1] + 0.4 * DT
    with pytest.raises(AssertionError, match="too early"):
        checker_of(jerk=False).check(burst)
