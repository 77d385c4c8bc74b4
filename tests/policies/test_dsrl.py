"""Reinforcement in the latent noise of a flow policy: what it changes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from off_policy_learners import EXPERT, make, vla_policy
from point_env import PointVecEnv

from policies.reinforcement.dsrl import DSRLConfig
from vla.model.heads.flow import FlowHead, FlowHeadConfig
from vla.policy import load_policy


def test_steering_begins_at_the_clone_and_changes_noise_alone(tmp_path: Path) -> None:
    """The greedy chunk is the clone's until it learns; then only the new network has moved."""
    policy = vla_policy(FlowHeadConfig(EXPERT, steps=2))
    env = PointVecEnv(3, episode_length=5)
    env.reset([0, 1, 2], [5, 6, 7])
    observation, _ = env.observe()
    clone = policy.act(observation)
    method = DSRLConfig(hidden=16, batch_size=8, steering=16, learning_rate=1e-2)
    trainer = make(tmp_path, method, policy, env, warmup_iterations=0)
    env.reset([0, 1, 2], [5, 6, 7])
    policy.reset()
    torch.testing.assert_close(policy.act(observation), clone)
    before = {name: w.clone() for name, w in policy.actor.state_dict().items()}
    best = trainer.run([0])
    after = policy.actor.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("head.steering.") for name in moved)
    loaded = load_policy(tmp_path / "step_000003")
    head = loaded.actor.head
    assert isinstance(head, FlowHead)
    assert head.config.steering == 16
    policy.reset()
    assert torch.equal(loaded.act(observation), policy.act(observation))
    assert load_policy(best).act(observation).shape == clone.shape


def test_noise_is_bounded_and_the_flow_makes_chunks_of_it(tmp_path: Path) -> None:
    """What is executed is where the flow leads from the noise that is stored."""
    policy = vla_policy(FlowHeadConfig(EXPERT, steps=2))
    trainer = make(tmp_path, DSRLConfig(hidden=16, noise_bound=2.0, steering=16), policy)
    features = trainer._first_features()
    action, log_prob = trainer._space.actor.rsample(features)
    assert action.abs().max() < 1
    assert log_prob.shape == (1, 3)
    head = policy.actor.head
    assert isinstance(head, FlowHead)
    flow = head.act_from(policy.actor.head_inputs(features), 2.0 * action)
    torch.testing.assert_close(trainer._space.chunk(features, action), flow)


def test_dsrl_takes_no_demonstrations(tmp_path: Path) -> None:
    """Their noise is not known."""
    policy = vla_policy(FlowHeadConfig(EXPERT, steps=2))
    with pytest.raises(ValueError, match="takes no demonstrations, sac does"):
        make(tmp_path / "run", DSRLConfig(), policy, demonstrations=tmp_path)
