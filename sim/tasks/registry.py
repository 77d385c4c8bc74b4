"""Task names, and what stands behind them.

A name is `NAME` or, of a family, `NAME/VARIANT`; a task that is not registered is named by where
its class stands, `my_package.my_task:MyTask`. `@STEPS` after any of them is another episode length:
`MetaWorld/MT10@400`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from sim.tasks import adroit, fetch, kitchen, metaworld, point_maze, shadow_hand, tabletop
from sim.tasks.base import Task, TaskDeclarationError
from sim.tasks.declaration import require_sound

ENTRY_POINTS = "vla_sim.tasks"
"""Entry point group in which other packages name their tasks, one line each in pyproject.toml."""


def index_by_name(classes: Iterable[type[Task]]) -> dict[str, type[Task]]:
    """Registry name → class.

    Raises:
        ValueError: two classes claim one name, or a name could not be asked for.
    """
    registry: dict[str, type[Task]] = {}
    for cls in classes:
        name = getattr(cls, "name", "")
        if not name or any(mark in name for mark in "/:@"):
            raise ValueError(
                f"{cls} has the task name {name!r}; a name is needed, without / : and @, which "
                "stand for a variant, a module and a length"
            )
        if name in registry:
            raise ValueError(
                f"task name {name!r} is claimed by {registry[name]} and {cls}: rename yours, or "
                "uninstall one of their packages"
            )
        registry[name] = cls
    return registry


def _require_task(found: Any, what: str) -> type[Task]:
    if not (inspect.isclass(found) and issubclass(found, Task)):
        raise TaskDeclarationError(f"{what} is no class derived from sim.tasks.base.Task")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise TaskDeclarationError(f"{what} is abstract: the class lacks {lacking}")
    return found


def load_entry_point(point: EntryPoint) -> type[Task]:
    """The task of another package.

    Raises:
        TaskDeclarationError: it cannot be imported, or is no task; names the package.
    """
    whose = f"the package {point.dist.name}" if point.dist else "a package"
    try:
        found = point.load()
    except Exception as error:
        # Left out in silence its tasks would be missing, and nobody would know why.
        raise TaskDeclarationError(
            f"{whose} names a task that cannot be imported, {point.value} "
            f"({type(error).__name__}: {error}): mend or uninstall it"
        ) from error
    return _require_task(found, f"{whose} names {point.value}, which")


# Worker processes import this module, too, so a task that stands here or is an entry point is known
# to all of them.
TASKS = index_by_name(
    (
        *fetch.TASKS,
        *tabletop.TASKS,
        *metaworld.TASKS,
        *kitchen.TASKS,
        *adroit.TASKS,
        *shadow_hand.TASKS,
        *point_maze.TASKS,
        # a new family: one more line here, `*family.TASKS,`
        *(load_entry_point(point) for point in entry_points(group=ENTRY_POINTS)),
    )
)


@dataclass(frozen=True)
class TaskChoice:
    """A task that was named, not yet built; it can be sent to a process.

    Attributes:
        name: as it was given.
        task: the class.
        variant: of a family; "" where there are none.
        episode_length: control steps, where another one than the class's was asked for.
    """

    name: str
    task: type[Task]
    variant: str = ""
    episode_length: int | None = None

    def make(self, image_size: int = 96) -> Task:
        """Build it, with square images of `image_size` pixels.

        Raises:
            TaskDeclarationError: the class states what it cannot mean.
        """
        # Only families take a variant, which `Task.__init__` does not know.
        build = cast(Callable[..., Task], self.task)
        made = build(image_size, self.variant) if self.variant else build(image_size)
        made.name = self.name
        if self.episode_length is not None:
            made.episode_length = self.episode_length
        require_sound(made)
        return made


def find_task(name: str) -> TaskChoice:
    """What a name stands for.

    Raises:
        ValueError: unknown name, variant or length; the message lists the valid ones.
    """
    base, at, steps = name.partition("@")
    if at and not (steps.isdecimal() and int(steps) > 0):
        raise ValueError(f"task {name!r}: after @ comes the number of control steps, as in @100")
    place, _, variant = base.partition("/")
    task = _import(place) if ":" in place else TASKS.get(place)
    if task is None:
        raise ValueError(
            f"unknown task {name!r}; valid names: {', '.join(sorted(_shown_names()))}; a task of "
            "yours is named by where its class stands, as in my_package.my_task:MyTask"
        )
    if variant not in (task.variants or ("",)):
        valid = ", ".join(f"{place}/{one}" for one in task.variants) or place
        raise ValueError(f"unknown task {name!r}; valid names: {valid}")
    return TaskChoice(name, task, variant, int(steps) if at else None)


def groundable_names() -> tuple[str, ...]:
    """Registered tasks whose points grounding can learn to find."""
    return tuple(n for n, task in TASKS.items() if task.can_be_grounded() and not task.variants)


def example_names() -> tuple[str, ...]:
    """Every registered task, and the first variant of every family."""
    return tuple(f"{n}/{task.variants[0]}" if task.variants else n for n, task in TASKS.items())


def make_task(name: str, image_size: int = 96) -> Task:
    """Build a task by its name, with square images of `image_size` pixels.

    Raises:
        ValueError: see `find_task`.
    """
    return find_task(name).make(image_size)


def member_names(name: str) -> tuple[str, ...]:
    """The names of the tasks that a name stands for, several of a suite such as MetaWorld/MT10."""
    choice = find_task(name)
    family, slash, variant_and_length = name.partition("/")
    _, at, steps = variant_and_length.partition("@")
    if not slash:
        return (name,)
    return tuple(f"{family}/{one}{at}{steps}" for one in choice.task.members(choice.variant))


def short_name(name: str) -> str:
    """The name as that of a folder: without the module that the class stands in."""
    return name.rpartition(":")[2]


def _shown_names() -> list[str]:
    return [f"{name}/..." if task.variants else name for name, task in TASKS.items()]


def _import(place: str) -> type[Task]:
    """The class at `module:Class`."""
    module, _, cls = place.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise TaskDeclarationError(
            f"task {place!r}: {module!r} is no module's name; a task of yours is named as in "
            "my_package.my_task:MyTask"
        )
    # An installed command does not look into the folder that it is called from.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ModuleNotFoundError as error:
        # A package that the module itself asks for is named as it is.
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise TaskDeclarationError(
            f"task {place!r}: there is no module {error.name!r}; install its package, or call the "
            f"command from the folder that holds it (now {os.getcwd()})"
        ) from error
    # The file, since a module of another package may have the name that was meant.
    file = getattr(sys.modules[module], "__file__", None)
    return _require_task(found, f"task {place!r}: {cls!r} in {module} ({file})")
