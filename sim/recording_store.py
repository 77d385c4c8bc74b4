"""The folder that a recording fills: LeRobot's files, a journal, and what is not yet written."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vla_runtime.atomic_folder import write_atomically
from vla_runtime.dataset_files import (
    add_episodes,
    finish_interrupted,
    recording_lock,
    robot_features,
    vector_feature,
)

from sim.demonstrate import read_spool_name, spool_name
from sim.tasks.base import Task
from vla.contract import RobotSpec
from vla.data.dataset_info import POINT

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

_LOG = logging.getLogger(__name__)

EpisodeKey = tuple[str, int]
"""Task name and seed."""


class RecordingStore:
    """Outcomes of episodes, and the one writer of the data set.

    Attributes:
        episodes: what the data set holds, in its order.
        failed: episodes that were played and dropped.
        succeeded: episodes that were played and kept, written or still in the spool.
        frames: frames in the data set.
        spool: where workers leave finished episodes.
    """

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, object],
        tasks: Sequence[Task],
        points: Sequence[str],
    ):
        self._root = root
        self._points = list(points)
        self._settings = dict(settings)
        self._spec = tasks[0].spec
        self._privileged_names = list(tasks[0].privileged_names)
        self._work = root / ".recording"
        self.spool = self._work / "spool"
        self.episodes: list[EpisodeKey] = []
        self.failed: set[EpisodeKey] = set()
        self.succeeded: set[EpisodeKey] = set()
        self.frames = 0

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        root: Path,
        settings: Mapping[str, object],
        tasks: Sequence[Task],
        points: Sequence[str] = (),
    ) -> Iterator[RecordingStore]:
        """Create or reopen a recording, for this process alone.

        Args:
            root: of the data set.
            settings: what must be equal to continue it.
            tasks: that it holds episodes of.
            points: names of those whose positions every episode brings, as `points.<name>`. A
                recording that was begun before there were such columns goes on without them.

        Raises:
            ValueError: `root` holds something else, other settings or another contract, or the
                tasks do not fit into one data set.
            BlockingIOError: another process records there.
        """
        _require_one_contract(tasks)
        if root.is_dir() and any(root.iterdir()) and not (root / ".recording").is_dir():
            raise ValueError(
                f"{root} exists and is no recording of ours; choose another --root or move it away"
            )
        store = cls(root, settings, tasks, points)
        store.spool.mkdir(parents=True, exist_ok=True)
        with recording_lock(root, store._work):
            store._recover()
            yield store

    def register(self, key: EpisodeKey, succeeded: bool) -> None:
        """Register an episode that a worker has left in the spool."""
        (self.succeeded if succeeded else self.failed).add(key)

    def write(self, keys: Sequence[EpisodeKey]) -> None:
        """Append spooled episodes to the data set; it is readable before and after."""
        if not keys:
            return
        features = _features(self._spec, self._privileged_names, self._points)

        def add(writer: LeRobotDataset, meta: Path) -> None:
            for key in keys:
                with np.load(self._spooled(key), allow_pickle=False) as arrays:
                    _add_episode(writer, dict(arrays), self._points)
            self._describe(meta, keys)

        add_episodes(self._root, self._work, self._spec, features, add)
        self._read_journal()
        self._clean_spool()  # also the failures' marks: the journal has all that were registered

    def _describe(self, meta: Path, keys: Sequence[EpisodeKey]) -> None:
        """Put our own metadata, with `keys` added, beside LeRobot's."""
        journal = {
            "settings": self._settings,
            "privileged_names": self._privileged_names,
            "episodes": [*self.episodes, *keys],
            "failed": sorted(self.failed),
        }
        (meta / "recording.json").write_text(json.dumps(journal, indent=1))
        contract = json.dumps(self._spec.to_dict(), indent=1)
        (meta / "contract.json").write_text(contract)

    def _recover(self) -> None:
        """Finish or undo what an earlier process left half done, then load the outcomes."""
        finish_interrupted(self._root, self._work)
        self._read_journal()
        self._clean_spool()
        # Only here, where no worker writes yet: it would miss its file when it renames it.
        for path in self.spool.glob("*.tmp"):
            path.unlink()
        for path in self.spool.iterdir():
            self.register(read_spool_name(path), succeeded=path.suffix == ".npz")
        settings = self._work / "settings.json"
        if self.succeeded or self.failed:
            recorded = json.loads(settings.read_text())
            if self._points and "points" not in recorded:
                _LOG.warning(
                    "%s was begun without positions of things and goes on without them; with "
                    "another --root they are recorded",
                    self._root,
                )
                self._points = []
            self._require_equal_settings(recorded)
        else:  # nothing was recorded yet, so there is nothing to differ from
            write_atomically(settings, json.dumps(self._stamp(), indent=1))

    def _stamp(self) -> dict[str, Any]:
        stamp = {
            "settings": self._settings,
            "contract": self._spec.to_dict(),
            "privileged_names": self._privileged_names,
            "points": self._points,
        }
        return json.loads(json.dumps(stamp))  # tuples become lists, as they do in the file

    def _require_equal_settings(self, recorded: dict[str, Any]) -> None:
        ours = self._stamp()
        differences = [
            f"{key}: {recorded['settings'].get(key)} recorded, {value} asked for"
            for key, value in ours["settings"].items()
            if recorded["settings"].get(key) != value
        ]
        differences += RobotSpec.from_dict(recorded["contract"]).differences(self._spec)
        if recorded["privileged_names"] != ours["privileged_names"]:
            differences.append("privileged state has other dimensions")
        if (there := recorded.get("points", [])) != self._points:
            differences.append(f"points: {there} recorded, {self._points} now")
        if differences:
            listed = "\n  ".join(differences)
            raise ValueError(
                f"{self._root} was recorded with other settings:\n  {listed}\n"
                "Use the recorded ones to continue it, or choose another --root"
            )

    def _read_journal(self) -> None:
        meta = self._root / "meta"
        if not (meta / "recording.json").exists():
            return
        journal = json.loads((meta / "recording.json").read_text())
        self.episodes = [(name, seed) for name, seed in journal["episodes"]]
        self.failed |= {(name, seed) for name, seed in journal["failed"]}
        self.succeeded |= set(self.episodes)
        self.frames = json.loads((meta / "info.json").read_text())["total_frames"]

    def _clean_spool(self) -> None:
        written = {self._spooled(key) for key in self.episodes}
        written |= {self._spooled(key, ".failed") for key in self.failed}
        for path in self.spool.iterdir():
            if path in written:
                path.unlink()

    def _spooled(self, key: EpisodeKey, suffix: str = ".npz") -> Path:
        return self.spool / spool_name(*key, suffix)


def _require_one_contract(tasks: Sequence[Task]) -> None:
    first, *others = tasks
    for task in others:
        first.spec.require_match(task.spec, f"task {first.name}", f"task {task.name}")
        if task.privileged_names != first.privileged_names:
            raise ValueError(
                f"{first.name} and {task.name} have different privileged state "
                f"({first.privileged_names}, {task.privileged_names}); record them into separate "
                "folders, which training can open together"
            )


def _features(
    spec: RobotSpec, privileged_names: Sequence[str], points: Sequence[str]
) -> dict[str, dict[str, Any]]:
    # LeRobot gives a policy every `observation.*` and trains on every `action*`; the names of what
    # neither may see begin otherwise.
    return robot_features(spec) | {
        "executed.action": vector_feature(spec.action.names),
        "privileged.state": vector_feature(privileged_names),
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        **{POINT + name: vector_feature(("x", "y", "z")) for name in points},
    }


def _add_episode(
    writer: LeRobotDataset, arrays: dict[str, np.ndarray], points: Sequence[str]
) -> None:
    names = {
        "proprio": "observation.state",
        "action": "action",
        "executed": "executed.action",
        "privileged": "privileged.state",
        **{POINT + name: POINT + name for name in points},
    }
    names |= {
        key: f"observation.images.{key.removeprefix('image.')}"
        for key in arrays
        if key.startswith("image.")
    }
    instruction = str(arrays["instruction"])
    for step in range(len(arrays["action"])):
        frame: dict[str, Any] = {name: arrays[key][step] for key, name in names.items()}
        success = arrays["success"][step : step + 1]
        writer.add_frame(frame | {"next.success": success, "task": instruction})
    writer.save_episode()
