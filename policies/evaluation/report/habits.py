"""The page's section on habits: how each run stands, and its critic's calibration."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from policies.evaluation.habits.diagnosis import Diagnosis
from policies.evaluation.habits.verdict import Verdict
from policies.evaluation.report.charts import COLOURS, Line, line_chart
from policies.evaluation.report.data import Curve, PolicyResult


def habits_section(results: Sequence[PolicyResult]) -> str:
    """A table a run; empty where no policy comes from a run."""
    blocks = [
        _block(result.name, colour % COLOURS, result.diagnosis)
        for colour, result in enumerate(results)
        if result.diagnosis is not None
    ]
    if not blocks:
        return ""
    return (
        '<section><h2>Habits</h2><p class="note">What the training logged, judged: green is well, '
        "amber wants a look, red is wrong. “Not recorded” was not looked at: it is not green. "
        "<code>vla doctor --run FOLDER</code> prints the same.</p>" + "".join(blocks) + "</section>"
    )


def _block(name: str, colour: int, diagnosis: Diagnosis) -> str:
    heading = f'<h3><span class="dot c{colour}"></span>{escape(name)}</h3>'
    lines = "".join(map(_line, diagnosis.verdicts))
    table = (
        '<div class="card"><table class="habits"><thead><tr><th>Habit</th><th>State</th>'
        f"<th>Reason</th><th>Try</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )
    chart = _calibration(name, colour, diagnosis)
    # A clone was not trained by reinforcement: its table says so in every line.
    if all(verdict.state == "not recorded" for verdict in diagnosis.verdicts):
        return f"{heading}<details><summary>nothing recorded</summary>{table}</details>"
    return heading + table + chart


def _line(verdict: Verdict) -> str:
    tone = {"green": "good", "amber": "amber", "red": "bad"}.get(verdict.state, "soft")
    return (
        f'<tr><td>{escape(verdict.habit)}</td><td class="{tone}">{verdict.state}</td>'
        f"<td>{escape(verdict.reason)}</td><td>{escape(verdict.advice)}</td></tr>"
    )


def _calibration(name: str, colour: int, diagnosis: Diagnosis) -> str:
    """Mean return over mean value of groups of states, beside the line where they are equal."""
    if len(diagnosis.calibration) < 2:
        return ""
    values, returns = zip(*diagnosis.calibration, strict=True)
    ends = [min(values), max(values)]
    chart = line_chart(
        [
            Line(f"{name}: actual return", Curve(values, returns), colour),
            Line("equal", Curve(ends, ends), colour, dashed=True),
        ]
    )
    return (
        '<div class="charts"><figure><figcaption>'
        f"{escape(name)}: actual return over predicted value, dashed where they are equal"
        f"</figcaption>{chart}</figure></div>"
    )
