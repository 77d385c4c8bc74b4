"""Ways of executing chunks, on hand-made chunks and on a flow head."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from example_robot import SPEC
from two_robots import POINTS

from vla.contract import ObservationBatch
from vla.execution import RealTimeChunking, RecedingHorizon, TemporalEnsemble, make_executor
from vla.model.actor import Actor
from vla.model.features import Features
from vla.model.heads.base import HeadDims
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.l1 import L1Head, L1HeadConfig
from vla.policy import VLAPolicy

LENGTH = 6


class Counting:
    """Its chunks say when they were decided and for which step: 10 decision + step."""

    def __init__(self) -> None:
        self.spec, self.chunk_length, self.decisions = SPEC, LENGTH, 0
        self.actor = SimpleNamespace(head=L1Head(DIMS, L1HeadConfig()))

    def reset(self, indices: object) -> None:
        """It remembers nothing."""

    def act(self, observation: object) -> torch.Tensor:
        """Two robots' chunks of one number."""
        self.decisions += 1
        chunk = 10.0 * self.decisions + torch.arange(LENGTH)
        return chunk[None, :, None].repeat(2, 1, 1)


DIMS = HeadDims(vector=3, prompt=4, chunk_length=LENGTH, action=2)
NOTHING = cast(ObservationBatch, None)


def counting() -> VLAPolicy:
    """As the policy that executors take."""
    return cast(VLAPolicy, Counting())


def test_receding_horizon_cuts_the_chunk() -> None:
    """Only the first steps are executed."""
    chunk = RecedingHorizon(counting(), 2).act(NOTHING)
    assert chunk[0, :, 0].tolist() == [10, 11]


def test_temporal_ensemble_is_the_mean_of_all_that_predict_now() -> None:
    """By hand: the third decision hears 12, 21 and 30; a reset forgets the older ones."""
    policy = TemporalEnsemble(counting(), decay=0.0)
    said = [policy.act(NOTHING)[0, 0, 0].item() for _ in range(3)]
    assert said == pytest.approx([10, (11 + 20) / 2, (12 + 21 + 30) / 3])
    policy.reset([1])
    first, second = policy.act(NOTHING)[:, 0, 0].tolist()
    assert first == pytest.approx((13 + 22 + 31 + 40) / 4)
    assert second == 40


def test_temporal_ensemble_forgets_chunks_that_have_ended() -> None:
    """No more chunks are blended than speak of the present; decay weighs the oldest most."""
    policy = TemporalEnsemble(counting(), decay=100.0)
    for _ in range(LENGTH + 3):
        last = policy.act(NOTHING)[0, 0, 0].item()
    assert last == pytest.approx(10 * 4 + LENGTH - 1)


class FlowPolicy:
    """A flow actor whose proprioception is the decision's number."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.spec, self.chunk_length, self.decisions = SPEC, LENGTH, 0
        config = FlowHeadConfig(ExpertConfig(16, 1, 2), steps=10)
        self.actor = Actor(4, 3, 2, LENGTH, 2, config, POINTS, action_bound=(1.0, 3.0)).eval()
        self.model = SimpleNamespace(dims=SimpleNamespace(action=2))

    def reset(self, indices: object) -> None:
        """It remembers nothing."""

    def decode(self, chunk: torch.Tensor) -> torch.Tensor:
        """Normalised is physical here."""
        return chunk

    def observe(self, observation: object) -> Features:
        """Features that change at every decision."""
        self.decisions += 1
        return self.features_of(self.decisions)

    def features_of(self, decision: int) -> Features:
        """Those of the decision with this number."""
        proprio = torch.full((2, 3), float(decision))
        points = torch.zeros(2, 3, 3)
        return replace(
            Features.of_vector(proprio, 2),
            readout=torch.zeros(2, 4),
            points=points,
            localisation_std=points[..., 0],
            prompt=torch.zeros(2, 0, 4),
        )


def test_real_time_chunking_keeps_what_is_being_make_executor() -> None:
    """The first steps of the second chunk are those that the first one had for them."""
    observation = cast(Any, SimpleNamespace(proprio=torch.zeros(2)))
    policy = FlowPolicy()
    chunking = RealTimeChunking(cast(VLAPolicy, policy), steps=3, delay=2)
    chunking.act(observation)
    first = chunking._previous[0]
    second = chunking.act(observation)
    assert second.shape == (2, 3, 2)
    assert torch.equal(second[0, :2], first[3:5])
    chunking.reset([0])
    third = chunking.act(observation)
    with torch.no_grad():
        alone = policy.actor.act(policy.features_of(3))
    assert torch.allclose(third[0], alone[0, :3], atol=1e-5)  # nothing to keep: as decided freshly


def test_inpainting_meets_the_target() -> None:
    """Guidance brings the chunk nearer to the target than the flow alone does."""
    policy = FlowPolicy()
    features, actor = policy.features_of(1), policy.actor
    with torch.no_grad():
        alone = actor.act(features)
        target = alone + 0.3
        weight = torch.zeros(2, LENGTH)
        weight[:, :3] = 1.0
        guided = actor.inpaint(features, target, weight)
        free = actor.inpaint(features, target, torch.zeros(2, LENGTH))
    assert (guided - target)[:, :3].abs().mean() < 0.5 * (alone - target)[:, :3].abs().mean()
    assert torch.allclose(free, alone, atol=1e-5)


def test_executions_are_read_and_refused_by_name() -> None:
    """Errors say what is valid."""
    assert isinstance(make_executor(counting(), "receding:2"), RecedingHorizon)
    assert isinstance(make_executor(counting(), "ensemble"), TemporalEnsemble)
    assert isinstance(
        make_executor(cast(VLAPolicy, FlowPolicy()), "realtime:3:1"), RealTimeChunking
    )
    with pytest.raises(ValueError, match="none of chunk, receding:STEPS"):
        make_executor(counting(), "backwards")
    with pytest.raises(ValueError, match="steps must lie from 1 to 6, got 9"):
        make_executor(counting(), "receding:9")
    for text in ("receding:x", "receding:1.5", "realtime:3:x", "ensemble:x"):
        # With what is valid, and not in the words of Python's int().
        message = rf"'{text}': '[^']+' is no (whole )?number; valid: chunk, receding:STEPS"
        with pytest.raises(ValueError, match=message):
            make_executor(counting(), text)
    for decay in ("nan", "inf", "-1e9"):
        with pytest.raises(ValueError, match=r"decay must lie from -100.0 to 100.0"):
            make_executor(counting(), f"ensemble:{decay}")
    with pytest.raises(ValueError, match=r"head that can inpaint, such as flow.*L1Head"):
        make_executor(counting(), "realtime:3:1")
