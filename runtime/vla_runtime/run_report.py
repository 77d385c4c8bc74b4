"""What is known about a run when it has ended: lines for a terminal, JSON, and a page."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from vla_runtime.atomic_folder import write_atomically
from vla_runtime.contract import RobotSpec
from vla_runtime.run_config import RunConfig

REPORT = "report.json"
FILM = "episode.mp4"
"""Beside the report, where the robot is simulated."""
_RANGES_MS = tuple(step * 10**power for power in range(-3, 6) for step in (1, 2, 5))
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td{padding:.15rem 1.5rem .15rem 0;vertical-align:top}"
    "video{max-width:100%}.bad{color:#b3261e}rect{fill:#3b6fb6}svg{width:100%;height:9rem}"
)


@dataclass(frozen=True)
class RunReport:
    """Outcome of a run.

    Attributes:
        ended: why it ended, for people: "60 s are over", "stopped by SIGINT", or the fault.
        fault: what the run was stopped for; None for an orderly end.
        ticks: control periods in which the loop ran.
        details: everything that the report shows, as plain data for JSON.
    """

    ended: str
    fault: str | None
    ticks: int
    details: dict[str, Any]

    @classmethod
    def of(cls, config: RunConfig, spec: RobotSpec, measured: dict[str, Any]) -> RunReport:
        """The report of a run that has ended.

        Args:
            config: its flags.
            spec: the robot's contract.
            measured: "ended", "fault", "ticks", "recording", and whatever else was counted.
        """
        # Paths become text, so that JSON can hold them.
        flags = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        details = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "robot": spec.robot,
            "control_rate_hz": spec.control_rate_hz,
            **measured,
            "config": flags,
            "machine": f"{platform.platform()}, Python {platform.python_version()}",
        }
        return cls(measured["ended"], measured["fault"], measured["ticks"], details)

    @property
    def succeeded(self) -> bool:
        """Neither the robot nor the recording was stopped by a fault."""
        return self.fault is None and not self.details["recording"].get("failure")

    def lines(self) -> Iterator[str]:
        """What a terminal shows."""
        details = self.details
        yield f"ended: {self.ended}"
        if "success" in details:
            yield f"success at the end: {'yes' if details['success'] else 'no'}"
        yield f"ticks: {self.ticks}, missed periods: {details['missed_periods']}"
        yield f"scheduling: {details['scheduling']}"
        yield f"lateness: {_milliseconds(details['lateness_ms'])}"
        yield f"ticks by lateness, ms: {_ranges(details['lateness_histogram_ms'])}"
        yield f"decisions: {_milliseconds(details['decision_ms'])}"
        yield (
            f"ticks without a command: {details['ticks_without_command']}, steps of late chunks "
            f"skipped: {details['skipped_steps']}, failed reads: {details['failed_reads']}"
        )
        if recording := details["recording"]:
            listed = ", ".join(f"{k} {v}" for k, v in recording.items() if v is not None)
            yield f"recording: {listed}"


def write_report(folder: Path, report: RunReport) -> None:
    """Write `report.json` and `report.html`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / REPORT, json.dumps(report.details, indent=1) + "\n")
    write_atomically(folder / "report.html", _page(report))


def _milliseconds(summary: dict[str, Any]) -> str:
    if not summary["count"]:
        return "none"
    values = ", ".join(f"{k} {v:.2f}" for k, v in summary.items() if k != "count")
    return f"{summary['count']} of them, ms: {values}"


def _ranges(bins: list[tuple[float, int]]) -> str:
    """The histogram in a line, three ranges a decade; empty ones are left out."""
    counts: Counter[float] = Counter()
    for edge, count in bins:
        # A bin belongs to the range in which it ends; a little room for how edges are rounded.
        counts[next(upper for upper in _RANGES_MS if edge <= upper * 1.001)] += count
    listed = (f"up to {upper:g}: {counts[upper]}" for upper in _RANGES_MS if counts[upper])
    return ", ".join(listed) or "none"


def _page(report: RunReport) -> str:
    details = report.details
    tone = ' class="bad"' if not report.succeeded else ""
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>"
        for key, value in _leaves(details)
        if not key.startswith("lateness_histogram_ms")
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Run on {escape(details['robot'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Run on {escape(details['robot'])}</h1><p{tone}>{escape(report.ended)}</p>"
        f"{_film(details)}<h2>Lateness of the control loop</h2>"
        f"{_histogram(details['lateness_histogram_ms'])}"
        f"<h2>Everything</h2><table>{rows}</table></body></html>\n"
    )


def _film(details: dict[str, Any]) -> str:
    if "success" not in details:
        return ""
    outcome = "succeeded" if details["success"] else "did not succeed"
    return f'<h2>The episode {outcome}</h2><video src="{FILM}" controls loop muted></video>'


def _histogram(bins: list[tuple[float, int]]) -> str:
    """Bars of equal width, one a bin; their height is the count's share."""
    if not bins:
        return "<p>The loop did not run.</p>"
    most = max(count for _, count in bins)
    bars = "".join(
        # At least a hundredth, so that a single late tick is visible.
        f'<rect x="{i}" width=".9" y="{100 - (h := max(100 * count / most, 1)):.2f}" '
        f'height="{h:.2f}"><title>up to {edge:.3g} ms: {count}</title></rect>'
        for i, (edge, count) in enumerate(bins)
    )
    return (
        f'<svg viewBox="0 0 {len(bins)} 100" preserveAspectRatio="none" role="img">{bars}</svg>'
        f"<p>From {bins[0][0]:.3g} ms (left) to {bins[-1][0]:.3g} ms (right); bins are equally "
        "wide on a logarithmic scale, empty ones are left out. Point at a bar for its count.</p>"
    )


def _leaves(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from _leaves(value, name)
        else:
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)
