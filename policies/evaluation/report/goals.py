"""Success goal by goal, where words decide what an episode is about."""

from __future__ import annotations

from html import escape

from policies.evaluation.report.charts import COLOURS
from policies.evaluation.report.data import Report


def goals_section(report: Report) -> str:
    """A line a goal, a column a policy; nothing when all episodes ask for the same."""
    goals = sorted(set(report.goals))
    # One goal for all is the table of results once more.
    if len(goals) < 2:
        return ""
    head = "".join(
        f'<th class="n"><span class="dot c{colour % COLOURS}"></span>{escape(result.name)}</th>'
        for colour, result in enumerate(report.results)
    )
    lines = []
    for goal in goals:
        # Bool [episodes], a mask for numpy.
        asked = [own == goal for own in report.goals]
        cells = "".join(
            f'<td class="n">{int(result.episodes.success_at_end[asked].sum())} / '
            f"{int(result.episodes.success_ever[asked].sum())}</td>"
            for result in report.results
        )
        lines.append(f'<tr><td>{escape(goal)}</td><td class="n">{sum(asked)}</td>{cells}</tr>')
    return (
        "<section><h2>Goal by goal</h2>"
        '<p class="note">Episodes that asked for it, and in how many of them each policy had '
        "succeeded at the end / at least once.</p>"
        f'<div class="card"><table><thead><tr><th>Goal</th><th class="n">Episodes</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )
