"""A run folder that explains itself: configuration, commit, versions, metrics, checkpoints."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter
from vla_runtime.atomic_folder import write_atomically

from policies.folder_lock import lock_folder

# Those whose version can change a figure.
_PACKAGES = ("torch", "transformers", "mujoco", "gymnasium-robotics", "lerobot", "numpy")


class RunFolder:
    """Where one training writes, and no other process meanwhile. Nothing is written before `open`.

    Args:
        path: made by `open` if it is missing.
        config: a dataclass or plain data, written to `run.json` beside commit and versions.
        command: the shell line that repeats the run.
        origin: what else decides the result, such as the task and the checkpoint it starts from;
            a run is resumed only with the same (see `Checkpoints`).

    Raises:
        OSError: the folder cannot be made or written to.
        FolderInUseError: another process writes it.
    """

    def __init__(
        self,
        path: Path | str,
        config: Any,
        command: str | None = None,
        origin: Mapping[str, Any] | None = None,
    ):
        self.path, self.command = Path(path), command
        self.origin = dict(origin or {})
        # A copy: what is written is what the run was started with.
        self._config = plain(config)
        self._writer: SummaryWriter | None = None
        self._lock: TextIO | None = None
        require_writable(self.path)
        # At once where there is a folder: refused before data are read, not after.
        if self.path.is_dir():
            self._lock = lock_folder(self.path)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make the folder and write `run.json`, whole or not at all.

        Args:
            settings: what a resumed run is compared with, beside the command's configuration.

        Raises:
            FolderInUseError: another process has made the folder and writes it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = lock_folder(self.path)
        described = {"config": self._config, "command": self.command, **describe_machine()}
        text = json.dumps(described | {"settings": settings}, indent=2)
        write_atomically(self.path / "run.json", text)  # a kill leaves the file that was there
        _drop_unfinished_line(self.path / "metrics.jsonl")

    def settings(self) -> dict[str, Any] | None:
        """The settings that `open` last wrote to `run.json`; None where there are none.

        Raises:
            ValueError: `run.json` is not JSON.
        """
        file = self.path / "run.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8")).get("settings")
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON: {error}; choose another folder") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append scalars to the TensorBoard events and to `metrics.jsonl`, NaN and inf as null."""
        for name, value in values.items():
            self._events().add_scalar(name, value, step)
        # NaN and inf are no JSON; other programs would refuse the whole line.
        kept = {name: v if math.isfinite(v) else None for name, v in values.items()}
        # Appended, never rewritten: a kill costs at most the line that was being written.
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **kept}) + "\n")

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        """Append a distribution to the TensorBoard events."""
        self._events().add_histogram(name, values, step)

    def _events(self) -> SummaryWriter:
        if self._writer is None:
            # Made at the first entry: a writer creates its file at once, also for a refused run.
            self._writer = SummaryWriter(str(self.path), flush_secs=10)
        return self._writer

    def close(self) -> None:
        """Flush the events; other processes may write the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def describe_machine() -> dict[str, Any]:
    """Commit, versions and processor, so that a figure can be traced; None or absent if unknown."""
    return {
        "git_commit": _git_commit(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    # What only some commands need may be missing where they are not used.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Of this code, "-dirty" where it was changed; None without git, or outside a repository."""
    here = Path(__file__)
    # An installed package may lie inside another project's repository, whose commit says nothing
    # about it: only a repository that tracks this file describes it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """What git answers in this folder; None where it fails or there is none that can be run."""
    try:
        found = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def plain(data: Any) -> Any:
    """Dataclasses, tuples and paths as the plain data that JSON gives back."""
    # Through JSON and back, so that tuples and paths compare equal to what was read.
    data = asdict(data) if is_dataclass(data) and not isinstance(data, type) else data
    return json.loads(json.dumps(data, default=str))


def _drop_unfinished_line(file: Path) -> None:
    """Cut what follows the last newline, which a kill has cut short.

    The next line would stick to it, and a damaged line in the middle makes the file unreadable.
    """
    if not file.exists():
        return
    with file.open("r+b") as lines:
        lines.truncate(lines.read().rfind(b"\n") + 1)


def require_writable(path: Path) -> None:
    """Refuse a folder that cannot be written before hours are spent on what it should hold.

    Raises:
        OSError: it is a file, or below one, or there is no permission.
    """
    # The nearest folder that exists: `open` makes those below it.
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {path}: no permission in {place}")
