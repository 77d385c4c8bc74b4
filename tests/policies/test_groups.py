"""GRPO and RLOO: groups, their advantages and losses by hand, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bandit import Bandit, pulls
from learners import make_trainer, same, weights
from point_env import PointVecEnv
from test_advantages import make_experience

from policies.reinforcement.advantages import group_relative, leave_one_out
from policies.reinforcement.clipped_objective import clipped_surrogate
from policies.reinforcement.collect import collect
from policies.reinforcement.experience import Experience
from policies.reinforcement.grpo import GRPO, GRPOConfig
from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.reference import Reference
from policies.reinforcement.rloo import RLOOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.rollout import Transition


def grouped(outcome: list[float], group: list[int], episode: list[list[int]]) -> Experience:
    """Experience of episodes with these verdicts; `episode` says which is played where, [t][n]."""
    playing = torch.tensor(episode)
    nothing = torch.zeros(playing.shape)
    return replace(
        make_experience(nothing, torch.zeros_like(playing, dtype=torch.bool)),
        episode=playing,
        group=torch.tensor(group),
        outcome=torch.tensor(outcome, dtype=torch.float32),
    )


# Advantages


def test_group_relative_advantages_by_hand() -> None:
    """Outcomes 1, 0, 1 have mean 2/3 and deviation 1/sqrt(3); each macro-step has its episode's."""
    experience = grouped(
        [1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [[0, 1, 2], [3, 1, -1], [4, 5, -1]]
    )
    high, low = 1 / 3 * 3**0.5, -2 / 3 * 3**0.5
    expected = torch.tensor([[high, low, high], [0, low, 0], [0, 0, 0]])
    torch.testing.assert_close(group_relative(experience), expected)


def test_leave_one_out_by_hand() -> None:
    """1 above the mean 0.5 of the others, 0 below their mean 1; groups need not lie together."""
    experience = grouped([1, 0.5, 0, 0.5, 1], [0, 1, 0, 1, 0], [[0, 1, 2], [3, 4, -1]])
    expected = torch.tensor([[0.5, 0.0, -1.0], [0.0, 0.5, 0.0]])
    torch.testing.assert_close(leave_one_out(experience), expected)


@pytest.mark.parametrize("estimate", [group_relative, leave_one_out])
def test_a_group_that_ended_alike_says_nothing(estimate: Any) -> None:
    """Exactly nothing, though a mean of equal numbers is rounded; a group of one is refused."""
    alike = grouped([0.1] * 3 + [0.7] * 3, [0] * 3 + [1] * 3, [[0, 1, 2], [3, 4, 5]])
    assert not estimate(alike).any()
    with pytest.raises(ValueError, match="a group of one episode has nothing to be compared with"):
        estimate(grouped([1, 0, 1], [0, 0, 1], [[0, 1, 2]]))


@pytest.mark.parametrize("estimate", [group_relative, leave_one_out])
@pytest.mark.parametrize("size", [8, 50])
def test_equal_sums_of_a_dense_reward_say_nothing(size: int, estimate: Any) -> None:
    """Episodes that never touched the block: the rounding of their mean is no verdict."""
    for earned in torch.linspace(5, 45, 40).tolist():
        alike = grouped([earned] * size, [0] * size, [[*range(size)]])
        assert not estimate(alike).any(), earned
    apart = grouped([30.0] * (size - 1) + [30.01], [0] * size, [[*range(size)]])
    assert estimate(apart).all()


# Losses


def test_the_clip_by_hand() -> None:
    """Ratios 1.5, 1.5, 0.5 and 0.5: only what would gain by moving further is cut off."""
    batch = pulls(Bandit(0.0, 0.0), [0, 0, 0, 0], [1.0, -1.0, 1.0, -1.0])
    log_prob = batch.log_prob + torch.tensor([[1.5], [1.5], [0.5], [0.5]]).log()
    for high, first in ((0.28, 1.28), (None, 1.2)):
        config = PPOConfig(clip_range=0.2, clip_high=high)
        gain, metrics = clipped_surrogate(log_prob, batch, config)
        assert float(gain) == pytest.approx((first - 1.5 + 0.5 - 0.8) / 4)
        assert metrics["policy/clip_fraction"] == 1.0
    near = batch.log_prob + torch.tensor([[1.25], [1.25], [1.0], [0.9]]).log()
    _, metrics = clipped_surrogate(near, batch, PPOConfig(clip_range=0.2, clip_high=0.28))
    assert metrics["policy/clip_fraction"] == 0.0


def test_unexecuted_parts_do_not_count() -> None:
    """A mean is over executed control steps; a part that belongs to none of them weighs nothing."""
    batch = pulls(Bandit(0.0, 0.0), [0, 1, 1], [1.0, 1.0, 1.0])
    batch = replace(
        batch, weight=torch.tensor([[1.0], [0.0], [0.5]]), valid=torch.tensor([[1], [0], [1]]) > 0
    )
    values = torch.tensor([[3.0], [100.0], [4.0]])
    assert float(batch.mean(values)) == (3 + 0.5 * 4) / 2
    assert float(batch.fraction(values > 3)) == pytest.approx(0.5 / 1.5)


def test_the_penalty_of_grpo_by_hand() -> None:
    """k3 of clone and policy: with p 0.5 and q 0.8 or 0.2 it is q / p - 1 - log(q / p)."""
    clone, actor = Bandit(4.0, 1.0), Bandit(0.0, 0.0)
    with torch.no_grad():
        clone.logits.log_()  # probabilities 0.8 and 0.2
    batch = pulls(actor, [0, 1], [1.0, -1.0])
    losses = []
    for weight in (0.0, 0.5):
        method = GRPO(actor, GRPOConfig(learning_rate=1.0, reference_kl=weight))
        losses.append(method.loss(batch, Reference(clone)))
    (plain, _), (with_penalty, _) = losses
    ratios = torch.tensor([0.8 / 0.5, 0.2 / 0.5])
    penalty = float((ratios - 1 - ratios.log()).mean())
    assert plain.item() == pytest.approx(0.0, abs=1e-6)
    assert with_penalty.item() == pytest.approx(0.5 * penalty, rel=1e-5)
    # Its slope in the first logit, of q / p - 1 - log(q / p): (1 - q / p) dlog p, dlog p = +-0.5.
    slope, _ = torch.autograd.grad(with_penalty - plain, actor.logits)[0].tolist()
    assert slope == pytest.approx(0.5 * 0.5 * ((1 - 1.6) * 0.5 + (1 - 0.4) * -0.5), rel=1e-4)


def test_what_did_better_than_its_group_becomes_likelier() -> None:
    """And with the groups that ended alike nothing happens, and nothing is divided by."""
    actor = Bandit(0.0, 0.0, 0.0)
    method = GRPO(actor, GRPOConfig(learning_rate=0.01, epochs=1))
    generator = torch.Generator().manual_seed(0)
    batch = pulls(actor, [0, 1, 2, 2], [1.0, -1.0, 0.0, 0.0])
    metrics = method.update(batch, Reference(actor), generator)
    assert metrics["advantage/skipped"] == 0.5
    first, second, third = actor.logits.tolist()
    assert first > third > second
    alike = pulls(actor, [0, 1], [0.0, 0.0])
    assert method.update(alike, Reference(actor), generator) == {
        "advantage/skipped": 1.0,
        "policy/gradient_steps": 0.0,
    }
    assert actor.logits.tolist() == [first, second, third]


# Collection


def late_reward(transition: Transition) -> torch.Tensor:
    """What a reward model might say: 0.25 a step."""
    return 0.25 * transition.step.valid.float()


def test_groups_begin_in_the_same_state_and_have_a_verdict() -> None:
    """Success at the end by the simulator, or the sum of a reward model's rewards."""
    env = PointVecEnv(3, episode_length=4)
    policy = StatePolicy(env, 2)
    generator = torch.Generator().manual_seed(0)
    starts = [7, 7, 9, 9, 7]
    experience, episodes = collect(env, policy, starts, "privileged", generator)
    assert experience.group.tolist() == [0, 0, 1, 1, 0]
    assert experience.outcome.tolist() == episodes.success_at_end.astype(float).tolist()
    first = {
        episode: experience.critic_obs[row, column].tolist()
        for column in range(3)
        for row in reversed(range(len(experience.episode)))
        if (episode := int(experience.episode[row, column])) >= 0
    }
    assert first[0] == first[1] == first[4] != first[2]
    assert first[2] == first[3]
    steps = [episode.length for episode in episodes.episodes]
    assert [int(experience.valid[experience.episode == e].sum()) for e in range(5)] == steps
    rewarded, played = collect(env, policy, starts, "privileged", generator, late_reward)
    assert rewarded.outcome.tolist() == [0.25 * episode.length for episode in played.episodes]
    # One that pays for every step of a chunk, executed or not.
    policy = StatePolicy(env, 3)
    paid, played = collect(
        env, policy, starts, "privileged", generator, lambda t: torch.ones_like(t.step.rewards)
    )
    assert not paid.valid[paid.active].all()
    assert not paid.rewards[~paid.valid].any()
    assert paid.outcome.tolist() == [episode.length for episode in played.episodes]


@pytest.mark.parametrize("method", [GRPOConfig(group_size=3), RLOOConfig(group_size=3)])
def test_the_trainer_collects_groups(method: Any, tmp_path: Path) -> None:
    """Each state as often as a group has episodes; where none differ, nothing moves."""
    env = PointVecEnv(3, episode_length=4)
    trainer = make_trainer(tmp_path, method, env=env)
    env.resets.clear()
    experience, episodes = trainer.collect()
    assert [episode.seed for episode in episodes.episodes] == [0, 0, 0, 1, 1, 1]
    assert trainer.critic is None
    before = weights(trainer)
    _, metrics = trainer.learn(replace(experience, outcome=torch.ones(6)))
    assert metrics["advantage/skipped"] == 1.0
    assert same(weights(trainer), before)
    _, metrics = trainer.learn(replace(experience, outcome=torch.tensor([1.0, 0, 0, 1, 1, 1])))
    assert 0 < metrics["advantage/skipped"] < 1
    assert not same(weights(trainer), before)


def test_groups_that_cannot_be_compared_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """A group of one, and episodes that are no whole number of groups."""
    for config in (GRPOConfig, RLOOConfig):
        with pytest.raises(ValueError, match="group_size must be at least 2, got 1"):
            config(group_size=1)
    message = "grpo compares groups of 4 episodes: episodes must be a multiple of that, got 6"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path / "run", GRPOConfig(group_size=4))
    assert not (tmp_path / "run").exists()
