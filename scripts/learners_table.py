"""What a comparison of learners found, as a table and as a page with learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean

import numpy as np
from vla_runtime.atomic_folder import write_atomically

from policies.evaluation.habits.diagnosis import diagnose
from policies.evaluation.habits.run_metrics import RunMetrics
from policies.evaluation.report.charts import Line, line_chart
from policies.evaluation.report.data import Curve
from policies.evaluation.report.page import html_page
from policies.evaluation.statistics import holm, mcnemar_exact, paired_difference
from policies.run_folder import describe_machine
from scripts.results_table import in_points

GOOD = 0.9
"""Greedy success on the selection states whose control steps are given."""
_LEVEL = 0.05
_HEADINGS = (
    "method",
    "success at the end, by seed",
    "mean",
    "ever",
    "against the clone, points",
    "against the best, p",
    "control steps",
    "to choose",
    f"steps to {GOOD:.0%}",
    "minutes",
    "habits",
)


@dataclass(frozen=True)
class Trained:
    """One run of one method, played.

    Attributes:
        method: as in the table.
        seed: of the run, and the place of its clone.
        at_end: bool [states], success at the end of the episode.
        ever: bool [states], success at any control step.
        spent: the checkpoint's ledger, without what its clone had cost.
        seconds: of training, greedy evaluations among them; None for a clone.
        metrics: what the run logged; None where nothing is told by control steps.
        counted_from: control steps that its clone had cost.
    """

    method: str
    seed: int
    at_end: np.ndarray
    ever: np.ndarray
    spent: dict[str, int]
    seconds: float | None = None
    metrics: RunMetrics | None = None
    counted_from: int = 0

    def curve(self) -> Curve:
        """Greedy success on the selection states over control steps collected so far."""
        if self.metrics is None:
            return Curve((), ())
        collected = self.metrics.series.get("ledger/collection_steps", {})
        success = sorted(self.metrics.series.get("success/end", {}).items())
        steps = [collected.get(step, self.counted_from) - self.counted_from for step, _ in success]
        return Curve(steps, [value for _, value in success])

    def steps_to_good(self) -> float | None:
        """Control steps at the first greedy evaluation that was good enough; None for never."""
        curve = self.curve()
        reached = (x for x, y in zip(curve.steps, curve.values, strict=True) if y >= GOOD)
        return next(reached, None)


def write_results(out: Path, task: str, trained: Sequence[Trained]) -> str:
    """Write results.json, results.md and results.html; the table, in Markdown."""
    methods = list(dict.fromkeys(run.method for run in trained))
    runs = {name: [run for run in trained if run.method == name] for name in methods}
    rows = _rows(runs)
    lines = [f"| {' | '.join(row)} |" for row in (_HEADINGS, ("---",) * len(_HEADINGS), *rows)]
    text = "\n".join([*lines, "", _note(runs)]) + "\n"
    write_atomically(out / "results.md", text)
    write_atomically(out / "results.json", json.dumps([_plain(run) for run in trained], indent=1))
    write_atomically(out / "results.html", _page(task, runs, rows))
    return text


def _rows(runs: dict[str, list[Trained]]) -> list[tuple[str, ...]]:
    """A line a method, the most successful first; the clone as it is among them."""
    order = sorted(runs, key=lambda name: -_mean(runs[name]))
    learned = [name for name in order if name != "clone"]
    best = learned[0] if learned else "clone"
    others = [name for name in learned if name != best]
    tested = [_paired(runs[name], runs[best]) for name in others]
    adjusted = holm([mcnemar_exact(*_discordant(*pair)) for pair in tested])
    p_values = dict(zip(others, adjusted, strict=True))
    return [_row(name, runs, best, p_values.get(name)) for name in order]


def _row(
    name: str, runs: dict[str, list[Trained]], best: str, p_value: float | None
) -> tuple[str, ...]:
    mine = runs[name]
    by_seed = ", ".join(f"{100 * run.at_end.mean():.1f}" for run in mine)
    ever = 100 * mean(run.ever.mean() for run in mine)
    gain = ""
    if name != "clone" and (pair := _paired(mine, runs["clone"]))[0].size:
        gain = in_points(paired_difference(*pair).difference)
    against = "best" if name == best else ""
    if p_value is not None:
        against = f"{p_value:.2g}" + (", cannot be told apart" if p_value > _LEVEL else "")
    collected, selection = (
        mean(run.spent.get(what, 0) for run in mine)
        for what in ("collection_steps", "selection_steps")
    )
    reached = [steps for run in mine if (steps := run.steps_to_good()) is not None]
    good = f"{np.median(reached):,.0f} ({len(reached)} of {len(mine)})" if reached else "never"
    seconds = [run.seconds for run in mine if run.seconds is not None]
    return (
        name,
        by_seed,
        f"{100 * _mean(mine):.1f}%",
        f"{ever:.1f}%",
        gain,
        against,
        f"{collected:,.0f}",
        f"{selection:,.0f}",
        "" if mine[0].metrics is None else good,
        f"{mean(seconds) / 60:.0f}" if seconds else "",
        "; ".join(filter(None, map(_habits, mine))),
    )


def _mean(runs: Sequence[Trained]) -> float:
    return mean(float(run.at_end.mean()) for run in runs)


def _paired(ours: Sequence[Trained], theirs: Sequence[Trained]) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes on the same initial states from the same clones, bool [seeds * states] both."""
    other = {run.seed: run.at_end for run in theirs}
    # The table is also written while some seeds of a method are still missing.
    common = [run for run in ours if run.seed in other]
    nothing = np.zeros(0, dtype=bool)
    return (
        np.concatenate([nothing, *(run.at_end for run in common)]),
        np.concatenate([nothing, *(other[run.seed] for run in common)]),
    )


def _discordant(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    return int((ours & ~theirs).sum()), int((~ours & theirs).sum())


def _habits(run: Trained) -> str:
    """Habits of a run that are not green."""
    if run.metrics is None:
        return ""
    states = [verdict.state for verdict in diagnose(run.metrics).verdicts]
    counts = {state: states.count(state) for state in ("red", "amber")}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "green"


def _note(runs: dict[str, list[Trained]]) -> str:
    first = next(iter(runs.values()))[0]
    seeds = max(len(found) for found in runs.values())
    machine = describe_machine()
    return (
        f"{len(first.at_end)} initial states, {seeds} seed{'s' * (seeds > 1)}, each with a clone "
        "of its own. Pairs are the same state and clone; intervals are Newcombe's (method 10), p "
        "is the exact McNemar test with Holm's correction over all methods. Both speak of these "
        "trained policies: what another seed would give shows in the spread of the seeds alone. "
        "Control steps are those collected to learn from, and those played to choose a checkpoint, "
        f"until the one that is shown; steps to {GOOD:.0%} are the median of the seeds that "
        f"reached it on the selection states. Commit {machine['git_commit']}, {machine['machine']}."
    )


def _plain(run: Trained) -> dict[str, object]:
    curve = run.curve()
    return {
        "method": run.method,
        "seed": run.seed,
        "success_at_end": run.at_end.tolist(),
        "success_ever": run.ever.tolist(),
        "spent": run.spent,
        "seconds": run.seconds,
        "curve": {"control_steps": list(curve.steps), "success": list(curve.values)},
    }


def _page(task: str, runs: dict[str, list[Trained]], rows: Sequence[tuple[str, ...]]) -> str:
    """The table, and a chart a method with a line a seed; all charts have the same axes."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in _HEADINGS)
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    curves = {name: [run.curve() for run in found] for name, found in runs.items()}
    furthest = max((max(c.steps, default=0) for each in curves.values() for c in each), default=0)
    charts = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>"
        + line_chart(
            [Line(f"seed {runs[name][i].seed}", curve, i) for i, curve in enumerate(found)],
            x_range=(0, furthest),
            y_range=(0, 1),
        )
        + "</figure>"
        for name, found in curves.items()
        if any(curve.steps for curve in found) and furthest
    )
    seeds = max(len(found) for found in runs.values())
    key = "".join(f'<span><span class="dot c{i}"></span>seed {i}</span>' for i in range(seeds))
    title = f"Learners on {task}"
    return html_page(
        title,
        f"<h1>{escape(title)}</h1><div class='card'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div><p class='note'>{escape(_note(runs))}</p>"
        "<section><h2>Learning curves</h2><p class='note'>Greedy success at the end on the "
        f"selection states over control steps collected.</p><p class='key'>{key}</p>"
        f"<div class='charts'>{charts}</div></section>",
    )
