"""Ways of executing chunks, on hand-made chunks and on a flow head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from example_robot import SPEC

from vla.contract import ObservationBatch
from vla.execution import RealTimeChunking, RecedingHorizon, TemporalEnsemble, executed
from vla.model.heads.base import Features, Sizes
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.flow import FlowHead, FlowHeadConfig
from vla.model.heads.l1 import L1Head, L1HeadConfig
from vla.policy import VLAPolicy

HORIZON = 6


class Counting:
    """Its chunks say when they were decided and for which step: 10 decision + step."""

    def __init__(self) -> None:
        self.spec, self.horizon, self.decisions = SPEC, HORIZON, 0
        self.model = SimpleNamespace(actor=SimpleNamespace(head=L1Head(SIZES, L1HeadConfig())))

    def reset(self, indices: object) -> None:
        """It remembers nothing."""

    def act(self, observation: object) -> torch.Tensor:
        """Two robots' chunks of one number."""
        self.decisions += 1
        chunk = 10.0 * self.decisions + torch.arange(HORIZON)
        return chunk[None, :, None].repeat(2, 1, 1)


SIZES = Sizes(vector=3, memory=4, horizon=HORIZON, action=2)
NOTHING = cast(ObservationBatch, None)


def counting() -> VLAPolicy:
    """As the policy that the ways of executing take."""
    return cast(VLAPolicy, Counting())


def test_receding_horizon_cuts_the_chunk() -> None:
    """Only the first steps are executed."""
    chunk = RecedingHorizon(counting(), 2).act(NOTHING)
    assert chunk[0, :, 0].tolist() == [10, 11]


def test_temporal_ensemble_is_the_mean_of_all_that_speak_of_now() -> None:
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
    for _ in range(HORIZON + 3):
        last = policy.act(NOTHING)[0, 0, 0].item()
    assert last == pytest.approx(10 * 4 + HORIZON - 1)


class FlowPolicy:
    """A flow head whose features are the decision's number."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.spec, self.horizon, self.decisions = SPEC, HORIZON, 0
        head = FlowHead(SIZES, FlowHeadConfig(ExpertConfig(16, 1, 2), steps=10)).eval()
        self.model = SimpleNamespace(actor=SimpleNamespace(head=head, features=self._features))
        self.processor = SimpleNamespace(decode_actions=lambda chunk: chunk)

    def reset(self, indices: object) -> None:
        """It remembers nothing."""

    def encode(self, observation: object) -> torch.Tensor:
        """A context that changes at every decision."""
        self.decisions += 1
        return torch.full((2, 3), float(self.decisions))

    def _features(self, context: torch.Tensor) -> Features:
        return Features(context, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool))


def test_real_time_chunking_keeps_what_is_being_executed() -> None:
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
    features = policy._features(torch.full((2, 3), 3.0))
    with torch.no_grad():
        alone = policy.model.actor.head.act(features)
    assert torch.allclose(third[0], alone[0, :3], atol=1e-5)  # nothing to keep: as decided freshly


def test_inpainting_meets_the_wish() -> None:
    """The pull brings the chunk nearer to the wish than the flow alone does."""
    policy = FlowPolicy()
    features = policy._features(torch.ones(2, 3))
    head = policy.model.actor.head
    with torch.no_grad():
        alone = head.act(features)
        wish = alone + 0.3
        weight = torch.zeros(2, HORIZON)
        weight[:, :3] = 1.0
        pulled = head.inpaint(features, wish, weight)
        free = head.inpaint(features, wish, torch.zeros(2, HORIZON))
    assert (pulled - wish)[:, :3].abs().mean() < 0.5 * (alone - wish)[:, :3].abs().mean()
    assert torch.allclose(free, alone, atol=1e-5)


def test_ways_are_read_and_refused_by_name() -> None:
    """Errors say what is valid."""
    assert isinstance(executed(counting(), "receding:2"), RecedingHorizon)
    assert isinstance(executed(counting(), "ensemble"), TemporalEnsemble)
    assert isinstance(executed(cast(VLAPolicy, FlowPolicy()), "realtime:3:1"), RealTimeChunking)
    with pytest.raises(ValueError, match="none of chunk, receding:STEPS"):
        executed(counting(), "backwards")
    with pytest.raises(ValueError, match="steps must lie from 1 to 6, got 9"):
        executed(counting(), "receding:9")
    with pytest.raises(ValueError, match=r"head that can inpaint, such as flow.*L1Head"):
        executed(counting(), "realtime:3:1")
