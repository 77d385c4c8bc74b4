"""The on-policy core and its methods: the gates of a policy gradient, and what surrounds it."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import files, make_trainer, same, seeds, weights
from point_env import PointVecEnv
from torch import Tensor
from two_robots import ARM, tiny_policy

from policies.checkpoints import DivergedError
from policies.reinforcement import refinement
from policies.reinforcement.a2c import A2CConfig
from policies.reinforcement.collect import collect, flatten
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.grpo import GRPOConfig
from policies.reinforcement.ppo import PPO, PPOConfig
from policies.reinforcement.registry import ALGORITHMS, algorithm_of, register
from policies.reinforcement.reinforce import ReinforceConfig
from policies.reinforcement.rloo import RLOOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.stochastic_policy import log_probs
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.reinforcement.trpo import TRPOConfig
from policies.rollout import Transition
from vla.model.features import Features
from vla.model.heads.base import HeadConfig
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.fast import FastHeadConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.l1 import L1HeadConfig
from vla.model.heads.registry import NoLikelihoodError
from vla.model.heads.token import TokenHeadConfig
from vla.policy import VLAPolicy, load_policy

POINT = PointVecEnv.spec
EXPERT = ExpertConfig(16, 1, 2)
HEADS: dict[str, HeadConfig] = {
    "gaussian": GaussianHeadConfig(32, dropout=0.5),
    "token": TokenHeadConfig(EXPERT, bins=16),
    "fast": FastHeadConfig(EXPERT),
    "flow-sde": FlowHeadConfig(EXPERT, steps=4, sampler="sde"),
    "flow-noise": FlowHeadConfig(EXPERT, steps=4, sampler="noise"),
}


def vla_policy(head: HeadConfig) -> VLAPolicy:
    """A tiny vision-language-action policy of the point with this head."""
    policy = tiny_policy(POINT)
    chunks = torch.rand(40, 3, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    policy.model.replace_actor(chunks, head)
    return policy


def collected(trainer: OnPolicyTrainer[Any]) -> tuple[Experience, Batch]:
    """One collection, with random advantages."""
    experience, _ = trainer.collect()
    generator = torch.Generator().manual_seed(0)
    return experience, experience.batch(torch.randn(experience.ended.shape, generator=generator))


# The gates of a policy gradient


@pytest.mark.parametrize("name", HEADS)
def test_the_ratio_is_one_before_the_first_update(name: str, tmp_path: Path) -> None:
    """Of every head with a likelihood, whatever rows it is computed with; dropout is off."""
    trainer = make_trainer(tmp_path, policy=vla_policy(HEADS[name]))
    _, batch = collected(trainer)
    part = batch.select(torch.randperm(len(batch))[:5])
    new = log_probs(trainer.policy.actor, part.features, part.sample)
    ratio = (new - part.log_prob).exp()
    executed = part.weight > 0
    assert executed.any()
    assert (ratio[executed] - 1).abs().max() < 1e-3
    moved = trainer.reference.distance(trainer.policy.actor, batch.features, batch.sample)
    assert moved[batch.weight > 0].abs().max() < 1e-4


def test_ppo_at_ratio_one_is_the_policy_gradient(tmp_path: Path) -> None:
    """Nothing is clipped, and the gradient is that of log-probability times advantage."""
    trainer = make_trainer(tmp_path)
    _, batch = collected(trainer)
    assert isinstance(trainer.update, PPO)
    loss, metrics = trainer.update.loss(batch, trainer.reference)
    assert metrics["policy/clip_fraction"] == 0
    assert abs(metrics["policy/kl"]) < 1e-6
    actor = trainer.policy.actor
    log_prob = actor.likelihood(batch.features, batch.sample).log_prob()
    plain = -(log_prob * batch.advantage[:, None] * batch.valid).sum() / batch.valid.sum()
    parameters = list(actor.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_expected_score_is_zero() -> None:
    """The gradient of the log-probability of an actor's own samples vanishes in the mean."""
    env = PointVecEnv(1)
    torch.manual_seed(0)
    actor = StatePolicy(env, 1).actor
    state = torch.tensor([[0.3, -0.2]]).expand(40_000, -1)
    features = Features.of_vector(state, 1)
    sample = actor.sample(features, torch.Generator().manual_seed(0)).detach()
    scores = actor.likelihood(features, sample).log_prob()[:, 0]
    (mean,) = torch.autograd.grad(scores.mean(), actor.log_std_parameters(), retain_graph=True)
    (single,) = torch.autograd.grad(scores[:100].square().mean(), actor.log_std_parameters())
    assert abs(float(mean)) < 0.03
    assert abs(float(single)) > 0.1  # so that a gradient of nothing would not pass


def one_each_step(transition: Transition) -> Tensor:
    """A reward that nothing can change."""
    return transition.step.valid.float()


@pytest.mark.parametrize(
    "method",
    [
        PPOConfig(gamma=0.5),
        A2CConfig(gamma=0.5),
        ReinforceConfig(gamma=0.5),
        TRPOConfig(gamma=0.5),
        GRPOConfig(group_size=3),
        RLOOConfig(group_size=3),
    ],
)
def test_constant_reward_moves_nothing(method: Any, tmp_path: Path) -> None:
    """Whatever was done, as much came: the weights stay as they are, bit for bit."""
    env = PointVecEnv(3, episode_length=2)  # too short to fall off and so end early
    policy = StatePolicy(env, 1)
    trainer = make_trainer(tmp_path, method, policy, env, reward=one_each_step, log_std_end=-1.2)
    if trainer.critic is not None:  # one that has learned what there is to learn: the value is 1
        with torch.no_grad():
            for parameter in trainer.critic.critic.parameters():
                parameter.zero_()
            trainer.critic.critic.get_parameter("layers.4.bias").fill_(1.0)
    before = weights(trainer)
    for _ in range(2):
        batch, metrics = trainer.iterate()
        assert not batch.advantage.any()
        # Without anything better no step is good; groups that ended alike are left out.
        takes_steps = not isinstance(method, TRPOConfig | GRPOConfig)
        assert (metrics["policy/gradient_steps"] > 0) == takes_steps
    assert same(weights(trainer), before)


def test_a_batch_is_learned(tmp_path: Path) -> None:
    """Learning again and again on one batch makes samples with more advantage likelier."""
    method = PPOConfig(epochs=30, minibatch_size=6, target_kl=1e9, learning_rate=1e-3)
    trainer = make_trainer(tmp_path, method)
    _, batch = collected(trainer)
    batch = replace(batch, advantage=batch.sample[:, 0, 0] - batch.sample[:, 0, 0].mean())
    trainer.update.update(batch, trainer.reference, torch.Generator().manual_seed(0))
    after = log_probs(trainer.policy.actor, batch.features, batch.sample)
    gain = ((after - batch.log_prob) * batch.valid).sum(1)
    better = batch.advantage > 0
    assert float(gain[better].mean()) > float(gain[~better].mean()) + 0.01


# Around the gradient


def test_learning_ends_before_a_step_from_beyond_the_target_kl(tmp_path: Path) -> None:
    """The first step is taken at a KL of 0; from the second on the policy has moved."""
    steps = {}
    for target in (1e-12, 1e9):
        method = PPOConfig(epochs=3, minibatch_size=6, target_kl=target)
        trainer = make_trainer(tmp_path / str(target), method)
        _, batch = collected(trainer)
        parts = max(1, round(len(batch) / 6))
        metrics = trainer.update.update(batch, trainer.reference, torch.Generator().manual_seed(0))
        steps[target] = metrics["policy/gradient_steps"]
    assert steps == {1e-12: 1, 1e9: 3 * parts}


def test_the_critic_learns_alone_at_first(tmp_path: Path) -> None:
    """For the iterations of warm-up, and longer on each than later."""
    trainer = make_trainer(tmp_path, warmup_iterations=1, warmup_epochs=5)
    assert trainer.critic is not None
    before, critic = weights(trainer), deepcopy(trainer.critic.critic.state_dict())
    _, metrics = trainer.iterate()
    assert same(weights(trainer), before)
    assert "policy/gradient_steps" not in metrics
    learned = trainer.critic.critic.state_dict()
    assert not torch.equal(learned["layers.0.weight"], critic["layers.0.weight"])
    (state, *_) = trainer.critic.optimizer.state.values()
    warm = int(state["step"])
    trainer.iterate()
    assert not same(weights(trainer), before)
    assert warm > 2 * (int(state["step"]) - warm)


def test_a_critic_can_see_what_the_actor_sees(tmp_path: Path) -> None:
    """Also of the observation in which an episode ended, from a memory that does not go on."""
    policy = vla_policy(GaussianHeadConfig(32))
    policy.model.average_static_points(["target"])
    env = PointVecEnv(2, episode_length=3)  # one chunk
    trainer = make_trainer(tmp_path, policy=policy, env=env, critic="features")
    generator = torch.Generator().manual_seed(0)
    experience, _ = collect(env, policy, [0, 1], "features", generator)
    assert experience.critic_obs.shape == experience.next_critic_obs.shape
    assert torch.equal(experience.critic_obs[0], flatten(experience.features)[:2])
    observation, _ = env.observe()  # the final one: environments do not reset themselves
    env.reset([0, 1], [0, 1])
    _, state = policy.features(env.observe()[0], policy.initial_state(2))
    final, _ = policy.features(observation, state)
    torch.testing.assert_close(experience.next_critic_obs[0], flatten(final))
    assert trainer.iterate()[1]["critic/loss"] > 0


def test_entropy_and_reference_penalty_enter_the_loss(tmp_path: Path) -> None:
    """With their weights, and with the sign that explores more and moves less."""
    losses = {}
    for name, method in {
        "plain": PPOConfig(),
        "entropy": PPOConfig(entropy=0.5),
        "reference": PPOConfig(reference_kl=0.25),
    }.items():
        trainer = make_trainer(tmp_path / name, method)
        _, batch = collected(trainer)
        with torch.no_grad():
            for parameter in trainer.policy.actor.parameters():
                parameter.add_(0.01)
        trainer.reference.match_exploration(trainer.policy.actor)
        assert isinstance(trainer.update, PPO)
        losses[name], metrics = trainer.update.loss(batch, trainer.reference)
    kl = trainer.reference.distance(trainer.policy.actor, batch.features, batch.sample)
    assert batch.mean(kl) > 0
    torch.testing.assert_close(losses["reference"] - losses["plain"], 0.25 * batch.mean(kl))
    assert float(losses["entropy"] - losses["plain"]) == pytest.approx(
        -0.5 * metrics["policy/entropy"], rel=1e-4
    )


def test_exploration_starts_where_it_is_told_and_keeps_below_a_falling_line(
    tmp_path: Path,
) -> None:
    """It is free below, and the KL to the clone does not count it."""
    trainer = make_trainer(tmp_path, iterations=4, log_std_start=-1.0, log_std_end=-2.0)
    (log_std,) = trainer.policy.actor.log_std_parameters()
    assert (log_std == -1.0).all()
    with torch.no_grad():
        log_std[0], log_std[1] = 0.5, -1.9
    trainer.iteration = 2
    trainer.collect()
    assert log_std[0].tolist() == [-1.5]
    assert log_std[1].tolist() == pytest.approx([-1.9])
    _, batch = collected(trainer)
    moved = trainer.reference.distance(trainer.policy.actor, batch.features, batch.sample)
    assert float(moved.abs().max()) < 1e-6


def scripted(scores: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluation find these success rates, one after another."""
    left = iter(scores)

    def evaluate(*_: Any) -> tuple[dict[str, float], int]:
        return {"success/end": next(left)}, 10

    monkeypatch.setattr(refinement, "evaluate", evaluate)


def test_exploration_outside_of_the_head_s_range_is_refused(tmp_path: Path) -> None:
    """The head would replace it by the end of its range, and the log would show what is not."""
    with pytest.raises(ValueError, match=r"of -3.0 is outside of this head's range, -2.5 to 0.0"):
        make_trainer(tmp_path / "run", log_std_end=-3.0)
    with pytest.raises(ValueError, match=r"of 0.5 is outside"):
        make_trainer(tmp_path / "run", log_std_start=0.5)
    assert not (tmp_path / "run").exists()


def test_exploration_that_was_learned_below_the_head_s_range_returns(tmp_path: Path) -> None:
    """There it has no gradient, and would stay for good."""
    trainer = make_trainer(tmp_path)
    (log_std,) = trainer.policy.actor.log_std_parameters()
    with torch.no_grad():
        log_std.fill_(-4.0)
    trainer.exploration.limit(0.0)
    assert (log_std == -2.5).all()
    features = trainer._first_features()
    trainer.policy.actor.likelihood(features, log_std.detach()[None]).entropy().sum().backward()
    assert log_std.grad is not None
    assert (log_std.grad > 0).all()


def test_the_best_checkpoint_is_kept_and_ties_go_to_the_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.2 of the clone, then 0.7, 0.7 and 0.6: the third of four."""
    scripted([0.2, 0.7, 0.7, 0.6], monkeypatch)
    trainer = make_trainer(tmp_path, iterations=3)
    kept: list[list[Tensor]] = []
    best = trainer.run([0], lambda iteration, values: kept.append(weights(trainer)))
    trainer.policy.load_weights(best)
    assert same(weights(trainer), kept[2])
    assert trainer.checkpoints.best_score == 0.7


@pytest.mark.parametrize(("stop_at", "iterations"), [(0.7, 1), (None, 3), (1.0, 2)])
def test_a_run_stops_once_it_is_good_enough(
    stop_at: float | None, iterations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None never stops, also where all succeed."""
    scripted([0.2, 0.7, 1.0, 1.0], monkeypatch)
    trainer = make_trainer(tmp_path, iterations=3)
    trainer.run([0], stop_at=stop_at)
    assert trainer.iteration == iterations


def test_the_ledger_counts_selection_beside_collection(tmp_path: Path) -> None:
    """Through all trainings of the weights: a clone's demonstrations are still there."""
    env = PointVecEnv(3, episode_length=4)
    policy = StatePolicy(env, 2)
    policy.ledger.spend(demonstration_episodes=50)
    trainer = make_trainer(tmp_path, policy=policy, env=env, iterations=1)
    trainer.run(range(5))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["ledger/demonstration_episodes"] == 50
    assert line["ledger/collection_steps"] == line["collect/simulator_steps"] > 0
    assert line["ledger/selection_steps"] == 2 * 5 * 4  # the clone, and after the iteration
    ledger = json.loads((tmp_path / "best" / "ledger.json").read_text())
    assert ledger["demonstration_episodes"] == 50


def test_rewards_can_come_from_elsewhere(tmp_path: Path) -> None:
    """They are learned from, while the episodes keep the environment's."""
    env = PointVecEnv(3, episode_length=4)
    generator = torch.Generator().manual_seed(0)
    experience, episodes = collect(
        env, StatePolicy(env, 2), seeds(0), "privileged", generator, one_each_step
    )
    assert torch.equal(experience.rewards, experience.valid.float())
    assert sum(e.total_reward for e in episodes.episodes) < experience.rewards.sum()


def test_training_samples_and_evaluation_does_not(tmp_path: Path) -> None:
    """Two collections of the same episodes differ; two evaluations do not."""
    trainer = make_trainer(tmp_path)
    first, second = (trainer.collect()[0].sample for _ in range(2))
    assert not torch.equal(first[0], second[0])
    observation, _ = trainer.env.observe()
    assert torch.equal(trainer.policy.act(observation), trainer.policy.act(observation))


def test_one_macro_step_is_enough(tmp_path: Path) -> None:
    """There is nothing to compare it with, and nothing becomes NaN."""
    env = PointVecEnv(1, episode_length=1)
    policy = StatePolicy(env, 1)
    for name, algorithm in ALGORITHMS.items():
        trainer = make_trainer(tmp_path / name, algorithm.config(), policy, env, episodes=8)
        trainer._collection_seeds = lambda iteration, trainer=trainer: (
            [0] * trainer.update.group_size
        )
        _, metrics = trainer.iterate()
        assert all(torch.tensor(value).isfinite() for value in metrics.values())
        assert all(weight.isfinite().all() for weight in weights(trainer))


def nan_reward(transition: Transition) -> Tensor:
    """What a broken reward model gives."""
    return transition.step.rewards * float("nan")


def test_divergence_stops_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    """In a first iteration there is none; later neither `best` nor a step is written with it."""
    with pytest.raises(DivergedError, match=r"at step 1: .* is (nan|-?inf).*none was written yet"):
        make_trainer(tmp_path / "rate", PPOConfig(learning_rate=1e38)).run([0])
    make_trainer(tmp_path / "reward", iterations=1).run([0])
    before = files(tmp_path / "reward" / "step_000001") | files(tmp_path / "reward" / "best")
    broken = make_trainer(tmp_path / "reward", reward=nan_reward)
    with pytest.raises(
        DivergedError, match=r"at step 2: the reward that is learned from is nan\..*step_000001"
    ):
        broken.run([0])
    assert before == files(tmp_path / "reward" / "step_000001") | files(
        tmp_path / "reward" / "best"
    )
    assert not (tmp_path / "reward" / "step_000002").exists()


# Methods by name, and what they are made of


def test_methods_are_registered_once() -> None:
    """By the type of their settings; what is unknown is answered with what is known."""
    assert [algorithm_of(a.config()) for a in ALGORITHMS.values()] == [*ALGORITHMS]
    with pytest.raises(ValueError, match="'ppo' is registered already"):
        register("ppo", PPOConfig, PPO)
    with pytest.raises(ValueError, match="int belongs to no algorithm; valid: ppo, a2c, reinforce"):
        algorithm_of(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "gamma must be at least 0 and at most 0.999999, got 1.0"),
        ({"clip_range": 0.0}, "clip_range must be above 0, got 0.0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0, got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    """Before anything runs, with the range."""
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        OnPolicyConfig(episodes=0)


@pytest.mark.parametrize(("told", "taken"), [(None, 3e-4), (0.0, 0.0), (1e-3, 1e-3)])
def test_the_actor_learns_at_the_rate_told_or_that_of_its_head(
    told: float | None, taken: float, tmp_path: Path
) -> None:
    """Zero is a rate, too."""
    trainer = make_trainer(tmp_path, PPOConfig(learning_rate=told))
    assert trainer.update.state_dict()["param_groups"][0]["lr"] == taken


def test_a_head_without_likelihood_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The message names heads that have one."""
    with pytest.raises(NoLikelihoodError, match="gaussian, token, fast, flow"):
        make_trainer(tmp_path / "run", policy=vla_policy(L1HeadConfig()))
    assert not (tmp_path / "run").exists()


def test_one_robot_of_two_is_refined(tmp_path: Path) -> None:
    """Dimensions that it does not have do not move, and the checkpoint keeps both robots."""
    policy = tiny_policy(POINT, ARM)
    trainer = make_trainer(tmp_path, policy=policy, iterations=1)
    head = policy.model.actor.head
    bias = head.get_parameter("layers.6.bias")
    before = bias.detach().clone().view(3, 3)
    _, metrics = trainer.iterate()
    after = bias.detach().view(3, 3)
    assert not torch.equal(after[:, 0], before[:, 0])
    assert torch.equal(after[:, 1:], before[:, 1:])
    assert metrics["policy/std"] == pytest.approx(float(torch.tensor(-1.2).exp()), rel=0.02)
    trainer._select([0, 1])
    assert load_policy(tmp_path / "best", embodiment="arm").spec == ARM
