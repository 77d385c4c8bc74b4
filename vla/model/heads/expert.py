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

from vla.model.heads.base import HeadDims, HeadInputs
from vla.settings import require_numbers


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

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("width", "layers", "heads"))


class ActionExpert(nn.Module):
    """Queries to hidden states that depend on the observation.

    Args:
        dims: of inputs.
        config: sizes of the transformer.
    """

    def __init__(self, dims: HeadDims, config: ExpertConfig):
        super().__init__()
        width = config.width
        self.vector = nn.Sequential(
            nn.Linear(dims.vector, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.prompt_projection = nn.Linear(dims.prompt, width)
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

    def forward(self, queries: Tensor, inputs: HeadInputs, visible: Tensor | None = None) -> Tensor:
        """Hidden states [n, q, width] of queries [n, q, width].

        Args:
            queries: one position each.
            inputs: of the n observations.
            visible: bool [q, q], which position (row) sees which; all see all where None.
        """
        vector = self.vector(inputs.vector)[:, None]  # [n, 1, width]
        # The prompt may be bfloat16, in the precision of a large backbone; the expert is float32.
        prompt = self.prompt_projection(inputs.prompt.to(vector.dtype))
        memory = torch.cat([vector, prompt], dim=1)  # [n, 1 + tokens, width]
        # [n, 1 + tokens], True where ignored; the vector in front is never padding.
        is_padding = nn.functional.pad(~inputs.prompt_mask, (1, 0), value=False)
        hidden = queries + vector
        for layer in self.layers:
            hidden = layer(
                hidden,
                memory,
                tgt_mask=None if visible is None else ~visible,  # True forbids in PyTorch
                memory_key_padding_mask=is_padding,
            )
        return self.norm(hidden)
