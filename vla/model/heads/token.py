"""Discretised action tokens: every number of the chunk is one of equal bins, one after another.

Source: Brohan et al. 2023 (RT-2, arXiv:2307.15818), section 3.2, and Kim et al. 2024 (OpenVLA,
arXiv:2406.09246), section 3.2: 256 bins a dimension, predicted autoregressively with
cross-entropy. Departures: the tokens are those of an action expert that attends to the backbone
instead of words of its vocabulary, and they come in chunks. A few dozen demonstrations are learned
by heart when each number has one right bin among 256, so the bins around it count, too (HL-Gauss,
Imani and White 2018, arXiv:1806.04613; Farebrother et al. 2024, arXiv:2403.03950), and the tokens
before are drawn with the same spread, so that a number is not merely the last one again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vla.model.heads.autoregressive import Autoregressive, TokenLikelihood
from vla.model.heads.base import Features, HeadConfig, LikelihoodHead, Sizes
from vla.model.heads.expert import ExpertConfig


@dataclass(frozen=True)
class TokenHeadConfig(HeadConfig):
    """Sizes.

    Attributes:
        expert: the transformer.
        bins: of one number, equally wide over [-1, 1].
        spread: std of the Gaussian around a demonstrated number, whose share of each bin is
            learned; 0 for the number's own bin alone.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    bins: int = 256
    spread: float = 0.05


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
        """Mean cross-entropy of a number's bins over unpadded steps, nats."""
        kept = (~is_pad).float()
        before = self.tokens(actions + self.config.spread * torch.randn_like(actions))
        guess = self.likelihood(features, before)
        total = guess.per_step(-(self._shares(actions) * guess.logits.log_softmax(-1)).sum(-1))
        per_step = total / (self._real(features).sum(1, keepdim=True) / self.shape[0])
        return (per_step * kept).sum() / kept.sum().clamp_min(1.0)

    @torch.no_grad()
    def act(self, features: Features) -> Tensor:
        """The mean of what each token may be: of many bins that are learned, none stands out."""
        centres = self._centres(torch.arange(self.config.bins, device=features.vector.device))

        def mean(logits: Tensor) -> Tensor:
            return self.tokens((logits.softmax(-1) @ centres)[:, None])[:, 0]

        return self.actions(self._generate(features, mean))

    @torch.no_grad()
    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Tokens drawn one after another."""

        def draw(logits: Tensor) -> Tensor:
            return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

        return self._generate(features, draw)

    def actions(self, decisions: Tensor) -> Tensor:
        """Centres of the bins."""
        return self._centres(decisions).unflatten(1, self.shape)

    def _centres(self, tokens: Tensor) -> Tensor:
        return (tokens.float() + 0.5) * (2 / self.config.bins) - 1

    def tokens(self, actions: Tensor) -> Tensor:
        """The bins that normalised numbers [n, ...] fall into, int64 [n, t]."""
        place = (actions.clamp(-1, 1) + 1) * (self.config.bins / 2)
        return place.long().clamp_max(self.config.bins - 1).flatten(1)

    def _shares(self, actions: Tensor) -> Tensor:
        """How much each bin has of normalised chunks [n, horizon, action]: [n, t, bins]."""
        if not self.config.spread:
            return one_hot(self.tokens(actions), self.config.bins).float()
        edges = torch.linspace(-1, 1, self.config.bins + 1, device=actions.device)
        around = actions.clamp(-1, 1).flatten(1)[..., None]
        shares = torch.special.ndtr((edges - around) / self.config.spread).diff(dim=-1)
        return shares / shares.sum(-1, keepdim=True)

    def likelihood(self, features: Features, decisions: Tensor) -> TokenLikelihood:
        """Of tokens, all in one pass; a control step has those of its own numbers."""
        real = self._real(features)
        decisions = decisions.where(real, self._middle)
        logits = self.decoder(features, decisions)
        steps = torch.arange(self.shape[0], device=logits.device).repeat_interleave(self.shape[1])
        share = one_hot(steps) * real[..., None].float()
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
