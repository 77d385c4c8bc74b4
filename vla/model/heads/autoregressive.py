"""Tokens one after another by an action expert, and how likely they were."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.model.heads.base import HeadDims, HeadInputs, Likelihood, LikelihoodHead
from vla.model.heads.expert import ActionExpert, ExpertConfig


@dataclass(frozen=True)
class TokenLikelihood(Likelihood):
    """Of token sequences; a part is a token, given those before it.

    Attributes:
        logits: float32 [n, t, vocabulary]; -inf where a token could not come.
        tokens: int64 [n, t].
        share: float32 [n, t, chunk_length], how much of a token belongs to a control step; 0 for
            positions after the end of the sequence and for dimensions that the robot lacks.
    """

    logits: Tensor
    tokens: Tensor
    share: Tensor

    def log_prob(self) -> Tensor:
        """Log-probability of each token, [n, t]."""
        return self.logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """Of what each token was drawn from, [n, t]."""
        log_p = self.logits.log_softmax(-1)
        # -sum p log p over the vocabulary; impossible tokens add 0.
        return -(log_p.exp() * _finite(log_p)).sum(-1)

    def kl(self, reference: TokenLikelihood) -> Tensor:
        """KL(self || reference) of each token, [n, t]."""
        # Both distributions rule out the same tokens, so no p > 0 meets a reference of 0.
        log_p, other = self.logits.log_softmax(-1), reference.logits.log_softmax(-1)
        return (log_p.exp() * (_finite(log_p) - _finite(other))).sum(-1)

    def weight(self, executed: Bool[Tensor, "n chunk"]) -> Float[Tensor, "n t"]:
        """The share of each token in the executed control steps."""
        return torch.einsum("nh,nth->nt", executed.to(self.share), self.share)

    def per_step(self, values: Tensor) -> Tensor:
        """Values of tokens [n, t], shared out over the control steps: [n, chunk_length]."""
        return torch.einsum("nt,nth->nh", values, self.share)

    def at(self, temperature: float) -> TokenLikelihood:
        """Of tokens drawn with logits divided by a temperature."""
        return replace(self, logits=self.logits / temperature)


def _finite(log_p: Tensor) -> Tensor:
    """With 0 for impossible tokens, whose probability of 0 would turn -inf into NaN."""
    return log_p.masked_fill(log_p.isneginf(), 0.0)


class Autoregressive(nn.Module):
    """Sequences of `length` tokens.

    Args:
        dims: of inputs.
        config: sizes of the transformer.
        vocabulary: tokens to choose from.
        length: of the longest sequence.
    """

    causal: Tensor

    def __init__(self, dims: HeadDims, config: ExpertConfig, vocabulary: int, length: int):
        super().__init__()
        self.length = length
        # One more row: what comes before the first token.
        self.embedding = nn.Embedding(vocabulary + 1, config.width)
        self.position_embedding = nn.Parameter(torch.randn(length, config.width) * 0.02)
        self.expert = ActionExpert(dims, config)
        self.out = nn.Linear(config.width, vocabulary)
        # [t, t], row attends to column
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """Logits [n, t, vocabulary] of every token of int64 [n, t], given those before it."""
        # Teacher forcing: position t reads token t - 1, position 0 the row that stands for the
        # beginning.
        begin = tokens.new_full((tokens.shape[0], 1), self.embedding.num_embeddings - 1)
        # -1, after the end, is no row of the embedding; what follows it has no share in a
        # likelihood.
        before = torch.cat([begin, tokens[:, :-1].clamp_min(0)], dim=1)
        count = tokens.shape[1]
        queries = self.embedding(before) + self.position_embedding[:count]  # [n, t, width]
        return self.out(self.expert(queries, inputs, self.causal[:count, :count]))

    def next_logits(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """Logits [n, vocabulary] of the token after int64 [n, t]."""
        # The token to come may have any value: `forward` does not read it. The whole prefix is
        # computed again for every token, since the sequences are short.
        return self(inputs, torch.nn.functional.pad(tokens, (0, 1)))[:, -1]


class AutoregressiveHead(LikelihoodHead):
    """A head whose chunk is a sequence of tokens, each chosen after those before it.

    Attributes:
        temperature: of samples and of their likelihood, set while reinforcing: above 1 they vary
            more than the demonstrations did. Cloning and greedy decisions know none.
    """

    decoder: Autoregressive
    temperature: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.decoder.length

    @abstractmethod
    def next_token(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """The greedy token int64 [n] after int64 [n, t]; negative where the chunk has ended."""

    @abstractmethod
    def untempered(self, inputs: HeadInputs, samples: Tensor) -> TokenLikelihood:
        """How likely tokens are at temperature 1, all in one pass."""

    def likelihood(self, inputs: HeadInputs, samples: Tensor) -> TokenLikelihood:
        """Of tokens, at the temperature at which they are drawn."""
        return self.untempered(inputs, samples).at(self.temperature)

    @torch.no_grad()
    def act(self, inputs: HeadInputs) -> Tensor:
        """The chunk of the greedy tokens."""
        return self.actions(self.generate(inputs, lambda tokens: self.next_token(inputs, tokens)))

    def generate(self, inputs: HeadInputs, following: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens int64 [n, length], each chosen as `following` those before it.

        A negative choice ends a row; once all have ended, the rest is -1.
        """
        tokens = torch.zeros(len(inputs), 0, dtype=torch.long, device=inputs.vector.device)
        for index in range(self.length):
            if index and (tokens[:, -1] < 0).all():
                return torch.nn.functional.pad(tokens, (0, self.length - index), value=-1)
            tokens = torch.cat([tokens, following(tokens)[:, None]], dim=1)
        return tokens
