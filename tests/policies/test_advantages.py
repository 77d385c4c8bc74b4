"""Advantages, returns and baselines against hand computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.reinforcement.advantages import (
    discount_within,
    gae,
    generalised_advantages,
    monte_carlo,
)
from policies.reinforcement.critic import Critic, describe_fit
from policies.reinforcement.experience import Batch, Experience, sample_std, shuffled
from policies.reinforcement.reinforce import places_in_episode
from vla.model.features import Features


def make_experience(rewards: Tensor, ended: Tensor, terminated: Tensor | None = None) -> Experience:
    """Experience [t, n] of one control step a macro-step, with nothing in it but rewards."""
    t, n = ended.shape
    nothing = torch.zeros(t, n, 1)
    return Experience(
        features=Features.of_vector(torch.zeros(t * n, 1), 1),
        critic_obs=nothing,
        next_critic_obs=nothing,
        sample=nothing,
        log_prob=nothing,
        weight=nothing,
        rewards=rewards[..., None],
        valid=torch.ones(t, n, 1, dtype=torch.bool),
        terminated=torch.zeros_like(ended) if terminated is None else terminated,
        ended=ended,
        episode=torch.zeros_like(ended, dtype=torch.int64),
        group=torch.zeros(1, dtype=torch.int64),
        outcome=torch.zeros(1),
    )


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
        gae_lambda=0.8,
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


def test_returns_by_hand() -> None:
    """Rewards 1, 2, 4 of one episode at gamma 0.5, scaled by 1 - 0.5; the next has 8 alone."""
    rewards = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    ended = torch.tensor([[False], [False], [True], [False]])
    found = monte_carlo(make_experience(rewards, ended), 0.5)
    assert torch.allclose(found, 0.5 * torch.tensor([[3.0], [4.0], [4.0], [8.0]]))


def test_gae_at_lambda_one_is_the_return_above_the_value() -> None:
    """Whatever the critic says, once episodes end inside the task."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.rand(2, 6, 3, generator=generator)
    ended = torch.zeros(6, 3, dtype=torch.bool)
    ended[2] = ended[5] = True
    experience = make_experience(rewards, ended, terminated=ended)
    next_values = torch.cat([values[1:], torch.full((1, 3), 7.0)])
    found = gae(experience, values, next_values, 0.9, 1.0)
    torch.testing.assert_close(found, monte_carlo(experience, 0.9) - values)


def test_places_in_an_episode_are_counted_from_its_beginning() -> None:
    """An end in one environment is none in another."""
    ended = torch.tensor([[False, True], [True, False], [False, False], [False, True]])
    assert places_in_episode(ended).tolist() == [[0, 0], [1, 0], [0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [5, 5]), (10, 3, [4, 3, 3]), (1001, 1000, [1001]), (3, 100, [3]), (1, 1, [1])],
)
def test_minibatches_are_of_equal_size(count: int, size: int, sizes: list[int]) -> None:
    """None is left over, and each row comes once."""
    parts = shuffled(count, size, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == sizes
    assert torch.cat(parts).sort().values.tolist() == [*range(count)]


def test_a_single_macro_step_has_no_spread_and_no_nan() -> None:
    """Its standardised advantage is 0, and the critic's fit is measured."""
    one = torch.tensor([3.0])
    assert sample_std(one) == 0
    assert sample_std(torch.tensor([1.0, 3.0])) == pytest.approx(2**0.5)
    column = one[:, None]
    batch = Batch(Features.of_vector(column, 1), column, column, column, column > 0, one)
    assert batch.standardised().advantage.tolist() == [0.0]
    assert all(torch.tensor(value).isfinite() for value in describe_fit(one, one).values())


def test_the_critics_input_statistics_are_those_of_all_that_was_seen() -> None:
    """Two collections that differ leave the mean and deviation of both together."""
    first, second = torch.randn(30, 2) * 3 + 1, torch.randn(50, 2) - 5
    critic = Critic(2)
    critic.update_statistics(first)
    critic.update_statistics(second)
    both = torch.cat([first, second])
    torch.testing.assert_close(critic.mean, both.mean(0))
    torch.testing.assert_close(critic.var, both.var(0, correction=0))
    single = Critic(2)
    single.update_statistics(first[:1])
    assert single(first).isfinite().all()
