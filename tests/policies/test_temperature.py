"""Exploration of a head of tokens: a temperature in the place of a standard deviation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learners import make_trainer
from test_reinforcement import HEADS, collected, vla_policy

from policies.reinforcement.stochastic_policy import log_probs
from policies.reinforcement.trainer import OnPolicyConfig
from vla.model.heads.autoregressive import AutoregressiveHead


@pytest.mark.parametrize("name", ["token", "fast"])
def test_the_temperature_falls_along_a_line_of_its_logarithm(name: str, tmp_path: Path) -> None:
    """Greedy decisions stay as they are, and the KL to the clone does not count it."""
    trainer = make_trainer(
        tmp_path,
        policy=vla_policy(HEADS[name]),
        iterations=4,
        temperature_start=8.0,
        temperature_end=2.0,
    )
    head = trainer.policy.actor.head
    assert isinstance(head, AutoregressiveHead)
    assert head.temperature == 8.0
    trainer.env.reset(range(3), range(3))
    observation, _ = trainer.env.observe()
    before = trainer.policy.act(observation)
    trainer.iteration = 2
    experience, batch = collected(trainer)
    assert head.temperature == pytest.approx(4.0)
    trainer.policy.reset(range(3))
    assert torch.equal(trainer.policy.act(observation), before)
    moved = trainer.reference.distance(trainer.policy.actor, batch.features, batch.sample)
    assert not moved.any()
    head.temperature = 2.0
    colder = log_probs(trainer.policy.actor, batch.features, batch.sample)
    assert not torch.allclose(colder, batch.log_prob)
    assert trainer.exploration.metrics(1) == {"policy/temperature": 2.0}
    assert experience.log_prob.shape == experience.weight.shape


def test_a_temperature_of_zero_is_refused() -> None:
    """Logits are divided by it."""
    with pytest.raises(ValueError, match="temperature_end must be above 0, got 0"):
        OnPolicyConfig(temperature_end=0.0)
