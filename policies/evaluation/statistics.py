"""Success rates with intervals, and comparisons of two policies on the same initial states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate between its bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How much more often one policy succeeds than another on the same initial states.

    Attributes:
        difference: ours - theirs, with Newcombe's interval.
        only_ours: initial states that only our policy solves.
        only_theirs: initial states that only the other one solves.
        p_value: exact two-sided McNemar test of "no difference".
    """

    difference: Interval
    only_ours: int
    only_theirs: int
    p_value: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Score interval of one success rate.

    Raises:
        ValueError: no trials, or a count of successes outside them.

    Source: Wilson (1927), J. Amer. Stat. Assoc. 22:209-212; method 3 of Newcombe (1998),
    Statistics in Medicine 17:857-872.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1: {successes} of {trials}")
    z = _quantile(confidence)
    rate = successes / trials
    # The bounds solve |rate - p| = z * sqrt(p (1 - p) / n) for p.
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    variance = rate * (1 - rate) / trials + z**2 / (4 * trials**2)
    half = z * math.sqrt(variance) / (1 + z**2 / trials)
    # Rounding can miss the bounds 0 and 1, and the rate itself, by 1e-17.
    return Interval(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)))


def paired_difference(
    ours: Sequence[bool] | np.ndarray, theirs: Sequence[bool] | np.ndarray, confidence: float = 0.95
) -> PairedDifference:
    """Compare two policies whose outcomes are in the same order of initial states.

    The interval is the square-and-add of two Wilson intervals, narrowed by the correlation of the
    pairs. It stays inside [-1, 1] and has a width even when no pair disagrees. The p-value is
    exact but conservative, so it may exceed 0.05 a little where the interval excludes zero.

    Args:
        ours: bool [n].
        theirs: bool [n].
        confidence: of the interval.

    Raises:
        ValueError: lengths differ or are zero, or an outcome is neither true nor false.

    Source: method 10 of Newcombe (1998), Statistics in Medicine 17:2635-2650, recommended by
    Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875.
    """
    a, b = _outcomes(ours), _outcomes(theirs)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"paired outcomes need one equal, positive length: {a.shape}, {b.shape}")
    n = a.size
    # The discordant pairs: states that both solve, or neither, say nothing of the difference.
    only_ours, only_theirs = int((a & ~b).sum()), int((~a & b).sum())
    first = wilson_interval(int(a.sum()), n, confidence)
    second = wilson_interval(int(b.sum()), n, confidence)
    correlation = _correlation(int((a & b).sum()), only_ours, only_theirs, int((~a & ~b).sum()))

    # Distances of the bounds from the difference; 0 under the root only catches rounding.
    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down**2 - 2 * correlation * down * up + up**2))

    difference = (only_ours - only_theirs) / n
    interval = Interval(
        value=difference,
        low=difference - reach(first.value - first.low, second.high - second.value),
        high=difference + reach(second.value - second.low, first.high - first.value),
    )
    return PairedDifference(interval, only_ours, only_theirs, mcnemar_exact(only_ours, only_theirs))


def mcnemar_exact(only_ours: int, only_theirs: int) -> float:
    """Two-sided p-value of the exact (binomial) McNemar test from the two discordant counts.

    Source: McNemar (1947), Psychometrika 12:153-157, with the exact conditional distribution
    Binomial(only_ours + only_theirs, 1/2).
    """
    n, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    # Whole numbers until the last division: exact for any count.
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    # Doubling counts the middle term twice where both counts are equal: above 1.
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted for their number, in the order given.

    Rejecting those below a level rejects a true hypothesis, any at all, no more often than that.

    Raises:
        ValueError: a p-value lies outside [0, 1].

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65-70.
    """
    if not all(0 <= p <= 1 for p in p_values):  # NaN fails this too
        raise ValueError(f"p-values lie between 0 and 1: {p_values}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        # Never below that of a smaller p-value: rejections stop at the first test that fails.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def median_of_ratios(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray
) -> Interval:
    """Median, lowest and highest of ours / theirs over interleaved rounds.

    Pairing each round with its neighbour in time cancels what a shared machine did to both.

    Raises:
        ValueError: lengths differ or are zero, or a measurement is not positive and finite.
    """
    if len(ours) != len(theirs) or len(ours) == 0:
        raise ValueError(f"rounds need one equal, positive number: {len(ours)}, {len(theirs)}")
    if not all(0 < value < math.inf for value in (*ours, *theirs)):  # NaN fails this too
        raise ValueError(f"measurements must be positive and finite: {ours}, {theirs}")
    ratios = [float(a) / float(b) for a, b in zip(ours, theirs, strict=True)]
    # The bounds are the extremes and not a confidence interval: there are only a few rounds.
    return Interval(median(ratios), min(ratios), max(ratios))


def _outcomes(values: Sequence[bool] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    # As a truth value NaN would count as a success.
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"outcomes must be true or false: {values}")
    return array.astype(bool)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1: {confidence}")
    # Two-sided: half of what is left lies in each tail.
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _correlation(both: int, only_ours: int, only_theirs: int, neither: int) -> float:
    """Phi coefficient of the 2x2 table with Newcombe's continuity correction; 0 if undefined."""
    n = both + only_ours + only_theirs + neither
    ours, theirs = both + only_ours, both + only_theirs
    margins = ours * (n - ours) * theirs * (n - theirs)
    if margins == 0:
        return 0.0
    # Newcombe corrects a positive association only, and never beyond 0.
    association = both * neither - only_ours * only_theirs
    if association > 0:
        association = max(association - n / 2, 0.0)
    return association / math.sqrt(margins)
