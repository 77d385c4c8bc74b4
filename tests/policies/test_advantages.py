"""Advantages against hand computation."""

from __future__ import annotations

import pytest
import torch

from policies.reinforcement.advantages import discount_within, generalised_advantages


def test_rewards_inside_a_macro_step_are_discounted_and_unexecuted_ones_left_out() -> None:
    """Two of three steps were executed: 1 + 0.5 * 2, and the next value counts 0.25."""
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    reward, discount = discount_within(rewards, torch.tensor([[True, True, False]]), 0.5)
    assert reward.tolist() == [2.0]
    assert discount.tolist() == [0.25]


@pytest.mark.parametrize(("terminated", "last"), [(True, 1.0 - 0.5), (False, 1.0 + 0.9 * 2 - 0.5)])
def test_gae_by_hand(terminated: bool, last: float) -> None:
    """A truncated episode is bootstrapped from its final observation, a terminated one is not."""
    column = [[0.0], [1.0]]
    rewards, values = torch.tensor(column), torch.tensor([[0.3], [0.5]])
    next_values = torch.tensor([[0.5], [2.0]])
    end = torch.tensor([[False], [terminated]])
    found = generalised_advantages(
        rewards,
        values,
        next_values,
        torch.full((2, 1), 0.9),
        terminated=end,
        ended=torch.tensor([[False], [True]]),
        lam=0.8,
    )
    first = 0.0 + 0.9 * 0.5 - 0.3 + 0.9 * 0.8 * last
    assert torch.allclose(found, torch.tensor([[first], [last]]))


def test_nothing_leaks_from_the_next_episode() -> None:
    """What follows an end does not change what came before it."""
    ended = torch.tensor([[True], [False]])
    ones, no = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    a = generalised_advantages(ones, ones, ones, ones, no, ended, 0.9)
    rich = torch.tensor([[1.0], [100.0]])
    b = generalised_advantages(rich, ones, ones, ones, no, ended, 0.9)
    assert a[0] == b[0]
    assert a[1] != b[1]
