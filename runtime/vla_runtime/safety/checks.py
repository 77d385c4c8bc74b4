"""What a command has to be before its motion is looked at."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

FaultKind = Literal[
    "command", "observation", "expired", "heartbeat", "clock", "motion", "robot", "outside", "stop"
]


@dataclass(frozen=True)
class Fault:
    """Why a gate has latched.

    Attributes:
        kind: "command": malformed; "observation": too old; "expired": its chunk is used up;
            "heartbeat": ticks or commands stayed away; "clock": it is not monotonic; "motion": no
            next command could be computed; "robot": it refused a command; "outside": the robot
            stands outside its limits; "stop": someone asked for it.
        reason: for the operator.
        time_s: when, on the gate's clock.
    """

    kind: FaultKind
    reason: str
    time_s: float


class Refused(Exception):  # noqa: N818  an outcome inside the gate, no error that leaves it
    """A check did not pass."""

    def __init__(self, kind: FaultKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: FaultKind = kind


def checked_command(command: Any, names: tuple[str, ...]) -> list[float]:
    """A command as finite floats.

    Args:
        command: a numpy array, list or tuple of real numbers, [action.dim].
        names: of the action's dimensions.

    Raises:
        Refused: of kind "command".
    """
    if not isinstance(command, (np.ndarray, list, tuple)):
        raise Refused("command", f"a {type(command).__name__} is no vector of numbers")
    try:
        array = np.array(command)
    except Exception as error:  # a list may hold anything
        raise Refused("command", f"no vector of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise Refused("command", f"dtype {array.dtype} is no real number")
    if array.shape != (len(names),):
        raise Refused("command", f"shape {array.shape}, expected ({len(names)},) for {list(names)}")
    # Through Python floats: a long double beyond float64 becomes infinite and is seen below.
    values = [float(value) for value in array]
    if bad := [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]:
        raise Refused("command", f"not finite in {bad}")
    return values


def check_times(now: float, observed_s: Any, expires_s: Any, max_observation_age_s: float) -> None:
    """Refuse a command from an old observation, and one whose chunk has expired.

    Raises:
        Refused: of kind "observation" or "expired".
    """
    observed, expires = seconds(observed_s), seconds(expires_s)
    age = now - observed
    # The comparisons are false for NaN, so each names what is valid.
    if not 0 <= age <= max_observation_age_s:
        raise Refused(
            "observation",
            f"observed {age:.3f} s before the command, valid is 0 to {max_observation_age_s} s",
        )
    if not now <= expires:
        raise Refused("expired", f"the chunk expired {now - expires:.3f} s before the command")


def seconds(value: Any) -> float:
    """A time as a float; NaN where it is no real number."""
    # bool is an int, and neither is a time.
    if isinstance(value, (float, int, np.floating, np.integer)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond all floats is no time either
            return float(value)
    return math.nan
