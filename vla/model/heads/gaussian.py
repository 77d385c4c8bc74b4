"""Squashed-Gaussian action-chunk head: a diagonal Gaussian per chunk, squashed by tanh.

Source: the squashed Gaussian of Haarnoja et al. 2018 (arXiv:1801.01290, appendix C), over a chunk
of actions (Zhao et al. 2023, arXiv:2304.13705). Departures: the standard deviation does not depend
on the state and keeps to a range, and the log-probability is returned a control step at a time, so
that a caller may count only the steps that were executed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EDGE = 0.98  # demonstrated actions are drawn in to this before atanh, which is endless at 1


@dataclass(frozen=True)
class GaussianHeadConfig:
    """Sizes and the range of the noise.

    Attributes:
        hidden: width of the two hidden layers.
        dropout: share of hidden units dropped while cloning; 0 in reinforcement.
        log_std_min: lower end of the log standard deviation before squashing.
        log_std_max: upper end.
        log_std_start: where it starts.
    """

    hidden: int = 256
    dropout: float = 0.0
    log_std_min: float = -2.5
    log_std_max: float = 0.0
    log_std_start: float = -1.0


@dataclass
class ActionDistribution:
    """A squashed diagonal Gaussian over chunks.

    Attributes:
        mean: float32 [n, horizon, action], before squashing.
        log_std: float32 broadcastable to `mean`.
    """

    mean: Tensor
    log_std: Tensor

    def mode(self) -> Tensor:
        """Squashed mean, in (-1, 1): the greedy chunk."""
        return self.mean.tanh()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Unsquashed sample [n, horizon, action]; its `tanh` is the action."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + noise * self.log_std.exp()

    def log_prob(self, unsquashed: Tensor) -> Tensor:
        """Log density of `tanh(unsquashed)`, [n, horizon], summed over action dimensions."""
        z = (unsquashed - self.mean) * (-self.log_std).exp()
        gaussian = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), in the form that does not underflow
        squash = 2.0 * (math.log(2.0) - unsquashed - F.softplus(-2.0 * unsquashed))
        return (gaussian - squash).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy before squashing, [n, horizon]; the squashed one has no closed form."""
        per_dimension = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return per_dimension.expand_as(self.mean).sum(-1)

    def kl(self, reference: ActionDistribution) -> Tensor:
        """KL(self || reference), [n, horizon]; squashing leaves it unchanged."""
        ratio = (2 * (self.log_std - reference.log_std)).exp()
        shift = (self.mean - reference.mean).square() * (-2 * reference.log_std).exp()
        return (0.5 * (ratio + shift - 1) - self.log_std + reference.log_std).sum(-1)


class GaussianHead(nn.Module):
    """Features to a distribution over chunks; it has a likelihood, so PPO and its kin can train it.

    Args:
        features: width of the input.
        horizon: control steps a chunk.
        action_dim: numbers a control step.
        config: sizes.
    """

    def __init__(self, features: int, horizon: int, action_dim: int, config: GaussianHeadConfig):
        super().__init__()
        self.config = config
        self.shape = (horizon, action_dim)
        self.layers = nn.Sequential(
            nn.Linear(features, config.hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, horizon * action_dim),
        )
        self.raw_log_std = nn.Parameter(torch.full(self.shape, config.log_std_start))

    def forward(self, features: Tensor) -> ActionDistribution:
        """Distribution for features [n, features]."""
        mean = self.layers(features).unflatten(-1, self.shape)
        log_std = self.raw_log_std.clamp(self.config.log_std_min, self.config.log_std_max)
        return ActionDistribution(mean, log_std)

    def loss(self, features: Tensor, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Negative log-likelihood of normalised actions [n, horizon, action], a scalar.

        Before squashing, and without the constant; padded steps (`is_pad` [n, horizon]) are left
        out.
        """
        target = torch.atanh(actions.clamp(-1, 1) * _EDGE)
        distribution = self(features)
        z = (target - distribution.mean) * (-distribution.log_std).exp()
        per_step = (0.5 * z.square() + distribution.log_std).sum(-1)
        kept = (~is_pad).float()
        return (per_step * kept).sum() / kept.sum().clamp_min(1.0)
