"""What decides: a context (readout, points, proprioception, prompt) to a chunk of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla.model.heads.base import ActionHead, Features, HeadConfig, Likelihood, Sizes
from vla.model.heads.registry import make_head, require_likelihood
from vla.model.pointer import POINTS

_POINTS = 3 * len(POINTS)
_MAGNIFY = 16.0
"""Of the ways from hand to object and from object to target: at contact millimetres decide."""


class Actor(nn.Module):
    """The trainable end of the model; with a frozen backbone it is all that learns.

    A context is one vector a frame, so that frames can be stored, shuffled and trained on many
    times; the prompt's hidden states are part of it only for a head that attends to them.

    Args:
        width: of the readout and of the prompt's hidden states.
        prompt: tokens of the prompt.
        proprio_dim: numbers of proprioception in the context.
        summary: width to which the readout is projected for the head.
        horizon: control steps a chunk.
        action_dim: numbers a control step.
        head: which head, and its settings.
        shared: several robots act with it, so the context says which numbers of proprioception and
            action are real, and the head sees that.
    """

    def __init__(
        self,
        width: int,
        prompt: int,
        proprio_dim: int,
        summary: int,
        horizon: int,
        action_dim: int,
        head: HeadConfig,
        shared: bool = False,
    ):
        super().__init__()
        self.summary = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, summary))
        told = proprio_dim + action_dim if shared else 0
        features = summary + _POINTS + 6 + proprio_dim + told
        self.head: ActionHead = make_head(Sizes(features, width, horizon, action_dim), head)
        self.shared = shared
        self.width, self.prompt = width, prompt if self.head.attends else 0
        spreads = len(POINTS)
        self.split = (width, _POINTS, proprio_dim, spreads, told, self.prompt * width, self.prompt)

    def pack(
        self,
        readout: Tensor,
        points: Tensor,
        spread: Tensor,
        proprio: Tensor,
        present: Tensor,
        prompt: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Context float32 [n, sum of `split`].

        Args:
            readout: [n, width].
            points: [n, POINTS, 3].
            spread: [n, POINTS], of the points in the pictures; not for the head, see `VLA.hold`.
            proprio: [n, proprio].
            present: bool [n, proprio + action], which of these numbers the robot has.
            prompt: hidden states [n, tokens, width].
            mask: bool [n, tokens], False at padding.
        """
        parts = [readout, points.flatten(1), proprio, spread]
        if self.shared:
            parts.append(present.float())
        if self.head.attends:
            parts += [prompt.flatten(1), mask.float()]
        return torch.cat(parts, dim=1)

    def features(self, context: Tensor) -> Features:
        """What the head sees."""
        readout, points, proprio, _, told, prompt, mask = context.split(self.split, dim=1)
        hand, thing, goal = points.split(3, dim=1)
        ways = _MAGNIFY * torch.cat([thing - hand, goal - thing], dim=1)
        vector = torch.cat([self.summary(readout), points, ways, proprio, told], dim=1)
        real = told[:, proprio.shape[1] :] > 0 if self.shared else None
        return Features(vector, prompt.unflatten(1, (self.prompt, self.width)), mask > 0, real)

    def loss(self, context: Tensor, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Cloning loss for normalised actions [n, horizon, action]."""
        return self.head.loss(self.features(context), actions, is_pad)

    def act(self, context: Tensor) -> Tensor:
        """The chunk to execute, normalised [n, horizon, action]."""
        return self.head.act(self.features(context))

    def likelihood(self, context: Tensor, decisions: Tensor) -> Likelihood:
        """How likely the head's decisions were in these contexts."""
        head = require_likelihood(self.head, "reinforcement")
        return head.likelihood(self.features(context), decisions)

    def points(self, context: Tensor) -> Tensor:
        """Where the things are thought to be, in the model's units: [n, POINTS, 3]."""
        return context.split(self.split, dim=1)[1].unflatten(1, (len(POINTS), 3))

    def replace_points(self, context: Tensor, points: Tensor) -> Tensor:
        """The context with these points [n, POINTS, 3] in place of its own."""
        readout, _, *rest = context.split(self.split, dim=1)
        return torch.cat([readout, points.flatten(1), *rest], dim=1)

    def spread(self, context: Tensor) -> Tensor:
        """How unsure the pictures left each point, see `Pointing.spread`: [n, POINTS]."""
        return context.split(self.split, dim=1)[3]

    def perturb(self, context: Tensor, noise: Tensor) -> Tensor:
        """Add `noise` [n, points and proprioception] to a context's points and proprioception."""
        readout, points, proprio, *rest = context.split(self.split, dim=1)
        if self.shared:  # what the robot does not have stays 0
            has = rest[1][:, : proprio.shape[1]]
            noise = torch.cat([noise[:, : points.shape[1]], noise[:, points.shape[1] :] * has], 1)
        measured = torch.cat([points, proprio], dim=1) + noise
        return torch.cat([readout, measured, *rest], dim=1)

    @property
    def measured(self) -> int:
        """Numbers of points and proprioception."""
        return self.split[1] + self.split[2]
