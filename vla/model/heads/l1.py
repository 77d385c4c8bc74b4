"""L1 regression with parallel decoding: the whole chunk in one pass.

Source: Kim et al. 2025 (OpenVLA-OFT, arXiv:2502.19645), section IV: parallel decoding, chunks and
an L1 objective instead of tokens. Departures: the empty action embeddings are positions of an
action expert that attends to the backbone, not of the language model itself. And the chunk is a sum
of what the expert says and of what an MLP says of the vector alone. The expert's share starts at 0,
so a model that has not learned yet where to look learns as fast as a convolutional network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vla.model.heads.base import ActionHead, HeadConfig, HeadDims, HeadInputs, mean_of_steps
from vla.model.heads.expert import ActionExpert, ExpertConfig
from vla.settings import require_numbers


@dataclass(frozen=True)
class L1HeadConfig(HeadConfig):
    """Sizes.

    Attributes:
        expert: the transformer.
        hidden: width of the two hidden layers that read the vector alone; 0 leaves them out.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    hidden: int = 256

    def __post_init__(self) -> None:
        require_numbers(self)


class L1Head(ActionHead):
    """One position a control step, all decoded at once; it has no likelihood.

    Args:
        dims: of inputs and chunks.
        config: sizes.
    """

    attends = True

    def __init__(self, dims: HeadDims, config: L1HeadConfig):
        super().__init__()
        self.config = config
        # Learned queries in place of actions: nothing is fed back, so one pass decodes the chunk.
        # As large as hidden states are: all else in a query is the same for every step, and with
        # nearly equal queries it takes hundreds of updates until the steps differ.
        self.steps = nn.Parameter(torch.randn(dims.chunk_length, config.expert.width))
        self.expert = ActionExpert(dims, config.expert)
        self.out = nn.Linear(config.expert.width, dims.action)
        self.direct: nn.Module | None = None
        if config.hidden:
            self.direct = nn.Sequential(
                nn.Linear(dims.vector, config.hidden),
                nn.SiLU(),
                nn.Linear(config.hidden, config.hidden),
                nn.SiLU(),
                nn.Linear(config.hidden, dims.chunk_length * dims.action),
                nn.Unflatten(-1, (dims.chunk_length, dims.action)),
            )
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def loss(self, inputs: HeadInputs, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Mean absolute error over unpadded steps."""
        per_step = inputs.mean((self._chunk(inputs) - actions).abs())
        return mean_of_steps(per_step, is_pad)

    def act(self, inputs: HeadInputs) -> Tensor:
        """The regressed chunk, clipped to [-1, 1]."""
        return self._chunk(inputs).clamp(-1, 1)

    def _chunk(self, inputs: HeadInputs) -> Tensor:
        # Not clipped here: beyond the range the loss would have no gradient.
        queries = self.steps.expand(inputs.vector.shape[0], -1, -1)
        chunk = self.out(self.expert(queries, inputs))  # [n, chunk_length, action]
        return chunk if self.direct is None else chunk + self.direct(inputs.vector)
