"""A run folder that explains itself: configuration, commit, versions, metrics, checkpoints."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

_PACKAGES = ("torch", "transformers", "mujoco", "gymnasium-robotics", "lerobot", "numpy")


class RunFolder:
    """Where one training writes; reopening it goes on where it stopped.

    Args:
        path: made if missing.
        config: a dataclass or plain data, written to `run.json` beside commit and versions.
        command: the shell line that repeats the run.
    """

    def __init__(self, path: Path | str, config: Any, command: str | None = None):
        self.path, self.command = Path(path), command
        self.path.mkdir(parents=True, exist_ok=True)
        described = {"config": _plain(config), "command": command, **describe_machine()}
        (self.path / "run.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
        self._writer: SummaryWriter | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append scalars to the TensorBoard events and to `metrics.jsonl`."""
        for name, value in values.items():
            self._events().add_scalar(name, value, step)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        """Append a distribution to the TensorBoard events."""
        self._events().add_histogram(name, values, step)

    def _events(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(str(self.path), flush_secs=10)
        return self._writer

    def close(self) -> None:
        """Flush the events."""
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


def _plain(config: Any) -> Any:
    data = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    return json.loads(json.dumps(data, default=str))
