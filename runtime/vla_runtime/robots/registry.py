"""Robots by name, as `--robot` takes them: KIND, or KIND:ARGUMENT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from vla_runtime.contract import Robot

ENTRY_POINTS = "vla_runtime.robots"
"""Entry point group in which other packages name their robots, `KIND = module:function`.

The function takes ARGUMENT, "" where there is none, and returns a `Robot` that is not connected.
"""

Factory = Callable[[str], Robot]

# Module and function, imported when asked for: most of these need a package of their own.
_BUILT_IN = {
    "lerobot": "vla_runtime.robots.lerobot_robot:make",
    "mujoco": "vla_runtime.robots.mujoco_robot:make",
    "ros": "vla_runtime.robots.ros:make",
}


def robot_kinds() -> dict[str, Callable[[], Factory]]:
    """Kind → what loads its factory: the built-in ones, then those of other packages.

    Raises:
        ValueError: two claim one name.
    """
    kinds: dict[str, Callable[[], Factory]] = {
        kind: partial(_load, place) for kind, place in _BUILT_IN.items()
    }
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in kinds:
            raise ValueError(f"the robot kind {point.name!r} of {point.value} is taken already")
        kinds[point.name] = point.load
    return kinds


def make_robot(text: str) -> Robot:
    """The robot that a text such as `mujoco:arm.xml --rate_hz=30` names, not connected yet.

    Raises:
        ValueError: an unknown kind, or an argument that its kind refuses.
        ModuleNotFoundError: the kind needs a package that is not installed; the message says which.
    """
    kind, _, argument = text.partition(":")
    kinds = robot_kinds()
    if kind not in kinds:
        raise ValueError(f"unknown robot {kind!r}; known kinds: {', '.join(sorted(kinds))}")
    return kinds[kind]()(argument)


def _load(place: str) -> Factory:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)
