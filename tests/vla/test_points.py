"""A model knows the points that its configuration names, and most know none."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor
from two_robots import ARM, CART, POINTS, measure, observe, tiny_policy

from vla.checkpoint.initialisation import GROUNDED, load_start, start_policy
from vla.model.cloning_loss import add_noise
from vla.model.features import Features
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.l1 import L1HeadConfig
from vla.model.points import PointsConfig, PointSpec
from vla.model.vla import VLA, VLAConfig
from vla.policy import load_policy
from vla.processing.embodiments import Embodiment

NONE = PointsConfig()


def test_a_model_without_points_has_no_pointer_and_no_readouts_for_them(tmp_path: Path) -> None:
    """It decides, forgets nothing, and comes back from its checkpoint."""
    policy = tiny_policy(ARM, points=NONE)
    assert policy.model.pointer is None
    assert policy.model.backbone.readout.shape == (1, 32)
    features = policy.observe(observe(ARM))
    assert features.points.shape == (3, 0, 3)
    assert add_noise(features, 1.0).points.shape == (3, 0, 3)
    again = load_policy(policy.save(tmp_path / "saved"))
    assert again.model.config == policy.model.config
    assert torch.equal(again.act(observe(ARM)), policy.act(observe(ARM)))
    assert not any(name.startswith("pointer.") for name in again.model.state_dict())


def test_the_actor_reads_points_and_the_named_relative_positions() -> None:
    """In this order, the second of a pair relative to the first, times the gain."""
    actor = tiny_policy(ARM).actor
    points = torch.arange(18.0).view(2, 3, 3) ** 2
    absolute, relative = actor._positions(points)
    assert torch.equal(absolute, points.flatten(1))
    gripper, moved, target = points.unbind(1)
    assert torch.equal(relative, 16 * torch.cat([moved - gripper, target - moved], 1))
    (alone,) = tiny_policy(ARM, points=PointsConfig((PointSpec("cup"),))).actor._positions(
        points[:, :1]
    )
    assert torch.equal(alone, points[:, 0])


def test_a_start_forgets_its_points_for_a_robot_that_it_has_not_seen() -> None:
    """What was taught of one robot's cameras is not read, unsupervised, by another's actor."""
    start, chunks = load_start(GROUNDED), torch.zeros(2, 4, CART.action.dim)
    assert start.model.config.points.names == ("gripper", "object", "target")
    readout = start.model.backbone.readout[-1].clone()
    robots = {"cart": Embodiment(CART, measure(CART))}
    policy = start_policy(start, robots, {"cart": chunks}, None)
    assert policy.model.config.points == NONE
    assert isinstance(policy.model.config.head, FlowHeadConfig)
    assert torch.equal(policy.model.backbone.readout[0], readout)
    assert policy.act(observe(CART)).shape == (3, 4, CART.action.dim)


def test_static_points_are_those_that_are_named_or_the_target() -> None:
    """A model that knows no target averages nothing by itself."""
    model = tiny_policy(ARM).model
    for names, expected in ((None, (2,)), ((), ()), (("object", "gripper"), (0, 1))):
        model.average_static_points(names)
        assert model.config.points.static == expected
    model = tiny_policy(ARM, points=NONE).model
    model.average_static_points(None)
    assert model.config.points.static == ()
    with pytest.raises(ValueError, match=r"no points \['target'\]; the model knows: none"):
        model.average_static_points(["target"])


def test_points_come_back_from_plain_data_and_are_checked() -> None:
    """Equal after JSON's lists; names are there once, pairs are of names."""
    assert PointsConfig.from_dict(asdict(POINTS)) == POINTS
    with pytest.raises(ValueError, match="points have different names, got cup, cup"):
        PointsConfig((PointSpec("cup"), PointSpec("cup")))
    with pytest.raises(ValueError, match=r"no points \['hand'\]; the model knows: cup"):
        PointsConfig((PointSpec("cup"),), relative=(("hand", "cup"),))
    mixed = (PointSpec("cup"), PointSpec("hand", frame="base"))
    with pytest.raises(ValueError, match=r"one frame for both.*'cup': 'world', 'hand': 'base'"):
        PointsConfig(mixed, relative=(("cup", "hand"),))
    assert PointsConfig(mixed).names == ("cup", "hand")
    tiny = tiny_policy(ARM, points=NONE).model
    with pytest.raises(ValueError, match=r"3 points and the actor need 4 readouts, .* has 1"):
        VLA(tiny.backbone, tiny.dims, VLAConfig(points=POINTS))


def test_a_long_instruction_leaves_the_decisions_of_other_rows_alone() -> None:
    """The readouts keep their positions; the long one is read to its last word."""
    policy = tiny_policy(ARM)
    observation = observe(ARM)
    alone = policy.act(observation)
    observation.instructions[0] = "push the block with all of the care that you can take, robot"
    long = policy.act(observation)
    torch.testing.assert_close(long[1:], alone[1:], rtol=1e-5, atol=1e-6)
    observation.instructions[0] += " two"
    assert not torch.allclose(policy.act(observation)[0], long[0])


def test_features_of_longer_prompts_are_joined() -> None:
    """Shorter ones are padded, and masked there."""
    policy = tiny_policy(ARM, points=NONE)
    policy.model.replace_actor(torch.zeros(1, 3, ARM.action.dim), L1HeadConfig())
    short, long = observe(ARM), observe(ARM)
    long.instructions = ["push the block " * 9] * 3
    parts = [policy.observe(observation) for observation in (short, long)]
    both = Features.concatenate(parts)
    expected = torch.cat([policy.actor.act(part) for part in parts])
    torch.testing.assert_close(policy.actor.act(both), expected, rtol=1e-5, atol=1e-6)


def test_the_card_says_which_points_and_over_which_workspace(tmp_path: Path) -> None:
    """Names, frames and what is averaged; none is said, too."""
    policy = tiny_policy(ARM)
    policy.model.average_static_points(["target"])
    card = (policy.save(tmp_path / "points") / "README.md").read_text()
    named = "gripper (world), object (world), target (world, averaged over an episode)"
    assert f"| points | {named}; workspace 0.2 m around (1.3, 0.75, 0.5) m |" in card
    card = (tiny_policy(ARM, points=NONE).save(tmp_path / "none") / "README.md").read_text()
    assert "| points | none |" in card


def test_without_points_every_head_still_learns() -> None:
    """Gradients reach the only readout."""
    policy = tiny_policy(ARM, points=NONE)
    features = policy.network.features(policy.processor.encode_observation(observe(ARM)))
    actions = torch.zeros(3, 3, ARM.action.dim)
    policy.actor.loss(features, actions, torch.zeros(3, 3, dtype=torch.bool)).backward()
    gradient: Tensor | None = policy.model.backbone.readout.grad
    assert gradient is not None
    assert gradient.any()
