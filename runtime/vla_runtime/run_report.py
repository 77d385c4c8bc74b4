"""What is known about a run when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunReport:
    """Outcome of a run.

    Attributes:
        ended: why it ended, for people: "60 s are over", "SIGINT", ...
        fault: what the safety gate or a process stopped it for; None for an orderly end.
        ticks: control periods in which the loop ran.
        details: everything else that the report shows, as plain data for JSON.
    """

    ended: str
    fault: str | None
    ticks: int
    details: dict[str, Any] = field(default_factory=dict)
