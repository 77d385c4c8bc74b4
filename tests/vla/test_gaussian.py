"""The squashed-Gaussian head: density, identities and gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from vla.model.heads.gaussian import GaussianLikelihood


def make() -> GaussianLikelihood:
    """Of some chunks of 3 steps of 2 numbers."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 3, 2, generator=generator)
    sample = mean + 0.5 * torch.randn(4, 3, 2, generator=generator)
    return GaussianLikelihood(mean, torch.full((3, 2), -0.7), sample.clamp(-2, 2))


def test_log_prob_equals_torchs_transformed_normal() -> None:
    """The density of tanh(u), step by step, as torch.distributions computes it."""
    ours = make()
    normal = Normal(ours.mean, ours.log_std.exp().expand_as(ours.mean))
    peer = Independent(TransformedDistribution(normal, [TanhTransform()]), 1)
    assert torch.allclose(ours.log_prob(), peer.log_prob(ours.sample.tanh()), atol=1e-3)


def test_kl_and_entropy_by_torch() -> None:
    """Closed forms against torch.distributions; no distance from itself."""
    ours = make()
    other = replace(ours, mean=ours.mean + 0.3)
    wide = ours.log_std.exp().expand_as(ours.mean)
    one, two = Normal(ours.mean, wide), Normal(other.mean, wide)
    expected = torch.distributions.kl_divergence(one, two).sum(-1)
    assert torch.allclose(ours.kl(other), expected, atol=1e-5)
    assert ours.kl(ours).abs().max() == 0
    assert torch.allclose(ours.entropy(), one.entropy().sum(-1), atol=1e-5)
