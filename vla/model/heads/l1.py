"""L1 regression with parallel decoding: the whole chunk in one pass.

Source: Kim et al. 2025 (OpenVLA-OFT, arXiv:2502.19645), section IV: parallel decoding, chunks and
an L1 objective instead of tokens. Departure: the empty action embeddings are positions of an action
expert that attends to the backbone, not of the language model itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vla.model.heads.base import ActionHead, Features, HeadConfig, Sizes
from vla.model.heads.expert import ActionExpert, ExpertConfig


@dataclass(frozen=True)
class L1HeadConfig(HeadConfig):
    """Sizes.

    Attributes:
        expert: the transformer.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)


class L1Head(ActionHead):
    """One position a control step, all decoded at once; it has no likelihood.

    Args:
        sizes: of features and chunks.
        config: sizes of the transformer.
    """

    attends = True

    def __init__(self, sizes: Sizes, config: L1HeadConfig):
        super().__init__()
        self.config = config
        self.steps = nn.Parameter(torch.randn(sizes.horizon, config.expert.width) * 0.02)
        self.expert = ActionExpert(sizes, config.expert)
        self.out = nn.Linear(config.expert.width, sizes.action)

    def loss(self, features: Features, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Mean absolute error over unpadded steps."""
        kept = (~is_pad).float()
        per_step = features.mean((self._chunk(features) - actions).abs())
        return (per_step * kept).sum() / kept.sum().clamp_min(1.0)

    def act(self, features: Features) -> Tensor:
        """The regressed chunk, drawn in to [-1, 1]."""
        return self._chunk(features).clamp(-1, 1)

    def _chunk(self, features: Features) -> Tensor:
        return self.out(self.expert(self.steps.expand(len(features), -1, -1), features))
