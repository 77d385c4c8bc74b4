"""What a task's class states, checked when it is built: before anything is played or recorded."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from sim.tasks.base import Task, TaskDeclarationError


def require_tuple(owner: str, name: str, value: Any) -> None:
    """Refuse one entry where a tuple of entries belongs: a text would be taken letter by letter.

    Raises:
        TaskDeclarationError: it is no tuple (or list).
    """
    if not isinstance(value, tuple | list):
        raise TaskDeclarationError(
            f"{owner}: {name} is {value!r}, not a tuple; one of a single entry ends with a comma, "
            "as in (entry,)"
        )


def require_sound(task: Task) -> None:
    """Refuse a task that states what it cannot mean.

    Raises:
        TaskDeclarationError: naming what is wrong, and what is valid.
    """
    _require_words(task)
    name, rate_hz = task.name, task.spec.control_rate_hz
    if not isinstance(task.episode_length, int) or task.episode_length < 1:
        raise TaskDeclarationError(
            f"{name}: episode_length is {task.episode_length}, and an episode has at least 1 step"
        )
    if not 0 < rate_hz < math.inf:
        raise TaskDeclarationError(
            f"{name}: control_rate_hz is {rate_hz}, and has to be a number above 0"
        )
    cameras = [camera.name for camera in task.spec.cameras]
    for what, names in (("cameras", cameras), ("privileged state", task.privileged_names)):
        if twice := [one for one, count in Counter(names).items() if count > 1]:
            raise TaskDeclarationError(f"{name}: two of {what} have one name: {twice}")
    actions = task.spec.action.names
    _require_known(name, "rest_action", task.rest_action, "action", actions)
    _require_known(name, "grip_actions", task.grip_actions, "action", actions)
    if task.goals is not None:
        named = (*task.goals.achieved, *task.goals.goal)
        _require_known(name, "goals", named, "privileged state", task.privileged_names)


def _require_words(task: Task) -> None:
    for phrasing in ("train", "heldout"):
        said = getattr(task, "templates", {}).get(phrasing)
        if not said:
            raise TaskDeclarationError(f"{task.name}: templates have no instruction for {phrasing}")
        require_tuple(task.name, f"templates[{phrasing!r}]", said)
        if not all(isinstance(text, str) and text.strip() for text in said):
            raise TaskDeclarationError(f"{task.name}: a template of {phrasing} is no text: {said}")


def _require_known(task: str, label: str, names: Any, what: str, known: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise TaskDeclarationError(
            f"{task}: {label} names {unknown}, which the {what} does not have; it has {[*known]}"
        )


def require_action(task: Task, action: Any) -> np.ndarray:
    """An expert's action as it is, float [action.dim].

    Raises:
        TaskDeclarationError: it has another shape, or holds a NaN: that would be recorded, and
            MuJoCo would let go of everything and only warn.
    """
    array, names = np.asarray(action), task.spec.action.names
    if array.shape != (len(names),):
        raise TaskDeclarationError(
            f"{task.name}: expert_action gives shape {array.shape}, and an action has "
            f"{len(names)} numbers: {[*names]}"
        )
    require_finite(task, "expert_action", names, array)
    return array


def require_finite(task: Task, what: str, names: tuple[str, ...], numbers: np.ndarray) -> None:
    """Refuse a NaN or an infinity.

    Raises:
        TaskDeclarationError: naming the dimensions.
    """
    if not np.isfinite(numbers).all():
        bad = [name for name, number in zip(names, numbers, strict=True) if not np.isfinite(number)]
        raise TaskDeclarationError(f"{task.name}: {what} is not finite in {bad}")
