"""What a run logged and with which settings, read back from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALIBRATION_BINS = 5
"""Groups of macro-steps by what the critic predicted, whose means are logged."""


@dataclass(frozen=True)
class RunMetrics:
    """A run's scalars and settings.

    Attributes:
        series: name → step → value; NaN where a value was not finite.
        settings: as in `run.json`, by path such as "training.iterations"; see `setting`.
    """

    series: Mapping[str, Mapping[int, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunMetrics:
        """Read `metrics.jsonl` and `run.json` of a run folder.

        A resumed run logs the steps after its last checkpoint again: the later line counts.

        Raises:
            FileNotFoundError: the folder holds no metrics.
            ValueError: a file is damaged; the message names it and the line.
        """
        file = folder / "metrics.jsonl"
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} holds no metrics.jsonl: give a run folder of vla refine or vla pretrain,"
                " such as runs/FetchPush/refined"
            )
        series: dict[str, dict[int, float]] = {}
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                step = int(row.pop("step"))
                # A number that was not finite was written as null.
                values = {k: math.nan if v is None else float(v) for k, v in row.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # A kill can cut the line that was being written, which is the last one.
                if number == len(lines):
                    break
                raise ValueError(
                    f"{file}, line {number}, is no line of metrics: {error}"
                ) from error
            for name, value in values.items():
                series.setdefault(name, {})[step] = value
        return cls(series, _settings(folder))

    @property
    def is_off_policy(self) -> bool:
        """Whether it learned from a replay buffer; its "temperature" then weighs the entropy."""
        return "replay/steps" in self.series

    def values(self, name: str) -> list[float]:
        """A metric's values by ascending step; empty where it was not logged."""
        points = self.series.get(name, {})
        return [points[step] for step in sorted(points)]

    def last(self, name: str) -> float | None:
        """The newest value; None where there is none."""
        values = self.values(name)
        return values[-1] if values else None

    def late(self, name: str) -> float | None:
        """The mean of the last quarter of the finite values; None where there is none."""
        values = [value for value in self.values(name) if math.isfinite(value)]
        return _mean(values[-max(1, len(values) // 4) :]) if values else None

    def mean(self, name: str) -> float | None:
        """The mean of the finite values; None where there is none."""
        values = [value for value in self.values(name) if math.isfinite(value)]
        return _mean(values) if values else None

    def calibration(self) -> tuple[tuple[float, float], ...]:
        """Mean predicted and mean actual return of each group, by ascending prediction.

        Of the newest iteration, groups of equal size; empty without a critic.
        """
        pairs = []
        for group in range(1, CALIBRATION_BINS + 1):
            predicted = self.last(f"calibration/predicted_{group}")
            actual = self.last(f"calibration/actual_{group}")
            if predicted is not None and actual is not None:
                pairs.append((predicted, actual))
        return tuple(pairs)

    def setting(self, path: str) -> Any:
        """A setting by its path; None where it is not there."""
        value: Any = self.settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / "run.json"
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8")).get("settings")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    return settings if isinstance(settings, Mapping) else {}
