"""Which of two segments is better, on disk: episodes, and one line for every judgement.

    settings.json                 task, contract, names of the privileged state, exploration
    trajectories/<name>.safetensors
    comparisons.jsonl             appended to, never rewritten

A judgement is on disk before the next question is asked; a line that a crash has cut short was
never acknowledged, and is dropped when the folder is next opened for writing.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from vla_runtime.atomic_folder import write_atomically

from policies.folder_lock import lock_folder
from policies.preferences.trajectories import Trajectory
from policies.run_folder import plain
from vla.contract import RobotSpec

LABELS = (1.0, 0.5, 0.0, None)
"""The first is better, both are equally good, the second is better, nobody can tell."""


class ComparisonError(ValueError):
    """Comparisons are missing, damaged, or of something else than what they are asked for."""


@dataclass(frozen=True)
class Segment:
    """Chunks `start` to `stop` - 1 of a trajectory."""

    trajectory: str
    start: int
    stop: int


@dataclass(frozen=True)
class Pair:
    """Two segments, to be compared."""

    first: Segment
    second: Segment


@dataclass(frozen=True)
class Comparison:
    """A judgement.

    Attributes:
        pair: what was compared.
        label: one of `LABELS`.
        judge: who judged.
    """

    pair: Pair
    label: float | None
    judge: str

    @property
    def told(self) -> bool:
        """Whether one of the two is better."""
        return self.label in (0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self.pair), "label": self.label, "judge": self.judge}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: something is missing, or is no label.
        """
        if data["label"] not in LABELS:
            raise ValueError(f"{data['label']!r} is none of the labels {LABELS}")
        pair = Pair(Segment(**data["first"]), Segment(**data["second"]))
        return cls(pair, data["label"], str(data["judge"]))


def require_told(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those that prefer one of the two.

    Raises:
        ComparisonError: there are none.
    """
    if told := [comparison for comparison in comparisons if comparison.told]:
        return told
    raise ComparisonError(
        f"none of {len(comparisons)} comparisons prefers one: nothing is learned from ties; "
        "compare more states, or policies that differ more"
    )


class ComparisonStore:
    """A folder of comparisons; see the module.

    Args:
        folder: made by `create`.

    Attributes:
        settings: what all of it was recorded under.

    Raises:
        ComparisonError: there are no comparisons, or they are damaged; names the line.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ComparisonError(
                f"{folder} holds no comparisons: record some with `vla compare --out "
                f"{shlex.quote(str(folder))}`"
            ) from error
        self._lock: TextIO | None = None
        self.comparisons = self._read()

    @classmethod
    def create(cls, folder: Path, task: str, spec: RobotSpec, **others: Any) -> ComparisonStore:
        """Open a folder for writing, which no other process may meanwhile; make it if need be.

        Args:
            folder: where.
            task: that is played.
            spec: the environment's contract.
            others: further settings that must be equal for all of it.

        Raises:
            ComparisonError: the folder was recorded under other settings; lists them.
            FolderInUseError: another process writes it.
        """
        settings = plain({"task": task, "contract": spec.to_dict(), **others})
        folder.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if found and "settings.json" not in found:
            raise ComparisonError(f"{folder} holds something else: choose another folder")
        lock = lock_folder(folder)
        if not found:
            write_atomically(folder / "settings.json", json.dumps(settings, indent=1))
        (folder / "trajectories").mkdir(exist_ok=True)
        store = cls(folder)
        store._lock = lock
        if store.settings != settings:
            differing = [
                f"{name}: {store.settings.get(name)} recorded, {settings.get(name)} now"
                for name in dict.fromkeys([*store.settings, *settings])
                if store.settings.get(name) != settings.get(name)
            ]
            store.close()
            listed = "\n  ".join(
                line if len(line) < 200 else f"{line[:197]}..." for line in differing
            )
            raise ComparisonError(
                f"{folder} was recorded under other settings; nothing was written. Use these, or "
                f"another folder:\n  {listed}"
            )
        store._drop_unfinished()
        return store

    def close(self) -> None:
        """Let other processes write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def require_task(self, task: str) -> None:
        """Refuse comparisons of another task, or none.

        Raises:
            ComparisonError: names both tasks, or says how to go on.
        """
        if (ours := self.settings["task"]) != task:
            raise ComparisonError(f"{self.folder} holds comparisons of {ours}, not of {task}")
        if not self.comparisons:
            raise ComparisonError(
                f"{self.folder} holds {len(self.names())} episodes and no judgement of them: go on "
                f"with `vla compare --out {shlex.quote(str(self.folder))}`"
            )

    def names(self) -> list[str]:
        """Of all trajectories, sorted."""
        return sorted(path.stem for path in (self.folder / "trajectories").glob("*.safetensors"))

    def path(self, name: str) -> Path:
        """Where a trajectory lies or will lie."""
        return self.folder / "trajectories" / f"{name}.safetensors"

    def load(self, names: Iterable[str]) -> dict[str, Trajectory]:
        """Trajectories by name.

        Raises:
            ComparisonError: one is missing.
            ValueError: one is damaged.
        """
        wanted = list(dict.fromkeys(names))
        if missing := [name for name in wanted if not self.path(name).is_file()]:
            raise ComparisonError(f"{self.folder} lacks the trajectories {missing[:3]}")
        return {name: Trajectory.load(self.path(name)) for name in wanted}

    def append(self, comparison: Comparison) -> None:
        """Keep a judgement: it is on disk when this returns."""
        with self._file.open("ab") as file:
            file.write(json.dumps(comparison.to_dict()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.comparisons.append(comparison)

    def judged(self, judge: str) -> set[Pair]:
        """What this judge has answered, also where it could not tell."""
        return {c.pair for c in self.comparisons if c.judge == judge}

    def export(self, path: Path) -> None:
        """Write all judgements as one table, to a .json or .parquet file.

        Raises:
            ComparisonError: neither of the two.
        """
        rows = [
            {
                f"{side}_{key}": value
                for side in ("first", "second")
                for key, value in c[side].items()
            }
            | {"label": c["label"], "judge": c["judge"], "task": self.settings["task"]}
            for c in (comparison.to_dict() for comparison in self.comparisons)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            write_atomically(path, json.dumps(rows, indent=1))
        elif path.suffix == ".parquet":
            unfinished = path.with_name(f".{path.name}.part")
            pq.write_table(pa.Table.from_pylist(rows), unfinished)
            unfinished.replace(path)
        else:
            raise ComparisonError(f"comparisons are exported to .json or .parquet, not to {path}")

    @cached_property
    def _file(self) -> Path:
        return self.folder / "comparisons.jsonl"

    def _read(self) -> list[Comparison]:
        # What follows the last newline was cut short by a crash, or is being written.
        text = self._file.read_bytes() if self._file.exists() else b""
        comparisons = []
        for number, line in enumerate(text.split(b"\n")[:-1], start=1):
            try:
                comparisons.append(Comparison.from_dict(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ComparisonError(f"{self._file}, line {number} is damaged: {error}") from error
        return comparisons

    def _drop_unfinished(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
