"""The page's section on training: what the runs logged, as charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from policies.evaluation.report.charts import COLOURS, Line, distribution_chart, line_chart
from policies.evaluation.report.curves import charts
from policies.evaluation.report.data import PolicyResult

FIRST_CHARTS = 18  # the rest are folded away


def training_section(results: Sequence[PolicyResult]) -> str:
    """Charts of everything that was logged; empty where nothing was."""
    # Tags of all runs together: a tag that two runs share becomes one chart.
    groups = charts({tag for result in results for tag in result.curves})
    distributions = [
        f"<figure><figcaption>{escape(f'{result.name}: {tag}')}</figcaption>"
        f"{distribution_chart(one, colour % COLOURS)}</figure>"
        # Colours count through all policies, those without logs too, as in the other sections.
        for colour, result in enumerate(results)
        for tag, one in sorted(result.distributions.items())
    ]
    if not groups and not distributions:
        return ""
    key = "".join(
        f'<span><span class="dot c{i % COLOURS}"></span>{escape(result.name)}</span>'
        for i, result in enumerate(results)
        if result.curves or result.distributions
    )
    figures = [figure for tags in groups for figure in _figures(results, tags)]
    first, rest = [*figures[:FIRST_CHARTS], *distributions], figures[FIRST_CHARTS:]
    folded = (
        f"<details><summary>{len(rest)} more curves</summary>"
        f'<div class="charts">{"".join(rest)}</div></details>'
        if rest
        else ""
    )
    return (
        '<section><h2>Training</h2><p class="note">Every scalar that the runs logged, over their '
        "own step counts; long curves are smoothed over a twentieth of their length, the raw "
        "values lie behind. Bands hold 90% and 50% of a distribution around its median."
        f'</p><p class="key">{key}</p>'
        f'<div class="charts">{"".join(first)}</div>{folded}</section>'
    )


def _figures(results: Sequence[PolicyResult], tags: Sequence[str]) -> list[str]:
    """Every run's lines, the second of two tags dashed; one chart for runs of similar length.

    Runs may count different things (updates, iterations), and on a shared axis the short ones
    would vanish.
    """
    logged = [i for i, result in enumerate(results) if any(tag in result.curves for tag in tags)]
    # Shortest first, so that each group can be compared with its shortest run.
    logged.sort(key=lambda i: _last_step(results[i], tags))
    groups: list[list[int]] = []
    for i in logged:
        if groups and _last_step(results[i], tags) <= 4 * _last_step(results[groups[-1][0]], tags):
            groups[-1].append(i)
        else:
            groups.append([i])
    caption = f"{tags[0]}, dashed {tags[1]}" if len(tags) > 1 else tags[0]
    return [
        "<figure><figcaption>"
        + escape(f"{', '.join(results[i].name for i in group)}: {caption}")
        + "</figcaption>"
        + line_chart(
            [
                Line(f"{results[i].name} {tag}", results[i].curves[tag], i % COLOURS, order > 0)
                for order, tag in enumerate(tags)
                for i in group
                if tag in results[i].curves
            ]
        )
        + "</figure>"
        for group in groups
    ]


def _last_step(result: PolicyResult, tags: Sequence[str]) -> float:
    # Steps ascend, so the last one is the length of the run.
    return max((result.curves[tag].steps[-1] for tag in tags if tag in result.curves), default=0)
