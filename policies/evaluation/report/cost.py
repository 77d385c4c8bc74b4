"""The page's section on cost: time and search of a decision, and what was spent on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from policies.evaluation.report.charts import COLOURS
from policies.evaluation.report.data import LEDGER, Row
from policies.evaluation.report.formatting import duration, number

_NONE = '<span class="soft">&ndash;</span>'


def cost_section(rows: Sequence[Row]) -> str:
    """A line a policy: latency and throughput, planning steps, and the ledger."""
    # Throughput depends on the batch, so the heading names what was measured.
    batches = sorted({row.speed.batch for row in rows if row.speed is not None})
    many = f"batch {' or '.join(map(str, batches))}" if batches else "together"
    headings = (
        "Latency, batch 1:<br>median",
        "<br>90th percentile",
        f"Throughput, {many}:<br>decisions a second",
        "Planning steps<br>per decision",
        *(label.capitalize().replace(" ", "<br>", 1) for label in LEDGER.values()),
    )
    head = "".join(f'<th class="n">{heading}</th>' for heading in headings)
    lines = "".join(_line(row, colour) for colour, row in enumerate(rows))
    return (
        "<section><h2>Cost</h2>"
        '<p class="note">Latency is wall time from one observation to a new action chunk; '
        "throughput is measured with several observations decided at once. Planning steps are "
        "simulated control steps searched for one chunk. The rest was spent on the weights, in all "
        "trainings that led to them: recorded demonstrations, frames labelled with true positions, "
        "and simulated control steps that were learned from or chose a checkpoint; a dash where "
        "none is recorded, “unknown” where there is no record at all.</p>"
        f'<div class="card"><table><thead><tr><th>Policy</th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div></section>"
    )


def _line(row: Row, colour: int) -> str:
    speed, planning = row.speed, row.planning_steps_per_decision
    timed = (_NONE,) * 3
    if speed is not None:
        latency = (duration(speed.latency_median_s), duration(speed.latency_p90_s))
        timed = (*latency, number(speed.throughput_hz))

    def spent(name: str) -> str:
        # "Unknown" is not "nothing": a checkpoint without a ledger may have cost any amount.
        if row.ledger is None:
            return '<span class="soft">unknown</span>'
        return number(row.ledger[name]) if name in row.ledger else _NONE

    # In the order of the headings.
    cells = (*timed, _NONE if planning is None else number(planning), *map(spent, LEDGER))
    return (
        f'<tr><td><span class="dot c{colour % COLOURS}"></span>{escape(row.name)}</td>'
        + "".join(f'<td class="n">{cell}</td>' for cell in cells)
        + "</tr>"
    )
