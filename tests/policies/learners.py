"""Small trainers on the point environment, and what tests look at in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from point_env import PointVecEnv
from torch import Tensor

from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.run_folder import RunFolder

EPISODES = 6
SMALL = OnPolicyConfig(
    iterations=4,
    episodes=EPISODES,
    critic_epochs=2,
    critic_minibatch_size=6,
    warmup_iterations=0,
    warmup_epochs=2,
    evaluate_every=1,
)


def seeds(iteration: int) -> range:
    """What is collected in an iteration."""
    return range(iteration * EPISODES, (iteration + 1) * EPISODES)


def make_trainer(
    folder: Path,
    method: Any = None,
    policy: Any = None,
    env: PointVecEnv | None = None,
    origin: dict[str, Any] | None = None,
    **changes: Any,
) -> OnPolicyTrainer[Any]:
    """A run of a few short iterations, by default PPO of a policy on the state."""
    env = env or PointVecEnv(3, episode_length=4)
    if policy is None:
        torch.manual_seed(0)
        policy = StatePolicy(env, 2)
    reward, curriculum = changes.pop("reward", None), changes.pop("curriculum", None)
    config = replace(SMALL, **changes)
    run = RunFolder(folder, config, origin=origin)
    made = method or PPOConfig(epochs=2, minibatch_size=6)
    return OnPolicyTrainer(policy, env, config, made, run, seeds, reward, curriculum)


def weights(trainer: OnPolicyTrainer[Any]) -> list[Tensor]:
    """Copies of the actor's weights."""
    return [p.detach().clone() for p in trainer.policy.actor.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether all are equal, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by path, but for the lock and what TensorBoard's thread writes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and "tfevents" not in path.name
    }
