"""Every normalisation with every head can command what was demonstrated, in physical units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from two_robots import ARM, POINTS, measure, observe, tiny_policy

from vla.contract import ObservationBatch
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.registry import HEADS
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.policy import VLAPolicy
from vla.processing.embodiments import Embodiment, Embodiments
from vla.processing.normalisation import (
    NORMALISATIONS,
    Normalisation,
    Statistics,
    VectorStatistics,
)
from vla.processing.processor import ProcessorConfig

EXPERT = ExpertConfig(32, 1, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    "gaussian": {"hidden": 64},
    "token": {"expert": EXPERT, "bins": 64, "label_smoothing": 0.02},
    "fast": {"expert": EXPERT, "vocabulary": 2048},
    "l1": {"expert": EXPERT},
    "flow": {"expert": EXPERT, "steps": 4},
}
EXTREME = 0.95  # of the contract's limits: far beyond one sigma and the quantiles


def policy_with(normalisation: Normalisation, head: str, chunk: torch.Tensor) -> VLAPolicy:
    """An untrained policy whose statistics say that actions are mostly small."""
    tiny = tiny_policy(ARM)
    config = ProcessorConfig(
        action_normalisation=normalisation,
        image_size_px=tiny.processor.image_size_px,
        image_tokens_per_camera=tiny.processor.config.image_tokens_per_camera,
        max_text_tokens=16,
    )
    robots = {ARM.robot: Embodiment(ARM, small_statistics(chunk))}
    conversions = Embodiments.make(robots, tiny.processor.language, config)
    dims = ModelDims.of(conversions[ARM.robot])
    torch.manual_seed(0)
    model = VLA(tiny.model.backbone, dims, VLAConfig(3, points=POINTS))
    encoded = conversions[ARM.robot].encode_actions(chunk)
    model.replace_actor(encoded, HEADS[head].config(**SETTINGS[head]))
    return VLAPolicy(model, conversions)


def small_statistics(chunk: torch.Tensor) -> Statistics:
    """Of many small actions and, once each, the chunk's: three sigmas and more."""
    low, high = np.array(ARM.action.low), np.array(ARM.action.high)
    small = np.random.default_rng(0).normal(0.0, 0.1, (500, ARM.action.dim))
    actions = np.concatenate([(low + high) / 2 + small * (high - low) / 2, chunk[0].numpy()])
    return Statistics(VectorStatistics.measure(actions), measure(ARM).proprio)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_one_chunk_is_overfitted(normalisation: Normalisation, head: str) -> None:
    """An extreme chunk, trained on alone, is commanded to within 5% of the range."""
    low, high = np.array(ARM.action.low), np.array(ARM.action.high)
    middle, half = (low + high) / 2, (high - low) / 2
    signs = np.array([[1, -1, 1], [-1, 1, 0.2], [0.1, 1, -1]])[:, : ARM.action.dim]
    chunk = torch.tensor(middle + EXTREME * half * signs, dtype=torch.float32)[None]
    policy = policy_with(normalisation, head, chunk)
    observation: ObservationBatch = observe(ARM, count=1)
    # Many copies: a flow draws one time for each, and one alone is a noisy gradient.
    features = policy.observe(observation).select(torch.zeros(16, dtype=torch.long))
    target = policy.processor.encode_actions(chunk).expand(16, -1, -1)
    is_pad = torch.zeros(16, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.actor.parameters(), lr=5e-3)
    torch.manual_seed(0)
    error = math.inf
    for update in range(300):
        optimizer.zero_grad()
        policy.actor.train().loss(features, target, is_pad).backward()
        optimizer.step()
        # Looked at now and then: most heads need far fewer updates.
        if update % 50 == 49:
            policy.reset()
            error = float(((policy.act(observation) - chunk).abs() / torch.tensor(half)).max())
            if error < 0.1:
                break
    assert error < 0.1


def test_the_bound_is_that_of_the_demonstrations() -> None:
    """None for what lies on the limits; three sigmas where those were demonstrated."""
    model = tiny_policy(ARM).model
    model.replace_actor(torch.ones(4, 3, ARM.action.dim), HEADS["l1"].config())
    assert model.config.action_bound == ()
    chunks = torch.zeros(4, 3, ARM.action.dim)
    chunks[2, 1, 1] = -3.0
    model.replace_actor(chunks, HEADS["l1"].config())
    assert model.config.action_bound == tuple(3.0 if i == 1 else 1.0 for i in range(3))
