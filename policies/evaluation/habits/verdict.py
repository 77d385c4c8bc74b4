"""What a check of a run says: a state, why, and what to try."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["green", "amber", "red", "not recorded"]
"""In the last one nothing was looked at, so it is never counted as good."""

_SEVERITY: dict[State, int] = {"not recorded": 0, "green": 1, "amber": 2, "red": 3}


@dataclass(frozen=True)
class Finding:
    """One thing that a check looked at.

    Attributes:
        state: how it stands.
        reason: what was measured, in one sentence.
        advice: what to try; empty where all is well.
    """

    state: State
    reason: str
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """How a run stands in one habit; attributes as in `Finding`."""

    habit: str
    state: State
    reason: str
    advice: str = ""


def worst(habit: str, findings: Iterable[Finding], missing: str) -> Verdict:
    """The verdict of several findings: the worst state, and all reasons of that state.

    Args:
        habit: what was checked.
        findings: nothing where nothing could be looked at.
        missing: what to say then.
    """
    every = list(findings)
    if not every:
        return Verdict(habit, "not recorded", missing)
    state = max(every, key=lambda finding: _SEVERITY[finding.state]).state
    chosen = [finding for finding in every if finding.state == state]
    # Two findings may give the same advice; once is enough.
    advice = dict.fromkeys(finding.advice for finding in chosen if finding.advice)
    return Verdict(habit, state, "; ".join(f.reason for f in chosen), "; ".join(advice))


def graded(value: float, amber: float, red: float) -> State:
    """The state of a value that is good while below `amber` and bad from `red` on."""
    # NaN compares as False: what is not finite is never green.
    return "green" if value < amber else "amber" if value < red else "red"
