"""What a run logged, read back from its TensorBoard files, and the order in which to show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.evaluation.report.data import Curve, Distribution

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


# Symmetric around the median, which `distribution_chart` takes from the middle.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Log:
    """What a run logged, by tag."""

    curves: dict[str, Curve]
    distributions: dict[str, Distribution]


def read_log(folder: Path) -> Log:
    """Every scalar and histogram of a run folder; empty where nothing was logged.

    It is empty without tensorboard too: a report can do without its charts. A run that was resumed
    has several event files: they are merged, and where two wrote the same step the later one
    counts.
    """
    scalars: dict[str, dict[int, float]] = {}
    histograms: dict[str, dict[int, np.ndarray]] = {}
    # Not those of folders in it, which may be other runs: steps of one would overwrite another's.
    # By time of writing: a later file overwrites the steps that a resumed run repeats.
    files = sorted(folder.glob("*tfevents*"), key=lambda path: (path.stat().st_mtime, path.name))
    try:
        # Imported here: it takes a second, and a report without curves needs none of it.
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return Log({}, {})
    for path in files:
        # 0 keeps every event; by default histograms are thinned out to one.
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "histograms": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                scalars.setdefault(tag, {})[event.step] = event.value
        for tag in events.Tags()["histograms"]:
            for event in events.Histograms(tag):
                found = quantiles(event.histogram_value)
                histograms.setdefault(tag, {})[event.step] = found
    return Log(
        curves={
            tag: Curve(*map(list, zip(*sorted(points.items()), strict=True)))
            for tag, points in scalars.items()
        },
        distributions={tag: _distribution(points) for tag, points in histograms.items()},
    )


def quantiles(histogram: Any) -> np.ndarray:
    """Values at the levels `QUANTILES` of a TensorBoard histogram, linear inside its buckets."""
    counts = np.concatenate([[0.0], np.asarray(histogram.bucket, dtype=float)])
    limits = np.asarray(histogram.bucket_limit, dtype=float)
    # The outermost buckets reach to infinity; the smallest and largest value bound them.
    edges = np.clip(np.concatenate([[histogram.min], limits]), histogram.min, histogram.max)
    # Cumulative share at each edge, [buckets + 1].
    shares = np.cumsum(counts) / max(counts.sum(), 1.0)
    return np.interp(QUANTILES, shares, edges)


def _distribution(points: dict[int, np.ndarray]) -> Distribution:
    steps = sorted(points)
    # [quantiles, steps]
    values = np.stack([points[step] for step in steps], axis=1)
    return Distribution(steps, {level: values[row].tolist() for row, level in enumerate(QUANTILES)})


def charts(tags: Iterable[str]) -> list[list[str]]:
    """Which tags share a chart, in the order of reading.

    A critic's predicted and actual values share one: tags of one group whose names begin with
    "predicted_" and "actual_".
    """
    groups: dict[str, list[str]] = {}
    # Both are drawn otherwise: as a plot of calibration, and as a distribution.
    shown = (tag for tag in tags if not tag.startswith(("calibration/", "advantage/q")))
    for tag in sorted(shown, key=lambda tag: (_rank(tag), tag)):
        groups.setdefault(re.sub(r"(predicted|actual)_\w+$", "", tag), []).append(tag)
    return list(groups.values())


def _rank(tag: str) -> int:
    return next((i for i, word in enumerate(ORDER) if word in tag.lower()), len(ORDER))
