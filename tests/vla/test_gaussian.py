"""The squashed-Gaussian head: density, identities and gradients."""

from __future__ import annotations

import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from vla.model.heads.gaussian import ActionDistribution, GaussianHead, GaussianHeadConfig


def make() -> ActionDistribution:
    """Some distribution over chunks of 3 steps of 2 numbers."""
    generator = torch.Generator().manual_seed(0)
    return ActionDistribution(torch.randn(4, 3, 2, generator=generator), torch.full((3, 2), -0.7))


def test_log_prob_equals_torchs_transformed_normal() -> None:
    """The density of tanh(u), step by step, as torch.distributions computes it."""
    distribution = make()
    sample = distribution.sample(torch.Generator().manual_seed(1)).clamp(-2, 2)
    normal = Normal(distribution.mean, distribution.log_std.exp().expand_as(distribution.mean))
    peer = Independent(TransformedDistribution(normal, [TanhTransform()]), 1)
    assert torch.allclose(distribution.log_prob(sample), peer.log_prob(sample.tanh()), atol=1e-3)


def test_kl_and_entropy_by_torch() -> None:
    """Closed forms against torch.distributions; no distance from itself."""
    distribution, other = make(), make()
    other.mean = other.mean + 0.3
    wide = distribution.log_std.exp().expand_as(distribution.mean)
    ours, theirs = Normal(distribution.mean, wide), Normal(other.mean, wide)
    expected = torch.distributions.kl_divergence(ours, theirs).sum(-1)
    assert torch.allclose(distribution.kl(other), expected, atol=1e-5)
    assert distribution.kl(distribution).abs().max() == 0
    assert torch.allclose(distribution.entropy(), ours.entropy().sum(-1), atol=1e-5)


def test_expected_score_is_zero() -> None:
    """The mean gradient of the log-probability under the distribution itself vanishes."""
    mean = torch.zeros(1, 1, 2, requires_grad=True)
    distribution = ActionDistribution(mean.expand(200_000, 1, 2), torch.full((1, 2), -0.5))
    sample = distribution.sample(torch.Generator().manual_seed(0)).detach()
    distribution.log_prob(sample).mean().backward()
    assert mean.grad is not None
    assert mean.grad.abs().max() < 0.02


def test_padded_steps_teach_nothing() -> None:
    """Actions under `is_pad` do not change the loss."""
    head = GaussianHead(5, 3, 2, GaussianHeadConfig(hidden=8))
    features, actions = torch.randn(6, 5), torch.rand(6, 3, 2)
    is_pad = torch.zeros(6, 3, dtype=torch.bool)
    is_pad[:, 2] = True
    loss = head.loss(features, actions, is_pad)
    actions[:, 2] = -1.0
    assert torch.equal(loss, head.loss(features, actions, is_pad))
