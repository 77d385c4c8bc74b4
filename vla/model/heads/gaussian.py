"""Squashed-Gaussian action-chunk head: a diagonal Gaussian per chunk, squashed by tanh.

Source: the squashed Gaussian of Haarnoja et al. 2018 (arXiv:1801.01290, appendix C), over a chunk
of actions (Zhao et al. 2023, arXiv:2304.13705). Departures: the standard deviation does not depend
on the state and keeps to a range, and the log-probability is returned a control step at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.model.heads import normal
from vla.model.heads.base import (
    HeadConfig,
    HeadDims,
    HeadInputs,
    Likelihood,
    LikelihoodHead,
    ReparameterisedHead,
    mean_of_steps,
    zero_missing,
)
from vla.settings import require_numbers

_EDGE = 0.98  # demonstrated actions are scaled by this before atanh, which is infinite at 1


@dataclass(frozen=True)
class GaussianHeadConfig(HeadConfig):
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

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("hidden",),
            any_sign=("log_std_min", "log_std_max", "log_std_start"),
            at_most={"dropout": 1 - 1e-6},
        )


@dataclass(frozen=True)
class GaussianLikelihood(Likelihood):
    """Of samples of a diagonal Gaussian, squashed or not.

    Attributes:
        mean: float32 [n, chunk_length, action], before squashing.
        log_std: float32 broadcastable to `mean`.
        sample: float32 as `mean`, before squashing.
        action_mask: as in `HeadInputs`.
    """

    mean: Tensor
    log_std: Tensor
    sample: Tensor
    action_mask: Tensor | None = None

    def log_prob(self) -> Tensor:
        """Log density of `tanh(sample)`, [n, chunk_length], summed over action dimensions."""
        # log p(a) = log N(u) - log(1 - tanh(u)^2) for a = tanh(u): equation 21 of Haarnoja et al.
        gaussian = normal.log_density(self.sample, self.mean, self.log_std)
        return zero_missing(gaussian - log_squash(self.sample), self.action_mask).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy before squashing, [n, chunk_length]; the squashed one has no closed form."""
        each = normal.entropy(self.log_std).expand_as(self.mean)
        return zero_missing(each, self.action_mask).sum(-1)

    def kl(self, reference: GaussianLikelihood) -> Tensor:
        """KL(self || reference), [n, chunk_length]; squashing leaves it unchanged."""
        each = normal.kl(self.mean, self.log_std, reference.mean, reference.log_std)
        return zero_missing(each, self.action_mask).sum(-1)


def log_squash(sample: Tensor) -> Tensor:
    """log(1 - tanh(u)^2) of samples before squashing, in the form that does not underflow."""
    return 2.0 * (math.log(2.0) - sample - F.softplus(-2.0 * sample))


class GaussianHead(LikelihoodHead, ReparameterisedHead):
    """HeadInputs to a squashed Gaussian; a sample is the value before squashing.

    Args:
        dims: of inputs and chunks.
        config: sizes and noise.
    """

    def __init__(self, dims: HeadDims, config: GaussianHeadConfig):
        super().__init__()
        self.config = config
        self.shape = (dims.chunk_length, dims.action)
        self.layers = nn.Sequential(
            nn.Linear(dims.vector, config.hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, dims.chunk_length * dims.action),
        )
        self.raw_log_std = nn.Parameter(torch.full(self.shape, config.log_std_start))

    def loss(self, inputs: HeadInputs, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Negative log-likelihood before squashing, without the constant."""
        # [n, chunk_length, action]: the Gaussian is that before squashing, so actions go back
        # through atanh.
        target = torch.atanh(actions.clamp(-1, 1) * _EDGE)
        mean, log_std = self._mean(inputs), self._log_std()
        z = (target - mean) * (-log_std).exp()
        # A missing dimension is always 0 and would drive its deviation to `log_std_min`.
        per_step = inputs.zero_missing(0.5 * z.square() + log_std).sum(-1)
        return mean_of_steps(per_step, is_pad)

    def act(self, inputs: HeadInputs) -> Tensor:
        """Squashed mean, in (-1, 1)."""
        # The median of the squashed Gaussian; its mean has no closed form.
        return self._mean(inputs).tanh()

    def sample(self, inputs: HeadInputs, generator: torch.Generator | None = None) -> Tensor:
        """Unsquashed samples [n, chunk_length, action]."""
        mean = self._mean(inputs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + noise * self._log_std().exp()

    def rsample(
        self, inputs: HeadInputs, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Squashed samples, 0 at dimensions that the robot does not have."""
        mean, log_std = self._mean(inputs), self._log_std()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        drawn = mean + noise * log_std.exp()
        # As `GaussianLikelihood.log_prob`, but (u - m) / s is the noise itself, and has no
        # gradient: a third of the operations.
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = inputs.zero_missing(density - log_squash(drawn)).sum(-1)
        return inputs.zero_missing(drawn.tanh()), log_prob

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """The log standard deviation, between the ends of its range."""
        self.raw_log_std.clamp_(self.config.log_std_min, self.config.log_std_max)

    def actions(self, samples: Tensor) -> Tensor:
        """Squashed samples."""
        return samples.tanh()

    def likelihood(self, inputs: HeadInputs, samples: Tensor) -> GaussianLikelihood:
        """Of unsquashed samples."""
        return GaussianLikelihood(self._mean(inputs), self._log_std(), samples, inputs.action_mask)

    def log_std_parameters(self) -> list[nn.Parameter]:
        """The log standard deviation, [chunk_length, action]."""
        return [self.raw_log_std]

    def _mean(self, inputs: HeadInputs) -> Tensor:
        return self.layers(inputs.vector).unflatten(-1, self.shape)

    def _log_std(self) -> Tensor:
        return self.raw_log_std.clamp(self.config.log_std_min, self.config.log_std_max)
