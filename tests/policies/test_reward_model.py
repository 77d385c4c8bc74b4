"""Reward models: the loss by hand, what is recovered, calibration, and learning from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import compared, trajectory
from learners import make_trainer
from point_env import PointVecEnv
from two_robots import tiny_policy

from policies.optimisation import NotFiniteError
from policies.preferences.calibration import calibration_error, measure, reliability
from policies.preferences.comparisons import ComparisonError
from policies.preferences.learned_reward import (
    FeatureReader,
    LearnedReward,
    load_reward,
    read_privileged,
    reward_fingerprint,
)
from policies.preferences.preference_batch import PreferenceBatch
from policies.preferences.reward_model import (
    RewardModel,
    RewardModelConfig,
    fit,
    preference_loss,
    preference_probability,
)
from policies.preferences.trajectories import interface_fingerprint
from policies.reinforcement.collect import collect
from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.rollout import Transition
from policies.run_folder import RunFolder

SMALL = RewardModelConfig(members=2, hidden=16, epochs=3, minibatch_size=8)


def test_the_loss_is_the_cross_entropy_of_bradley_and_terry() -> None:
    """By hand: log-odds ln 3 are three to one."""
    log_odds = torch.tensor([math.log(3.0), math.log(3.0), math.log(3.0)])
    label = torch.tensor([1.0, 0.0, 0.5])
    expected = (-math.log(0.75) - math.log(0.25) - 0.5 * (math.log(0.75) + math.log(0.25))) / 3
    assert float(preference_loss(log_odds, label, 0.0)) == pytest.approx(expected, rel=1e-6)
    # A judge that answers one time in five at random: 0.8 * 0.75 + 0.1.
    assert preference_probability(log_odds, 0.2).tolist() == pytest.approx([0.7] * 3)
    expected = (-math.log(0.7) - math.log(0.3) - 0.5 * (math.log(0.7) + math.log(0.3))) / 3
    assert float(preference_loss(log_odds, label, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_a_very_sure_model_has_a_finite_loss_and_gradient() -> None:
    """Wrong by a thousand nats costs a thousand, not infinity."""
    log_odds = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    loss = preference_loss(log_odds, torch.tensor([1.0, 1.0]), 0.0)
    assert loss.item() == 500
    loss.backward()
    assert log_odds.grad is not None
    assert log_odds.grad.tolist() == [-0.5, 0]


EPISODES = {
    "long": trajectory([[1.0], [2.0], [4.0]]),
    "short": trajectory([[8.0], [16.0]], valid=torch.tensor([[True, True], [True, False]])),
}


def test_segments_are_stacked_with_the_share_that_was_executed() -> None:
    """Shorter ones are padded; who could not tell says nothing."""
    labels = {("long", "short"): 0.0, ("short", "long"): None}
    found = PreferenceBatch.stack(compared(EPISODES, labels), EPISODES, "privileged")
    assert found.reached[0, :, :, 0].tolist() == [[1, 2, 4], [8, 16, 0]]
    assert found.weight.tolist() == [[[1, 1, 1], [1, 0.5, 0]]]
    assert found.label.tolist() == [0]
    with pytest.raises(ComparisonError, match="none of 1 comparisons has a label"):
        PreferenceBatch.stack(compared(EPISODES, {("long", "short"): None}), EPISODES, "privileged")


def test_a_return_is_the_sum_of_the_rewards_of_executed_chunks() -> None:
    """With the identity as the reward: 7 against 8 + 16 / 2."""
    found = PreferenceBatch.stack(
        compared(EPISODES, {("long", "short"): 0.0}), EPISODES, "features"
    )
    model = RewardModel(1, replace(SMALL, members=1))
    model.raw = lambda vectors: vectors[None, ..., 0]  # type: ignore[method-assign]
    assert model.log_odds(found).tolist() == [[-9.0]]


def judged(count: int, noise: float, seed: int) -> tuple[PreferenceBatch, torch.Tensor]:
    """Pairs of three points in the square; the true reward is 3 x - y, labels are Bradley-Terry."""
    generator = torch.Generator().manual_seed(seed)
    reached = torch.rand(count, 2, 3, 2, generator=generator) * 2 - 1
    returns = (3 * reached[..., 0] - reached[..., 1]).sum(-1)
    odds = returns[:, 0] - returns[:, 1]
    probability = preference_probability(odds, noise)
    label = (torch.rand(count, generator=generator) < probability).float()
    return PreferenceBatch(reached, torch.ones(count, 2, 3), label), odds


def test_the_reward_behind_the_judgements_is_recovered() -> None:
    """Up to a constant: held out, nearly as accurate as the truth itself, and calibrated."""
    train, _ = judged(2000, 0.1, seed=0)
    heldout, odds = judged(1000, 0.1, seed=1)
    config = RewardModelConfig(members=2, hidden=32, epochs=15, weight_decay=0.01)
    model = fit(train, config)
    with torch.no_grad():
        points = torch.rand(500, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
        learned = torch.stack([model(points), 3 * points[:, 0] - points[:, 1]])
        assert float(torch.corrcoef(learned)[0, 1]) > 0.97
    best = float(((odds > 0) == (heldout.label > 0.5)).float().mean())
    found = measure(model, heldout)
    assert found["accuracy/heldout"] > best - 0.03
    assert found["calibration/error"] < 0.06
    assert found["loss/heldout"] < 0.9 * math.log(2)
    rewards = model(train.reached)
    assert (rewards.min().item(), rewards.max().item()) == (0, 1)
    assert float(((rewards == 0) | (rewards == 1)).float().mean()) == pytest.approx(0.02, abs=2e-3)


def test_fitting_is_repeatable_and_members_differ() -> None:
    """The same seed gives the same weights."""
    train, _ = judged(40, 0.0, seed=0)
    one, again, other = (fit(train, replace(SMALL, seed=seed)) for seed in (0, 0, 1))
    states = [model.state_dict() for model in (one, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["low"], states[2]["low"])
    raw = one.raw(train.reached)
    assert not torch.allclose(raw[0], raw[1])


def test_calibration_by_hand() -> None:
    """Of pairs, so that 0.9 for one is 0.1 for the other."""
    probability, label = torch.tensor([0.9, 0.1, 0.9, 0.9]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    rows = reliability(probability, label, bins=5)
    assert [row["comparisons"] for row in rows] == [2, 2]
    assert [row["predicted"] for row in rows] == pytest.approx([0.1, 0.9])
    assert [row["actual"] for row in rows] == [0.25, 0.75]
    assert calibration_error(probability, label) == pytest.approx(0.15)
    assert calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])) == 0


def test_nobody_is_right_about_a_tie() -> None:
    """They count in the loss and in the calibration, where they are half of each."""
    found, _ = judged(30, 0.0, seed=0)
    ties = replace(found, label=torch.full((30,), 0.5))
    values = measure(RewardModel(2, SMALL), ties)
    assert set(values) == {"loss/heldout", "calibration/error"}


def saved(folder: Path, model: RewardModel | None = None, **changes: Any) -> Path:
    """A model of the point environment on disk."""
    folder.mkdir(parents=True)
    about = {"task": "point", "privileged_names": ["x", "goal"], "interface": "", **changes}
    (model or RewardModel(2, SMALL)).save(folder, about)
    return folder


def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Bit for bit, with its statistics."""
    train, _ = judged(40, 0.0, seed=0)
    model = fit(train, SMALL)
    folder = saved(tmp_path / "model", model)
    loaded, about = RewardModel.load(folder)
    assert torch.equal(loaded(train.reached), model(train.reached))
    assert loaded.config == SMALL
    assert about["task"] == "point"
    assert len(reward_fingerprint(folder)) == 64


def test_models_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    """None there, damaged, not finite, or of another task, other state or other features."""
    env, policy = PointVecEnv(2), tiny_policy(PointVecEnv.spec)
    with pytest.raises(ComparisonError, match=r"no reward model in .*fit one with `vla reward"):
        load_reward(tmp_path / "none", "point", policy, env)
    folder = saved(tmp_path / "model")
    assert isinstance(load_reward(folder, "point", policy, env), LearnedReward)
    with pytest.raises(ComparisonError, match="comparisons of point, not of FetchPush"):
        load_reward(folder, "FetchPush", policy, env)
    other = saved(tmp_path / "state", privileged_names=["x", "speed"])
    with pytest.raises(ComparisonError, match=r"simulator state \['x', 'speed'\], point has"):
        load_reward(other, "point", policy, env)
    features = RewardModel(2, replace(SMALL, inputs="features"))
    other = saved(tmp_path / "features", features, interface="another")
    with pytest.raises(ComparisonError, match=r"features of another policy.*--inputs privileged"):
        load_reward(other, "point", policy, env)
    broken = RewardModel(2, SMALL)
    broken.high.fill_(float("nan"))
    with pytest.raises(ComparisonError, match="is not finite in high"):
        load_reward(saved(tmp_path / "nan", broken), "point", policy, env)
    file = folder / "reward.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"width": 3}))
    with pytest.raises(ComparisonError, match="is damaged"):
        load_reward(folder, "point", policy, env)
    with pytest.raises(ComparisonError, match="is damaged"):
        reward_fingerprint(folder)


def test_a_reward_of_features_sees_what_a_critic_of_features_sees(tmp_path: Path) -> None:
    """From a memory of its own, also where episodes begin at different times."""
    policy = tiny_policy(PointVecEnv.spec)
    policy.model.average_static_points(["target"])
    env = PointVecEnv(2, episode_length=7)
    reader, read = FeatureReader(policy, 2), []

    def reward(transition: Transition) -> torch.Tensor:
        read.append(reader(transition))
        return transition.step.rewards

    for _ in range(2):  # a second rollout plays episodes of the same numbers
        generator = torch.Generator().manual_seed(0)
        read.clear()
        experience, _ = collect(env, policy, [0, 1, 2], "features", generator, reward)
        seen = torch.stack(read)
        active = experience.active
        torch.testing.assert_close(
            seen[active], experience.next_critic_obs[active], atol=1e-5, rtol=1e-4
        )
    model = RewardModel(seen.shape[-1], replace(SMALL, inputs="features"))
    folder = saved(tmp_path / "model", model, interface=interface_fingerprint(policy))
    assert load_reward(folder, "point", policy, env)


def test_every_executed_step_earns_the_reward_of_its_chunk() -> None:
    """What was not executed earns nothing."""
    env = PointVecEnv(2, episode_length=5)
    model = RewardModel(2, SMALL)
    generator = torch.Generator().manual_seed(0)
    reward = LearnedReward(model, read_privileged)
    experience, _ = collect(env, StatePolicy(env, 2), [0, 1], "privileged", generator, reward)
    with torch.no_grad():
        expected = model(experience.next_critic_obs)[..., None] * experience.valid
    torch.testing.assert_close(experience.rewards, expected)
    assert (experience.rewards[-1, :, 1] == 0).all()


def test_a_reward_that_is_not_finite_stops_a_run_at_once(tmp_path: Path) -> None:
    """By name, in the evaluation before the first collection, and in a collection."""
    model = RewardModel(2, SMALL)
    model.high.fill_(float("nan"))
    reward = LearnedReward(model, read_privileged)
    with pytest.raises(NotFiniteError, match="the reward model's reward is nan"):
        make_trainer(tmp_path, reward=reward).run([0])
    with pytest.raises(NotFiniteError, match="reward is nan"):
        make_trainer(tmp_path / "other", reward=reward).collect()


def near_the_goal(count: int, seed: int) -> PreferenceBatch:
    """Segments of two positions around one goal; the nearer one is better."""
    rng = np.random.default_rng(seed)
    goal = rng.uniform(-0.8, 0.8, (count, 1, 1))
    position = np.clip(goal + rng.uniform(-0.8, 0.8, (count, 2, 2)), -1, 1)
    reached = np.stack([position, np.broadcast_to(goal, position.shape)], -1).astype(np.float32)
    returns = -abs(position - goal).sum(-1)
    label = torch.from_numpy(returns[:, 0] > returns[:, 1]).float()
    return PreferenceBatch(torch.from_numpy(reached), torch.ones(count, 2, 2), label)


def test_ppo_learns_from_preferences_what_the_task_rewards(tmp_path: Path) -> None:
    """From nearly nothing to the optimum, by a reward that never saw the task's.

    The goal is 0.24 m away and a step 0.1 m at most, so 7 of 8 steps can end within 0.1 m of it.
    """
    config = RewardModelConfig(
        members=1, epochs=30, error_rate=0.0, weight_decay=0.01, learning_rate=3e-3
    )
    model = fit(near_the_goal(1500, seed=0), config)
    assert measure(model, near_the_goal(500, seed=1))["accuracy/heldout"] > 0.95
    env = PointVecEnv(32, episode_length=8)
    torch.manual_seed(0)
    policy = StatePolicy(env, 2)
    training = OnPolicyConfig(
        iterations=25,
        episodes=32,
        critic_learning_rate=3e-3,
        critic_minibatch_size=32,
        warmup_iterations=1,
        log_std_start=-0.5,
        log_std_end=-1.0,
    )
    # Eight steps: a longer horizon would be the critic's guess beyond them.
    method = PPOConfig(
        gamma=0.7,
        learning_rate=1e-3,
        epochs=4,
        minibatch_size=128,
        target_kl=0.1,
        reference_kl=1e-4,
    )
    trainer = OnPolicyTrainer(
        policy,
        env,
        training,
        method,
        RunFolder(tmp_path, training),
        lambda iteration: [3] * 32,
        LearnedReward(model, read_privileged),
    )
    # The episodes count the task's reward, which nothing has learned from.
    returns = [trainer.iterate()[1]["collect/return"] for _ in range(training.iterations)]
    assert returns[0] < 1
    assert sum(returns[-5:]) / 5 > 6
