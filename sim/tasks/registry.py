"""Task names and the classes behind them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points

from sim.tasks import fetch, tabletop
from sim.tasks.base import Task

ENTRY_POINTS = "vla_sim.tasks"
"""Entry point group in which other packages name their tasks, one line each in pyproject.toml."""


def index_by_name(classes: Iterable[type[Task]]) -> dict[str, type[Task]]:
    """Registry name → class.

    Raises:
        ValueError: two classes claim one name.
    """
    registry: dict[str, type[Task]] = {}
    for cls in classes:
        if cls.name in registry:
            raise ValueError(f"task name {cls.name!r} is claimed by {registry[cls.name]} and {cls}")
        registry[cls.name] = cls
    return registry


# Worker processes import this module, too, so a task that stands here or is an entry point is known
# to all of them.
TASKS = index_by_name(
    (
        *fetch.TASKS,
        *tabletop.TASKS,
        # a new family: one more line here, `*family.TASKS,`
        *(point.load() for point in entry_points(group=ENTRY_POINTS)),
    )
)


def make_task(name: str, image_size: int = 96) -> Task:
    """Build a task by its registry name, with square images of `image_size` pixels.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; valid names: {', '.join(sorted(TASKS))}")
    return TASKS[name](image_size)
