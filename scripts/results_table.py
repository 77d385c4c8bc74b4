"""The table that `vla evaluate` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from policies.evaluation.report.data import Row
from policies.evaluation.statistics import Interval

_UNBOUNDED = 1000
"""Columns of what is not a terminal: in a log file nothing is cut or wrapped."""


def print_table(rows: Sequence[Row], reference: str) -> None:
    """Success with its 95% intervals, the comparison with the reference, and speed."""
    headings = ("policy", "at the end", "ever", f"against {reference}", *_speed_headings(rows))
    listed = Table(box=None)
    for heading in headings:
        listed.add_column(Text(heading), overflow="fold")
    for row in rows:
        ever = f"{100 * row.success_ever.value:.1f}%"
        cells = (row.name, percent(row.success_at_end), ever, _compared(row), *_speed(row))
        listed.add_row(*map(Text, cells))  # as text: a name in brackets is no markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNBOUNDED)
    console.print(listed)


def _compared(row: Row) -> str:
    if row.difference is None:
        # Every other row is paired with it state by state, see `paired_difference`.
        return "reference"
    return f"{percent(row.difference.difference, '+')} p={row.difference.p_value:.2g}"


def _speed_headings(rows: Sequence[Row]) -> tuple[str, str]:
    batches = {row.speed.batch for row in rows if row.speed is not None}
    many = "/".join(map(str, sorted(batches)))
    return "latency at batch 1, median (p90)", f"decisions/s at batch {many}"


def _speed(row: Row) -> tuple[str, str]:
    if (speed := row.speed) is None:
        return "", ""
    median_ms, p90_ms = 1000 * speed.latency_median_s, 1000 * speed.latency_p90_s
    return f"{median_ms:.3g} ms ({p90_ms:.3g})", f"{speed.throughput_hz:.3g}"


def percent(interval: Interval, sign: str = "") -> str:
    """A rate, or with the sign "+" a difference, with its bounds."""
    # The sign goes before both bounds: a difference from 0.
    low, high = (f"{100 * bound:{sign}.0f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.value:{sign}.1f}% [{low}, {high}]"


def in_points(difference: Interval) -> str:
    """A difference of rates in percentage points, with its bounds."""
    low, value, high = (100 * x for x in (difference.low, difference.value, difference.high))
    return f"{value:+.1f} [{low:+.0f}, {high:+.0f}]"
