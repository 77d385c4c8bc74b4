"""The action expert: a small transformer whose positions attend to the backbone's hidden states.

Shared by the heads that decide with attention. Source: the action experts of Black et al. 2024
(pi0, arXiv:2410.24164) and of Shukor et al. 2025 (SmolVLA, arXiv:2506.01844). Departures: it reads
one layer of the backbone by cross-attention, and the points that the pointer found come in as one
more token, which is also added to every position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla.model.heads.base import Features, Sizes


@dataclass(frozen=True)
class ExpertConfig:
    """Sizes of an action expert.

    Attributes:
        width: of its hidden states.
        layers: each self-attention, attention to the backbone, and a feed-forward part.
        heads: attention heads.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4


class ActionExpert(nn.Module):
    """Queries to hidden states that know of the observation.

    Args:
        sizes: of features.
        config: sizes of the transformer.
    """

    def __init__(self, sizes: Sizes, config: ExpertConfig):
        super().__init__()
        width = config.width
        self.vector = nn.Sequential(
            nn.Linear(sizes.vector, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.memory = nn.Linear(sizes.memory, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                config.heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, features: Features, visible: Tensor | None = None) -> Tensor:
        """Hidden states [n, q, width] of queries [n, q, width].

        Args:
            queries: one position each.
            features: of the n observations.
            visible: bool [q, q], which position (row) sees which; all see all where None.
        """
        vector = self.vector(features.vector)[:, None]
        memory = torch.cat([vector, self.memory(features.memory)], dim=1)
        hidden_memory = nn.functional.pad(~features.mask, (1, 0), value=False)
        hidden = queries + vector
        for layer in self.layers:
            hidden = layer(
                hidden,
                memory,
                tgt_mask=None if visible is None else ~visible,
                memory_key_padding_mask=hidden_memory,
            )
        return self.norm(hidden)
