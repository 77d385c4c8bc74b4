"""Refuse foreign checkpoint files that could execute code, before LeRobot reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla.checkpoint.lerobot_files import POSTPROCESSOR, PREPROCESSOR

ALLOWED_STEPS = frozenset(
    {
        "absolute_actions_processor",
        "device_processor",
        "normalizer_processor",
        "pi0_new_line_processor",
        "relative_actions_processor",
        "rename_observations_processor",
        "smolvla_new_line_processor",
        "to_batch_processor",
        "tokenizer_processor",
        "unnormalizer_processor",
    }
)
"""Steps of LeRobot that compute with what the file holds and import nothing that it names."""


class UnsafeFileError(ValueError):
    """A processor file asks for more than known steps; nothing of it has been executed."""


def read_pipelines(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The steps of both pipelines, checked.

    LeRobot imports whatever module a step's "class" names, which is any code on this machine.

    Raises:
        FileNotFoundError: a pipeline is missing.
        UnsafeFileError: a step names a class, or is none of `ALLOWED_STEPS`.
    """
    pipelines = {}
    # Both before either is used: nothing of a refused folder may have run.
    for name in (PREPROCESSOR, POSTPROCESSOR):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {path.name}: it is no LeRobot checkpoint")
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        for number, step in enumerate(steps):
            # A list of what is allowed, since a new version of LeRobot may add steps that import
            # code.
            if step.get("registry_name") not in ALLOWED_STEPS or "class" in step:
                named = step.get("class") or step.get("registry_name")
                raise UnsafeFileError(
                    f"step {number} of {path} is {named!r}, which could execute code; allowed are "
                    f"{sorted(ALLOWED_STEPS)}"
                )
        pipelines[name] = steps
    return pipelines


def require_safe_pipelines(folder: Path) -> None:
    """See `read_pipelines`; a folder without pipelines is safe."""
    if any((folder / f"{name}.json").is_file() for name in (PREPROCESSOR, POSTPROCESSOR)):
        read_pipelines(folder)
