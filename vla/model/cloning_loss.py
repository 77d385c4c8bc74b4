"""The one loss of behaviour cloning, for `vla pretrain` and for LeRobot's training alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from vla.model.actor import Actor
from vla.model.features import Features


def cloning_loss(
    actor: Actor,
    features: Features,
    actions: Float32[Tensor, "n chunk action"],
    is_pad: Bool[Tensor, "n chunk"],
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    proprio_dropout: float = 0.0,
) -> Float32[Tensor, ""]:
    """The head's loss on features with noise, a scalar.

    Args:
        actor: what is trained.
        features: of n observations.
        actions: demonstrated chunks float32 [n, chunk_length, action], normalised.
        is_pad: bool [n, chunk_length], steps after the end of the demonstration.
        noise_std: of the Gaussian noise on points and proprioception, in the model's units: where
            the policy will act is not exactly where was demonstrated.
        generator: draws noise and dropout on its own device; torch's global one where None.
        proprio_dropout: share of the rows without proprioception, see `drop_proprio`.
    """
    if noise_std:
        features = add_noise(features, noise_std, generator)
    if proprio_dropout:
        features = drop_proprio(features, proprio_dropout, generator)
    return actor.loss(features, actions, is_pad)


def add_noise(features: Features, std: float, generator: torch.Generator | None = None) -> Features:
    """Features with Gaussian noise on points and proprioception, but for missing dimensions."""
    count, proprio_dim = features.proprio.shape
    points = features.points.flatten(1)  # [n, points * 3]
    # A generator draws only on its own device, so the noise is drawn there and moved.
    device = features.device if generator is None else generator.device
    # [n, points * 3 + proprio]: one draw for both, so that one generator state reproduces it.
    noise = torch.randn(
        count, points.shape[1] + proprio_dim, generator=generator, device=device
    ).to(features.device)
    on_points, on_proprio = (std * noise).split([points.shape[1], proprio_dim], dim=1)
    # Missing dimensions are always 0: the policy must not learn to read anything into them.
    on_proprio = on_proprio * features.dim_mask[:, :proprio_dim]
    return replace(
        features,
        points=(points + on_points).view_as(features.points),
        proprio=features.proprio + on_proprio,
    )


def drop_proprio(
    features: Features, share: float, generator: torch.Generator | None = None
) -> Features:
    """Features without proprioception in this share of the rows, drawn at random: 0 in its place.

    What a demonstrated state does next can be guessed from proprioception, with no look at the
    images; where the policy itself has led the robot, the guess is wrong (de Haan et al. 2019,
    arXiv:1905.11979).
    """
    device = features.device if generator is None else generator.device
    kept = torch.rand(len(features), 1, generator=generator, device=device) >= share
    return replace(features, proprio=features.proprio * kept.to(features.device))
