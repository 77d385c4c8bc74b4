"""Discretised action tokens: every number of the chunk is one of equal bins, one after another.

Source: Brohan et al. 2023 (RT-2, arXiv:2307.15818), section 3.2, and Kim et al. 2024 (OpenVLA,
arXiv:2406.09246), section 3.2: 256 bins a dimension, predicted autoregressively with
cross-entropy. Departures: the tokens are those of an action expert that attends to the backbone
instead of words of its vocabulary, and they come in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla.model.heads.autoregressive import Autoregressive, TokenLikelihood
from vla.model.heads.base import Features, HeadConfig, LikelihoodHead, Sizes
from vla.model.heads.expert import ExpertConfig


@dataclass(frozen=True)
class TokenHeadConfig(HeadConfig):
    """Sizes.

    Attributes:
        expert: the transformer.
        bins: of one number, equally wide over [-1, 1].
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    bins: int = 256


class TokenHead(LikelihoodHead):
    """One token a number, control step by control step; a decision is the tokens int64 [n, t].

    Args:
        sizes: of features and chunks.
        config: sizes of the transformer, and bins.
    """

    attends = True

    def __init__(self, sizes: Sizes, config: TokenHeadConfig):
        super().__init__()
        self.config = config
        self.shape = (sizes.horizon, sizes.action)
        length = sizes.horizon * sizes.action
        self.decoder = Autoregressive(sizes, config.expert, config.bins, length)

    def loss(self, features: Features, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Mean cross-entropy of a number's bin over unpadded steps, nats."""
        kept = (~is_pad).float()
        total = -self.likelihood(features, self.tokens(actions)).log_prob()
        per_step = total / (self._real(features).sum(1, keepdim=True) / self.shape[0])
        return (per_step * kept).sum() / kept.sum().clamp_min(1.0)

    @torch.no_grad()
    def act(self, features: Features) -> Tensor:
        """The likeliest token each time."""
        return self.actions(self._generate(features, lambda logits: logits.argmax(-1)))

    @torch.no_grad()
    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Tokens drawn one after another."""

        def draw(logits: Tensor) -> Tensor:
            return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

        return self._generate(features, draw)

    def actions(self, decisions: Tensor) -> Tensor:
        """Centres of the bins."""
        centres = (decisions.float() + 0.5) * (2 / self.config.bins) - 1
        return centres.unflatten(1, self.shape)

    def tokens(self, actions: Tensor) -> Tensor:
        """The bins that normalised chunks [n, horizon, action] fall into, int64 [n, t]."""
        place = (actions.clamp(-1, 1) + 1) * (self.config.bins / 2)
        return place.long().clamp_max(self.config.bins - 1).flatten(1)

    def likelihood(self, features: Features, decisions: Tensor) -> TokenLikelihood:
        """Of tokens, all in one pass; a control step has those of its own numbers."""
        real = self._real(features)
        decisions = decisions.where(real, self._middle)
        logits = self.decoder(features, decisions)
        steps = torch.arange(self.shape[0], device=logits.device).repeat_interleave(self.shape[1])
        share = torch.nn.functional.one_hot(steps) * real[..., None].float()
        return TokenLikelihood(logits, decisions, share)

    def _generate(self, features: Features, pick: Callable[[Tensor], Tensor]) -> Tensor:
        real = self._real(features)
        return self.decoder.generate(
            features, lambda logits, place: pick(logits).where(real[:, place], self._middle)
        )

    @property
    def _middle(self) -> int:
        """The bin of 0, which stands wherever the robot has no number."""
        return self.config.bins // 2

    def _real(self, features: Features) -> Tensor:
        """Which tokens are of a number that the robot has, bool [n, t]."""
        count = len(features)
        if features.real is None:
            return features.mask.new_ones(count, self.decoder.length)
        return features.real.repeat(1, self.shape[0])
