"""What a run logged, read back from its TensorBoard files, and the order in which to show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from policies.report.data import Curve

# A reader asks in this order; a tag that holds none of these words comes last.
ORDER = (
    "success",
    "return",
    "reward",
    "kl",
    "entropy",
    "clip",
    "ratio",
    "explained",
    "value",
    "critic",
    "advantage",
    "grad",
    "loss",
    "learning_rate",
)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Every scalar below a run folder, tag → curve; empty where nothing was logged.

    A run that was resumed has several event files: they are merged, and where two wrote the same
    step the later one counts.
    """
    # Imported here: tensorboard takes a second, and a report without curves needs none of it.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged: dict[str, dict[int, float]] = {}
    files = sorted(folder.rglob("*tfevents*"), key=lambda path: (path.stat().st_mtime, path.name))
    for path in files:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = logged.setdefault(tag, {})
            points.update((event.step, event.value) for event in events.Scalars(tag))
    return {
        tag: Curve(*map(list, zip(*sorted(points.items()), strict=True)))
        for tag, points in logged.items()
    }


def charts(tags: Iterable[str]) -> list[list[str]]:
    """Which tags share a chart, in the order of reading.

    Tags that differ only in the words "predicted" and "actual" belong together: what the critic
    promised and what came.
    """
    groups: dict[str, list[str]] = {}
    for tag in sorted(tags, key=lambda tag: (_rank(tag), tag)):
        groups.setdefault(re.sub("predicted|actual", "", tag), []).append(tag)
    return list(groups.values())


def _rank(tag: str) -> int:
    return next((i for i, word in enumerate(ORDER) if word in tag.lower()), len(ORDER))
