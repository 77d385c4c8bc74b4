"""Discretised action tokens: every dimension of every step is one of equal bins, one by one.

Source: Brohan et al. 2023 (RT-2, arXiv:2307.15818), section 3.2, and Kim et al. 2024 (OpenVLA,
arXiv:2406.09246), section 3.2: 256 bins a dimension, predicted autoregressively with
cross-entropy. Departures: the tokens are those of an action expert that attends to the backbone
instead of words of its vocabulary, and they come in chunks. The model overfits a
few dozen demonstrations when each number has one right bin of 256, so the bins around it count too
(HL-Gauss, Imani and White 2018, arXiv:1806.04613; Farebrother et al. 2024, arXiv:2403.03950), and
the tokens before are drawn with the same noise, so that a token does not just copy the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vla.model.heads.autoregressive import Autoregressive, AutoregressiveHead, TokenLikelihood
from vla.model.heads.base import HeadConfig, HeadDims, HeadInputs, mean_of_steps
from vla.model.heads.expert import ExpertConfig
from vla.settings import require_numbers


@dataclass(frozen=True)
class TokenHeadConfig(HeadConfig):
    """Sizes and bins.

    Attributes:
        expert: the transformer.
        bins: of one number, equally wide over [-1, 1].
        label_smoothing: std of the Gaussian around a demonstrated number, whose share of each bin
            is learned; 0 for the number's own bin alone.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    bins: int = 256
    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("bins",))


class TokenHead(AutoregressiveHead):
    """One token a number, control step by control step; a sample is the tokens int64 [n, t].

    Args:
        dims: of inputs and chunks.
        config: sizes of the transformer, and bins.
    """

    attends = True

    def __init__(self, dims: HeadDims, config: TokenHeadConfig):
        super().__init__()
        self.config = config
        self.shape = (dims.chunk_length, dims.action)
        length = dims.chunk_length * dims.action
        self.decoder = Autoregressive(dims, config.expert, config.bins, length)

    def loss(self, inputs: HeadInputs, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Mean cross-entropy of a number's bins over unpadded steps, nats."""
        # [n, t]: tokens that are read are noisy, targets are not, so copying the last one costs.
        before = self.tokens(actions + self.config.label_smoothing * torch.randn_like(actions))
        guess = self.untempered(inputs, before)
        # [n, chunk_length]: cross-entropy with soft labels, summed over the dimensions of a step.
        total = guess.per_step(-(self._shares(actions) * guess.logits.log_softmax(-1)).sum(-1))
        # [n, chunk_length]: divided by the dimensions that the robot has.
        per_step = total / (self._token_mask(inputs).sum(1, keepdim=True) / self.shape[0])
        return mean_of_steps(per_step, is_pad)

    def next_token(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """The mean of what the token may be: of many bins that are learned, none stands out."""
        logits = self.decoder.next_logits(inputs, tokens)
        centres = self._centres(torch.arange(self.config.bins, device=logits.device))
        # Back to a bin, since the next token is predicted from the bins before it.
        mean = self.tokens((logits.softmax(-1) @ centres)[:, None])[:, 0]
        return self._zero_if_missing(inputs, mean, tokens.shape[1])

    @torch.no_grad()
    def sample(self, inputs: HeadInputs, generator: torch.Generator | None = None) -> Tensor:
        """Tokens drawn one after another."""

        def draw(tokens: Tensor) -> Tensor:
            logits = self.decoder.next_logits(inputs, tokens) / self.temperature
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            return self._zero_if_missing(inputs, token, tokens.shape[1])

        return self.generate(inputs, draw)

    def actions(self, samples: Tensor) -> Tensor:
        """Centres of the bins."""
        return self._centres(samples).unflatten(1, self.shape)

    def _centres(self, tokens: Tensor) -> Tensor:
        return (tokens.float() + 0.5) * (2 / self.config.bins) - 1

    def tokens(self, actions: Tensor) -> Tensor:
        """The bins that normalised numbers [n, ...] fall into, int64 [n, t]."""
        place = (actions.clamp(-1, 1) + 1) * (self.config.bins / 2)
        return place.long().clamp_max(self.config.bins - 1).flatten(1)

    def _shares(self, actions: Tensor) -> Tensor:
        """How much each bin has of normalised chunks [n, chunk_length, action]: [n, t, bins]."""
        if not self.config.label_smoothing:
            return one_hot(self.tokens(actions), self.config.bins).float()
        edges = torch.linspace(-1, 1, self.config.bins + 1, device=actions.device)  # [bins + 1]
        around = actions.clamp(-1, 1).flatten(1)[..., None]
        # HL-Gauss: mass of N(action, label_smoothing) within each bin, [n, t, bins].
        shares = torch.special.ndtr((edges - around) / self.config.label_smoothing).diff(dim=-1)
        # Beyond [-1, 1] there are no bins: their mass goes to the others in proportion.
        return shares / shares.sum(-1, keepdim=True)

    def untempered(self, inputs: HeadInputs, samples: Tensor) -> TokenLikelihood:
        """Of tokens, all in one pass; a control step has those of its own numbers."""
        mask = self._token_mask(inputs)
        # Constant where the robot has no dimension, so that it tells later tokens nothing.
        samples = samples.where(mask, self._zero_bin)
        logits = self.decoder(inputs, samples)
        steps = torch.arange(self.shape[0], device=logits.device).repeat_interleave(self.shape[1])
        # [n, t, chunk_length]: a token belongs to the one step it is of.
        share = one_hot(steps) * mask[..., None].float()
        return TokenLikelihood(logits, samples, share)

    def _zero_if_missing(self, inputs: HeadInputs, token: Tensor, index: int) -> Tensor:
        """Tokens [n] at a place of the sequence, constant where the robot has no number."""
        if inputs.action_mask is None:
            return token
        has = inputs.action_mask[:, index % self.shape[1]]
        return token.where(has, self._zero_bin)

    @property
    def _zero_bin(self) -> int:
        """The bin of 0, which stands wherever the robot has no number."""
        return self.config.bins // 2

    def _token_mask(self, inputs: HeadInputs) -> Tensor:
        """Which tokens are of a number that the robot has, bool [n, t]."""
        count = len(inputs)
        if inputs.action_mask is None:
            return inputs.prompt_mask.new_ones(count, self.decoder.length)
        return inputs.action_mask.repeat(1, self.shape[0])
