"""Intervals against the worked examples of the papers they come from."""

from __future__ import annotations

import numpy as np
import pytest

from policies.evaluation.statistics import (
    holm,
    mcnemar_exact,
    median_of_ratios,
    paired_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17:857-872, Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_the_published_one(successes, trials, low, high):
    """Four decimals, as printed."""
    interval = wilson_interval(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def _outcomes(both: int, only_ours: int, only_theirs: int, neither: int):
    ours = [1] * both + [1] * only_ours + [0] * only_theirs + [0] * neither
    theirs = [1] * both + [0] * only_ours + [1] * only_theirs + [0] * neither
    return np.array(ours, bool), np.array(theirs, bool)


@pytest.mark.parametrize(
    ("table", "low", "high", "tolerance"),
    [
        # Newcombe (1998), Statistics in Medicine 17:2635-2650, Table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404, 5e-5),
        ((18, 12, 2, 18), 0.0562, 0.3290, 5e-5),
        ((53, 0, 0, 1), -0.0729, 0.0729, 5e-5),
        # Fagerland, Lydersen and Laake (2014): airway data of Bentur et al.
        ((1, 1, 7, 12), -0.507, -0.026, 5e-4),
    ],
)
def test_paired_interval_equals_the_published_one(table, low, high, tolerance):
    """As printed, for tables of (both, only ours, only theirs, neither)."""
    result = paired_difference(*_outcomes(*table))
    interval = result.difference
    assert interval.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=tolerance)
    assert (result.only_ours, result.only_theirs) == (table[1], table[2])


def test_the_difference_turns_its_sign_with_the_policies():
    """Ours against theirs is the mirror image of theirs against ours."""
    ours, theirs = _outcomes(30, 9, 4, 7)
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.difference.high == pytest.approx(-other.difference.low)
    assert one.p_value == other.p_value


def test_equal_policies_still_have_a_width_and_perfect_ones_stay_in_bounds():
    """The corners where simpler intervals collapse or leave [-1, 1]."""
    same = paired_difference(np.ones(50, bool), np.ones(50, bool))
    assert same.difference.value == 0
    assert same.difference.low < 0 < same.difference.high
    assert same.p_value == 1
    most = paired_difference(np.ones(50, bool), np.zeros(50, bool)).difference
    assert most.value == 1 == most.high
    assert 0.8 < most.low < 1


def test_mcnemar_is_the_binomial_tail_twice():
    """Hand-computed tails; no disagreement is no evidence."""
    assert mcnemar_exact(1, 7) == 2 * (1 + 8) / 2**8  # 0.0703, as published
    assert mcnemar_exact(5, 0) == 2 / 2**5
    assert mcnemar_exact(3, 3) == 1
    assert mcnemar_exact(0, 0) == 1
    assert 0 < mcnemar_exact(1200, 1000) < 1e-4


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    """Simulated pairs with a known difference of 0.12."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        difficulty = rng.uniform(size=100)
        ours, theirs = difficulty < 0.9, difficulty < 0.75
        flips = rng.uniform(size=(2, 100)) < 0.1
        interval = paired_difference(ours ^ flips[0], theirs ^ flips[1]).difference
        covered += interval.low <= 0.8 * 0.15 <= interval.high
    assert 0.92 <= covered / 400 <= 0.99


def test_ratios_are_taken_round_by_round():
    """The median of ratios, not the ratio of medians (which is 1)."""
    interval = median_of_ratios([2.0, 30.0, 9.0], [1.0, 10.0, 9.0])
    assert (interval.value, interval.low, interval.high) == (2, 1, 3)


def test_bad_input_is_refused():
    """Each error says what was expected."""
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ValueError, match="length"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="positive"):
        median_of_ratios([1.0], [0.0])
    with pytest.raises(ValueError, match="number"):
        median_of_ratios([1.0], [])


def test_nan_is_neither_an_outcome_nor_a_measurement():
    """As a truth value it would be a success, and no comparison with it is true."""
    with pytest.raises(ValueError, match="true or false"):
        paired_difference(np.array([1.0, float("nan")]), np.array([1.0, 0.0]))
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            median_of_ratios([1.0, broken], [1.0, 2.0])
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=float("nan"))


def test_a_single_episode_has_a_wide_interval():
    """Statistics of one are defined, and say how little one episode tells."""
    once = wilson_interval(1, 1)
    assert once.value == 1
    assert once.low < 0.25
    one = paired_difference([True], [False])
    assert one.p_value == 1
    assert one.difference.low < 0 < one.difference.value
    assert median_of_ratios([3.0], [2.0]).value == 1.5


def test_holm_is_the_published_example():
    """Holm's steps by hand: 3 x 0.01, then 2 x 0.02, and never below the one before."""
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, float("nan")])
