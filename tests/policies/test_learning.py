"""Cloning and PPO on a small real model: exact resume, and the gates of a policy gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.imitation.bc import Cloner, CloningConfig
from policies.reinforcement.ppo import PPO, Batch, PPOConfig
from policies.run_folder import RunFolder
from scripts.pretrain import GROUNDED
from sim.vector import CpuVecEnv
from vla.data.paraphrases import Paraphrases
from vla.policy import VLAPolicy, load_policy

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def env():
    """Two rendered environments."""
    with CpuVecEnv("FetchReach", 2, 1) as made:
        yield made


def make_ppo(env: CpuVecEnv, folder: Path, **changes: object) -> PPO:
    """A run of two short iterations on the shipped model."""
    config = replace(
        PPOConfig(iterations=2, episodes=2, warmup_iterations=0, epochs=1, evaluate_every=1),
        **changes,
    )
    return PPO(load_policy(GROUNDED), env, config, RunFolder(folder, config))


def test_ratio_is_one_before_the_first_update(env: CpuVecEnv, tmp_path: Path) -> None:
    """At ratio 1 nothing is clipped, the gradient is the policy gradient's, the clone is near."""
    ppo = make_ppo(env, tmp_path)
    batch, collected = ppo.collect()
    assert abs(collected["policy/reference_kl"]) < 1e-6
    model = ppo.policy.model
    new = model.actor.likelihood(batch.context, batch.decision).log_prob()
    assert ((new - batch.log_prob).exp() - 1).abs().max() < 1e-3
    loss, values = ppo.actor_loss(batch)
    assert values["policy/clip_fraction"] == 0
    weight = batch.valid.float() / batch.valid.sum()
    plain = -(new * batch.advantage[:, None] * weight).sum()
    parameters = list(model.actor.parameters())
    for a, b in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_constant_reward_moves_nothing(env: CpuVecEnv, tmp_path: Path) -> None:
    """Without advantage the actor's gradient is zero."""
    ppo = make_ppo(env, tmp_path)
    batch, _ = ppo.collect()
    flat = Batch(**{**vars(batch), "advantage": torch.zeros_like(batch.advantage)})
    before = [p.clone() for p in ppo.policy.model.actor.parameters()]
    ppo.learn(flat, train_actor=True)
    moved = [
        (a - b).abs().max()
        for a, b in zip(before, ppo.policy.model.actor.parameters(), strict=True)
    ]
    assert max(moved) == 0


def test_ppo_resumes_to_the_same_weights(env: CpuVecEnv, tmp_path: Path) -> None:
    """Cut after the first iteration, then continued, equals the run that was not cut."""
    whole = make_ppo(env, tmp_path / "whole")
    whole.run([900_000])
    make_ppo(env, tmp_path / "cut", iterations=1).run([900_000])
    resumed = make_ppo(env, tmp_path / "cut")
    resumed.run([900_000])
    assert resumed.iteration == whole.iteration == 2
    theirs = resumed.policy.model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in whole.policy.model.state_dict().items())


class FakeData:
    """Four frames with one chunk each, in memory."""

    paraphrases = Paraphrases()

    def __init__(self, policy: VLAPolicy):
        self.spec = policy.spec
        self.robots = {self.spec.robot: self}

    def rows(self, split: str) -> list[int]:
        """Nothing is held out."""
        return [0, 1, 2, 3] if split == "train" else []

    def draw(self, generator: torch.Generator, size: int) -> np.ndarray:
        """Any of them."""
        return torch.randint(4, (size,), generator=generator).numpy()


def make_cloner(env: CpuVecEnv, folder: Path, updates: int) -> Cloner:
    """A cloner whose contexts are given, so that no data set is needed."""
    policy = load_policy(GROUNDED)
    torch.manual_seed(0)
    policy.model.actor.head.load_state_dict(
        {
            name: torch.randn_like(t) * 0.1
            for name, t in policy.model.actor.head.state_dict().items()
        }
    )
    config = CloningConfig(updates=updates, batch=4, evaluate_every=2)
    cloner = Cloner(
        policy,
        FakeData(policy),  # pyright: ignore[reportArgumentType]
        config,
        RunFolder(folder, config),
    )
    generator = torch.Generator().manual_seed(1)
    cloner._schedule.T_max = 4
    cloner._contexts["train"] = (
        torch.randn(4, policy.model.context_dim, generator=generator),
        torch.rand(4, 5, 4, generator=generator),
        torch.zeros(4, 5, dtype=torch.bool),
    )
    return cloner


def test_cloning_resumes_to_the_same_weights(env: CpuVecEnv, tmp_path: Path) -> None:
    """Four updates equal two, a new process's two from the checkpoint, bit for bit."""
    whole = make_cloner(env, tmp_path / "whole", 4)
    whole.run(env, [900_000, 900_001])
    make_cloner(env, tmp_path / "cut", 2).run(env, [900_000, 900_001])
    resumed = make_cloner(env, tmp_path / "cut", 4)
    resumed.run(env, [900_000, 900_001])
    theirs = resumed.model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in whole.model.state_dict().items())


def test_a_frozen_batch_is_learned(env: CpuVecEnv, tmp_path: Path) -> None:
    """Learning again and again on one batch makes the actions with more advantage likelier."""
    ppo = make_ppo(env, tmp_path, target_kl=float("inf"), epochs=30, actor_learning_rate=1e-3)
    batch, _ = ppo.collect()
    batch.advantage = batch.decision[:, 0, 0] - batch.decision[:, 0, 0].mean()
    ppo.learn(batch, train_actor=True)
    with torch.no_grad():
        after = ppo.policy.model.actor.likelihood(batch.context, batch.decision).log_prob()
    gain = (after - batch.log_prob).sum(1)
    better = batch.advantage > 0
    assert float(gain[better].mean()) > float(gain[~better].mean()) + 0.01


@pytest.mark.parametrize(("told", "taken"), [(None, 3e-4), (0.0, 0.0), (1e-3, 1e-3)])
def test_the_actor_learns_at_the_rate_told_or_its_heads(
    told: float | None, taken: float, env: CpuVecEnv, tmp_path: Path
) -> None:
    """Zero is a rate, too."""
    ppo = make_ppo(env, tmp_path, actor_learning_rate=told)
    assert ppo._actor_optimizer.param_groups[0]["lr"] == taken


def test_training_samples_and_evaluation_does_not(env: CpuVecEnv, tmp_path: Path) -> None:
    """Two collections of the same episodes differ; two evaluations do not."""
    ppo = make_ppo(env, tmp_path)
    first, second = (ppo.collect()[0].decision for _ in range(2))
    assert not torch.equal(first, second)
    observation, _ = env.observe()
    assert torch.equal(ppo.policy.act(observation), ppo.policy.act(observation))
