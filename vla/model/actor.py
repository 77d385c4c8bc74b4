"""What decides: a context (readout, points, proprioception) to a distribution over chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla.model.heads.gaussian import ActionDistribution, GaussianHead, GaussianHeadConfig
from vla.model.pointer import POINTS

_POINTS = 3 * len(POINTS)
_MAGNIFY = 16.0
"""Of the ways from hand to object and from object to target: at contact millimetres decide."""


class Actor(nn.Module):
    """The trainable end of the model; with a frozen backbone it is all that learns.

    Args:
        readout: width of the readout in the context.
        proprio_dim: numbers of proprioception in the context.
        summary: width to which the readout is projected for the head.
        horizon: control steps a chunk.
        action_dim: numbers a control step.
        head: sizes of the head.
    """

    def __init__(
        self,
        readout: int,
        proprio_dim: int,
        summary: int,
        horizon: int,
        action_dim: int,
        head: GaussianHeadConfig,
    ):
        super().__init__()
        self.split = (readout, _POINTS, proprio_dim)
        self.summary = nn.Sequential(nn.LayerNorm(readout), nn.Linear(readout, summary))
        features = summary + _POINTS + 6 + proprio_dim
        self.head = GaussianHead(features, horizon, action_dim, head)

    def forward(self, context: Tensor) -> ActionDistribution:
        """Distribution over normalised chunks, for contexts [n, sum of `split`]."""
        return self.head(self._features(context))

    def loss(self, context: Tensor, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Negative log-likelihood of normalised actions [n, horizon, action]."""
        return self.head.loss(self._features(context), actions, is_pad)

    def points(self, context: Tensor) -> Tensor:
        """Where the things are thought to be, in the model's units: [n, POINTS, 3]."""
        return context.split(self.split, dim=1)[1].unflatten(1, (len(POINTS), 3))

    def perturb(self, context: Tensor, noise: Tensor) -> Tensor:
        """Add `noise`, as wide as a context, to its points and proprioception."""
        measured = torch.ones_like(context[:1])
        measured[:, : self.split[0]] = 0.0
        return context + noise * measured

    def _features(self, context: Tensor) -> Tensor:
        readout, points, proprio = context.split(self.split, dim=1)
        hand, thing, goal = points.split(3, dim=1)
        ways = _MAGNIFY * torch.cat([thing - hand, goal - thing], dim=1)
        return torch.cat([self.summary(readout), points, ways, proprio], dim=1)
