"""The actor: features of an observation to a chunk of normalised actions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from vla.model.features import Features
from vla.model.heads.base import (
    ActionHead,
    HeadConfig,
    HeadDims,
    HeadInputs,
    InpaintingHead,
    Likelihood,
)
from vla.model.heads.registry import make_head, require_likelihood, require_reparameterised
from vla.model.points import PointsConfig


class Actor(nn.Module):
    """The last part of the model, features to actions; with a frozen backbone only this is trained.

    A head works in [-1, 1]. What normalised actions reach beyond that, such as three standard
    deviations, is scaled by `action_bound` on the way in and out, so that every normalisation can
    command what was demonstrated.

    Args:
        width: of the readout and of the prompt's hidden states.
        proprio_dim: dimensions of proprioception.
        readout_dim: width to which the readout is projected for the head.
        chunk_length: control steps a chunk.
        action_dim: dimensions of a control step.
        head: which head, and its settings.
        points: which points it reads, and which relative positions of them.
        action_bound: largest magnitude of each normalised action dimension; empty for 1.
        shared: several robots act with it, so the head reads which dimensions a robot has.
    """

    action_bound: Tensor

    def __init__(
        self,
        width: int,
        proprio_dim: int,
        readout_dim: int,
        chunk_length: int,
        action_dim: int,
        head: HeadConfig,
        points: PointsConfig,
        action_bound: tuple[float, ...] = (),
        shared: bool = False,
    ):
        super().__init__()
        self.readout_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, readout_dim))
        mask_dim = proprio_dim + action_dim if shared else 0
        # Readout, points, relative positions, proprioception and, where shared, the mask: the order
        # in which `head_inputs` concatenates them.
        positions = len(points) + len(points.relative)
        vector = readout_dim + 3 * positions + proprio_dim + mask_dim
        self.head: ActionHead = make_head(HeadDims(vector, width, chunk_length, action_dim), head)
        self.shared, self.action_dim = shared, action_dim
        self._pairs = [[points.names.index(n) for n in pair] for pair in points.relative]
        self._relative_gain = points.relative_gain
        # From the configuration, so a checkpoint holds it there and not among the weights.
        bound = torch.tensor(action_bound or (1.0,) * action_dim)
        self.register_buffer("action_bound", bound, persistent=False)

    def head_inputs(self, features: Features) -> HeadInputs:
        """What the head reads."""
        parts = [self.readout_projection(features.readout), *self._positions(features.points)]
        parts.append(features.proprio)
        action_mask = None
        if self.shared:
            parts.append(features.dim_mask.to(features.proprio.dtype))
            # `dim_mask` is [proprio, action]; the head leaves missing action dimensions out of its
            # loss.
            action_mask = features.dim_mask[:, -self.action_dim :]
        vector = torch.cat(parts, dim=1)  # [n, vector]
        return HeadInputs(vector, features.prompt, features.prompt_mask, action_mask)

    def _positions(self, points: Float32[Tensor, "n points 3"]) -> list[Tensor]:
        """The points [n, points * 3] and their relative positions [n, pairs * 3], if any."""
        if not points.shape[1]:
            return []
        relative = [points[:, second] - points[:, first] for first, second in self._pairs]
        scaled = [self._relative_gain * torch.cat(relative, dim=1)] if relative else []
        return [points.flatten(1), *scaled]

    def loss(
        self,
        features: Features,
        actions: Float32[Tensor, "n chunk action"],
        is_pad: Bool[Tensor, "n chunk"],
    ) -> Float32[Tensor, ""]:
        """Cloning loss for normalised actions [n, chunk_length, action]."""
        # The head learns in [-1, 1]: demonstrated actions may be beyond that, see `action_bound`.
        return self.head.loss(self.head_inputs(features), actions / self.action_bound, is_pad)

    def act(self, features: Features) -> Float32[Tensor, "n chunk action"]:
        """The greedy chunk, normalised [n, chunk_length, action]."""
        return self.head.act(self.head_inputs(features)) * self.action_bound

    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Samples [n, ...] as the head draws them; see `LikelihoodHead`."""
        head = require_likelihood(self.head, "sampling")
        return head.sample(self.head_inputs(features), generator)

    def actions(self, samples: Tensor) -> Float32[Tensor, "n chunk action"]:
        """The chunks that samples stand for, normalised [n, chunk_length, action]."""
        # Samples stay as the head drew them, since likelihoods are of them; only the chunk is
        # scaled.
        return require_likelihood(self.head, "sampling").actions(samples) * self.action_bound

    def likelihood(self, features: Features, samples: Tensor) -> Likelihood:
        """How likely these samples were, given these features."""
        head = require_likelihood(self.head, "reinforcement")
        return head.likelihood(self.head_inputs(features), samples)

    def rsample(
        self, features: Features, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Random chunks, normalised, and their log density [n, chunk_length]; both with a gradient.

        The density is that of the chunk in [-1, 1], which differs by a constant where
        `action_bound` is not 1.
        """
        head = require_reparameterised(self.head, "rsample")
        chunk, log_prob = head.rsample(self.head_inputs(features), generator)
        return chunk * self.action_bound, log_prob

    def keep_in_range(self) -> None:
        """See `ReparameterisedHead.keep_in_range`."""
        require_reparameterised(self.head, "rsample").keep_in_range()

    def log_std_parameters(self) -> list[nn.Parameter]:
        """See `LikelihoodHead.log_std_parameters`."""
        return require_likelihood(self.head, "reinforcement").log_std_parameters()

    def inpaint(
        self,
        features: Features,
        target: Float32[Tensor, "n chunk action"],
        weight: Float32[Tensor, "n chunk"],
    ) -> Float32[Tensor, "n chunk action"]:
        """A chunk near normalised `target` [n, chunk_length, action] where `weight` is near 1.

        Args:
            features: of n observations.
            target: float32 [n, chunk_length, action].
            weight: float32 [n, chunk_length], 0 to 1.

        Raises:
            TypeError: the head cannot complete a chunk.
        """
        if not isinstance(self.head, InpaintingHead):
            raise TypeError(f"{type(self.head).__name__} cannot complete a chunk; flow can")
        inputs = self.head_inputs(features)
        return self.head.inpaint(inputs, target / self.action_bound, weight) * self.action_bound
