"""A TOML file of limits, for a robot whose contract states none, or to tighten those it states.

    [action.shoulder_pan]        # one table an action dimension, by its name in the contract
    kind = "position"            # or "displacement"
    low = -1.9                   # optional: the contract's range otherwise
    high = 1.9
    velocity = 2.0               # unit/s
    acceleration = 8.0           # unit/s^2
    jerk = 80.0                  # unit/s^3, optional: for every dimension or for none

    [workspace.gripper]          # optional: one table a point that the kinematics knows, metres
    low = [0.05, -0.3, 0.02]
    high = [0.45, 0.3, 0.5]

A name with a dot in it is quoted: [action."shoulder_pan.pos"].
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vla_runtime.contract import CommandKind, RobotSpec
from vla_runtime.safety.limits import Box, LimitsError, SafetyLimits

_KEYS = ("kind", "low", "high", "velocity", "acceleration", "jerk")


def load_limits(path: Path, spec: RobotSpec) -> SafetyLimits:
    """The limits of a robot: the file's where it states them, the contract's elsewhere.

    Args:
        path: of the TOML file.
        spec: the robot's contract.

    Raises:
        LimitsError: naming the file, the dimension, what is wrong and what is valid. A limit may
            be tightened, never widened beyond the contract's.
        OSError: the file cannot be read.
    """
    try:
        return _limits(tomllib.loads(path.read_text(encoding="utf-8")), spec)
    except UnicodeDecodeError as error:
        raise LimitsError(f"{path} is no text: limits are written as TOML") from error
    except ValueError as error:  # a LimitsError, or what is no TOML
        raise LimitsError(f"{path}: {error}") from error


def _limits(document: dict[str, Any], spec: RobotSpec) -> SafetyLimits:
    _only(document, ("action", "workspace"), "tables")
    tables = _tables(document, "action")
    names = spec.action.names
    if unknown := sorted(set(tables) - set(names)):
        quoted = [f'[action."{name}"]' for name in names if "." in name]
        raise LimitsError(
            f"[action.{unknown[0]}] is no dimension of robot {spec.robot!r}: it has {list(names)}"
            + (f"; names with a dot are quoted, as in {quoted[0]}" if quoted else "")
        )
    rows = [_dimension(spec, i, tables.get(name, {})) for i, name in enumerate(names)]
    jerks = [row["jerk"] for row in rows if row["jerk"] is not None]
    if jerks and len(jerks) != len(rows):
        missing = [name for name, row in zip(names, rows, strict=True) if row["jerk"] is None]
        raise LimitsError(f"jerk is limited for every dimension or for none: {missing} have none")
    limits = SafetyLimits(
        action=replace(
            spec.action,
            low=tuple(row["low"] for row in rows),
            high=tuple(row["high"] for row in rows),
        ),
        kinds=tuple(row["kind"] for row in rows),
        velocity=tuple(row["velocity"] for row in rows),
        acceleration=tuple(row["acceleration"] for row in rows),
        jerk=tuple(jerks),
        control_rate_hz=spec.control_rate_hz,
        workspace={
            point: _box(f"[workspace.{point}]", table)
            for point, table in _tables(document, "workspace").items()
        },
    )
    limits.require_within(spec)
    return limits


def _dimension(spec: RobotSpec, i: int, table: dict[str, Any]) -> dict[str, Any]:
    """One dimension's limits, from its table and the contract; jerk None where neither has it."""
    place = f"[action.{_quoted(spec.action.names[i])}]"
    _only(table, _KEYS, f"keys of {place}")
    row: dict[str, Any] = {"low": spec.action.low[i], "high": spec.action.high[i], "jerk": None}
    if spec.motion is not None:
        row["kind"] = spec.motion.kinds[i]
        for key in ("velocity", "acceleration", "jerk"):
            if limits := getattr(spec.motion, key):
                row[key] = limits[i]
    row |= {key: _number(f"{place} {key}", value) for key, value in table.items() if key != "kind"}
    row |= {"kind": table["kind"]} if "kind" in table else {}
    if missing := [key for key in ("kind", "velocity", "acceleration") if key not in row]:
        raise LimitsError(
            f"{place} has no {' and no '.join(missing)}, and the contract states none: a kind is "
            f"one of {list(get_args(CommandKind))}; for the others measure what the robot can do, "
            "or take its maker's figures"
        )
    if row["kind"] not in get_args(CommandKind):
        raise LimitsError(
            f"{place} kind = {row['kind']!r}, valid is one of {list(get_args(CommandKind))}"
        )
    if not row["low"] < row["high"]:
        raise LimitsError(f"{place} low = {row['low']} is not below high = {row['high']}")
    return row


def _number(place: str, value: Any) -> float:
    # TOML has nan and inf, integers without end, and bool is an int in Python.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    raise LimitsError(f"{place} = {value!r} has to be a finite number")


def _box(place: str, table: dict[str, Any]) -> Box:
    _only(table, ("low", "high"), f"keys of {place}")
    sides = {}
    for key in ("low", "high"):
        value = table.get(key)
        if not isinstance(value, list) or len(value) != 3:
            raise LimitsError(f"{place} {key} = {value!r} has to be three numbers in metres")
        sides[key] = tuple(_number(f"{place} {key}", side) for side in value)
    try:
        return Box(**sides)
    except LimitsError as error:
        raise LimitsError(f"{place}: {error}") from error


def _tables(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    tables = document.get(key, {})
    if not isinstance(tables, dict):
        raise LimitsError(f"[{key}.NAME] tables are expected, got {key} = {tables!r}")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise LimitsError(f"a table [{key}.{name}] is expected, got {name} = {table!r}")
    return tables


def _only(table: dict[str, Any], valid: Iterable[str], what: str) -> None:
    if unknown := sorted(set(table) - set(valid)):
        raise LimitsError(f"unknown {unknown}; {what} are {list(valid)}")


def _quoted(name: str) -> str:
    return f'"{name}"' if "." in name else name
