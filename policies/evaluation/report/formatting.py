"""Numbers and outcomes as a reader wants them, in HTML."""

from __future__ import annotations

import math

from policies.evaluation.statistics import Interval
from policies.rollout import Episode


def number(value: float) -> str:
    """Three digits at most, with a letter for thousands and more: 1.2k, 3M, 4e-5."""
    size = abs(value)
    if size == 0:
        return "0"
    # NaN and infinity both: a dash, as for a missing value.
    if not math.isfinite(value):
        return "&ndash;"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{letter}"
    if size < 1e-3:
        # "4.0e-05" becomes 4e-5.
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if not math.isfinite(seconds):
        return "&ndash;"
    for limit, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= limit:
            return f"{seconds / limit:.3g} {unit}"
    return "0 s"


def rate(interval: Interval, trials: int) -> str:
    """A rate in percent, no finer than the episodes resolve."""
    return f"{100 * interval.value:.{_digits(trials)}f}%"


def bounds(interval: Interval, trials: int) -> str:
    """An interval of a rate, in percent."""
    digits = _digits(trials)
    return f"[{100 * interval.low:.{digits}f}, {100 * interval.high:.{digits}f}]"


def points(share: float, trials: int, sign: bool = True) -> str:
    """A difference of rates in percentage points, with its sign where asked for."""
    text = f"{100 * share:{'+' if sign else ''}.{_digits(trials)}f}"
    # A hyphen is narrower than "+", so that columns of digits would not line up.
    return text.replace("-", "&minus;")


def p_value(p: float) -> str:
    """Two significant digits; below 0.0001 the bound alone."""
    # An exact p-value can be as small as 2 ** -199 for 200 episodes.
    return "p &lt; 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def outcome(episode: Episode) -> str:
    """How an episode went, in steps."""
    steps = f"{episode.length} steps"
    if episode.first_success_step is None:
        return f"not reached in {steps}"
    reached = f"reached after {episode.first_success_step} of {steps}"
    # Reaching and losing the goal again counts as a failure at the end: say so.
    return reached if episode.success_at_end else f"{reached}, then lost"


def _digits(trials: int) -> int:
    # One of 100 episodes is one point; a decimal would show precision that is not there.
    return 0 if trials <= 100 else 1
