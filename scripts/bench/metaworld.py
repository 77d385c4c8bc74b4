"""Meta-World's results as they are published: by horizon, group of tasks and task.

    vla evaluate --task MetaWorld/MT50 --episodes 500 --films 0 --policies clone=RUN --out runs/mt50
    python -m scripts.bench.metaworld runs/mt50/report.json

One evaluation at the full horizon of 500 control steps gives success "once" within shorter ones,
too. "Macro" is the mean over the groups of difficulty, "tasks" the mean over the tasks; the two
differ, since 28 of the 50 tasks are easy. `scripts/bench/metaworld.sh` makes everything from the
demonstrations to this table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from sim.tasks.metaworld import DIFFICULTY

HORIZONS = (100, 400, 500)
"""Control steps within which papers count success."""

Outcomes = Mapping[str, np.ndarray]
"""Task → its episodes by column, bool [episodes, columns]: once within each horizon, at the end."""


@dataclass(frozen=True)
class TableConfig:
    """What is tabulated.

    Attributes:
        report: `report.json` that `vla evaluate` wrote for a suite.
    """

    report: Positional[Path]


def main(config: TableConfig) -> int:
    """Print a table for each policy of the report."""
    data = json.loads(config.report.read_text())
    for policy in data["policies"]:
        print(f"{policy['name']}:\n\n{table(outcomes(policy['episodes'], data['goals']))}")
    return 0


def outcomes(episodes: Iterable[Mapping[str, Any]], goals: Iterable[str]) -> Outcomes:
    """Sort a policy's episodes by task.

    Args:
        episodes: of the report.
        goals: "TASK, GROUP" of each.

    Raises:
        ValueError: they are of another family of tasks, or too short for the longest horizon.
    """
    found: dict[str, list[list[bool]]] = {}
    for episode, goal in zip(episodes, goals, strict=True):
        task = goal.partition(",")[0]
        if task not in DIFFICULTY:
            raise ValueError(f"the report is not of a suite of Meta-World: an episode is {goal!r}")
        if episode["length"] < HORIZONS[-1]:
            raise ValueError(
                f"an episode of {task} has {episode['length']} control steps: evaluate without "
                f"@STEPS, with {HORIZONS[-1]}"
            )
        first = episode["first_success_step"] or HORIZONS[-1] + 1
        row = [first <= horizon for horizon in HORIZONS]
        found.setdefault(task, []).append([*row, episode["success_at_end"]])
    if not found:
        raise ValueError("the report has no episodes of a suite")
    return {task: np.array(found[task]) for task in sorted(found)}


def table(found: Outcomes) -> str:
    """Markdown, in percent: a row a task, a row a group of tasks, and both means."""
    rates = {task: 100 * each.mean(0) for task, each in found.items()}  # [columns] each
    groups = {}
    for group in ("easy", "medium", "hard", "very hard"):
        if members := [rate for task, rate in rates.items() if DIFFICULTY[task] == group]:
            groups[group] = np.mean(members, axis=0)
    rows = [(task, DIFFICULTY[task], rate) for task, rate in rates.items()]
    rows += [("mean of the group", group, rate) for group, rate in groups.items()]
    rows.append(("macro", "all", np.mean([*groups.values()], axis=0)))
    rows.append(("tasks", "all", np.mean([*rates.values()], axis=0)))
    columns = (*(f"once within {horizon}" for horizon in HORIZONS), "at the end")
    lines = [f"| task | group | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    lines += [f"| {n} | {g} | {' | '.join(f'{x:.1f}' for x in rate)} |" for n, g, rate in rows]
    count = sum(map(len, found.values()))
    return "\n".join([*lines, "", f"{count} episodes of {len(found)} tasks; percent."]) + "\n"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(TableConfig)))
