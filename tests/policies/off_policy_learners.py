"""Small off-policy trainers on the point environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from point_env import PointVecEnv
from two_robots import tiny_policy

from policies.reinforcement.off_policy import OffPolicyTrainer
from policies.reinforcement.refinement import RefinementConfig
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.run_folder import RunFolder
from vla.model.heads.expert import ExpertConfig
from vla.policy import VLAPolicy

SMALL = RefinementConfig(iterations=3, episodes=6, warmup_iterations=1, evaluate_every=1)
EXPERT = ExpertConfig(16, 1, 2)


def seeds(iteration: int) -> range:
    """What is collected in an iteration."""
    return range(iteration * 6, iteration * 6 + 6)


def make(
    folder: Path,
    method: SACConfig | None = None,
    policy: Any = None,
    env: PointVecEnv | None = None,
    demonstrations: Path | None = None,
    **changes: Any,
) -> OffPolicyTrainer[Any]:
    """A run of a few short iterations, by default of a policy on the state."""
    env = env or PointVecEnv(3, episode_length=5)
    if policy is None:
        torch.manual_seed(0)
        policy = StatePolicy(env, 2)
    reward = changes.pop("reward", None)
    config = replace(SMALL, **changes)
    made = method or SACConfig(hidden=16, batch_size=8, updates_per_step=1.0)
    run = RunFolder(folder, config)
    return OffPolicyTrainer(policy, env, config, made, run, seeds, demonstrations, reward)


def vla_policy(head: Any) -> VLAPolicy:
    """A tiny vision-language-action policy of the point with this head."""
    policy = tiny_policy(PointVecEnv.spec)
    chunks = torch.rand(40, 3, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    policy.model.replace_actor(chunks, head)
    return policy
