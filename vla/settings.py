"""Ranges of the numbers in a configuration, checked when it is made."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any


def require_numbers(
    config: Any,
    *,
    at_least_1: Collection[str] = (),
    above_0: Collection[str] = (),
    any_sign: Collection[str] = (),
    at_most: Mapping[str, float] | None = None,
) -> None:
    """Refuse numbers of a dataclass that are not finite or not in their range.

    Without it a NaN passes comparisons that are written the wrong way round, a negative learning
    rate ascends, and the error comes after hours, or never.

    Args:
        config: a dataclass; each number of a tuple is looked at, what is no number is not.
        at_least_1: names of settings that start at 1; what is named nowhere starts at 0.
        above_0: names of those that may come close to 0.
        any_sign: names of those that only have to be finite.
        at_most: name to upper end.

    Raises:
        ValueError: naming the setting, its value and its range.
    """
    highest = at_most or {}
    for name in (field.name for field in fields(config)):
        setting = getattr(config, name)
        for value in setting if isinstance(setting, tuple) else (setting,):
            if not isinstance(value, int | float):
                continue
            low = -math.inf if name in any_sign else 1 if name in at_least_1 else 0
            high = highest.get(name, math.inf)
            # A comparison that NaN fails, too; no setting is infinite.
            is_within = low <= value <= high and math.isfinite(value)
            if is_within and not (name in above_0 and value == 0):
                continue
            least = "above 0" if name in above_0 else f"at least {low}"
            bounds = ["finite" if low == -math.inf else least]
            bounds += [f"at most {high}"] if high < math.inf else []
            raise ValueError(f"{name} must be {' and '.join(bounds)}, got {value}")


@contextmanager
def refusals_logged() -> Iterator[None]:
    """Log why a setting is refused: the parser of LeRobot's flags drops the reason."""
    try:
        yield
    except ValueError as error:
        logging.getLogger(__name__).error("%s", error)
        raise
