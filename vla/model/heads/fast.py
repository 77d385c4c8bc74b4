"""FAST: the chunk's cosine transform, rounded and compressed into few tokens by byte-pair encoding.

Source: Pertsch et al. 2025 (FAST, arXiv:2501.09747), section V and algorithm 1: discrete cosine
transform along the chunk, scale and round, low frequencies of all dimensions first, byte-pair
encoding fitted on the data, tokens predicted autoregressively. Departures: the tokens are those of
an action expert; only tokens that fit into what is left of the chunk may come, so every sequence
decodes to a chunk and needs no end token; and since a token belongs to no one control step, the
sequence's log-probability is divided among the steps in equal parts.

For the same reason padding cannot be left out where several robots share the model: a token stands
for coefficients of real dimensions and of padded ones together. The zeros of padding are learned as
part of the chunk, cost few tokens, since the encoding merges what always comes together, and count
in the likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor

from vla.model.heads.autoregressive import Autoregressive, AutoregressiveHead, TokenLikelihood
from vla.model.heads.base import HeadConfig, HeadDims, HeadInputs
from vla.model.heads.expert import ExpertConfig
from vla.settings import require_numbers

_FIRST = 0x4E00  # letters from here on stand for whole numbers: one block without gaps


@dataclass(frozen=True)
class FastHeadConfig(HeadConfig):
    """Sizes and the fitted tokenizer.

    Attributes:
        expert: the transformer.
        scale: rounding steps a unit of a coefficient; larger is finer and longer.
        vocabulary: most tokens.
        limit: largest coefficient in rounding steps, fitted; larger ones are cut.
        bpe: the fitted tokenizer as its own JSON.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    scale: float = 20.0
    vocabulary: int = 512
    limit: int = 0
    bpe: str = ""

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("vocabulary",), above_0=("scale",))

    def fitted(self, actions: Tensor) -> FastHeadConfig:
        """With byte-pair encoding learned from chunks [n, chunk_length, action].

        Raises:
            ValueError: the vocabulary cannot hold one token for every coefficient.
        """
        coefficients = _coefficients(actions, self.scale)  # [n, chunk_length * action]
        limit = int(coefficients.abs().max())
        if 2 * limit + 1 > self.vocabulary:
            raise ValueError(
                f"coefficients reach {limit} at scale {self.scale:g}: a vocabulary of "
                f"{self.vocabulary} cannot hold {2 * limit + 1} of them; lower the scale or raise "
                "the vocabulary"
            )
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            # Every coefficient gets a token of its own, so that any chunk can be written.
            initial_alphabet=[chr(_FIRST + i) for i in range(2 * limit + 1)],
            show_progress=False,
        )
        tokenizer.train_from_iterator(_spell(coefficients, limit), trainer)
        return replace(self, limit=limit, bpe=tokenizer.to_str())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The fitted tokenizer.

        Raises:
            ValueError: it has not been fitted.
        """
        if not self.bpe:
            raise ValueError("the FAST tokenizer is not fitted: call `fitted` with chunks first")
        return Tokenizer.from_str(self.bpe)


class FastHead(AutoregressiveHead):
    """Compressed tokens; a sample is the tokens int64 [n, t], -1 after the end.

    Args:
        dims: of inputs and chunks.
        config: sizes of the transformer, and the fitted tokenizer.
    """

    attends = True
    lengths: Tensor
    values: Tensor

    def __init__(self, dims: HeadDims, config: FastHeadConfig):
        super().__init__()
        self.config = config
        self.shape = (dims.chunk_length, dims.action)
        self.count = dims.chunk_length * dims.action
        vocabulary = config.tokenizer.get_vocab()
        words = sorted(vocabulary, key=vocabulary.__getitem__)  # by token id
        self.decoder = Autoregressive(dims, config.expert, len(words), self.count)
        # [vocabulary]: how many coefficients a token stands for.
        self.register_buffer("lengths", torch.tensor([len(w) for w in words]), persistent=False)
        # [vocabulary, count]: the coefficients that a token stands for, then zeros.
        values = torch.zeros(len(words), self.count)
        for row, word in enumerate(words):
            letters = [ord(letter) - _FIRST - config.limit for letter in word[: self.count]]
            values[row, : len(letters)] = torch.tensor(letters, dtype=torch.float32)
        self.register_buffer("values", values, persistent=False)

    def loss(self, inputs: HeadInputs, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Mean negative log-probability of a token, nats; the chunk counts whole, as it is coded.

        Padded steps repeat the last action, which the transform turns into small coefficients.
        """
        tokens = self.tokens(actions)
        comes = tokens >= 0
        log_prob = self.untempered(inputs, tokens).log_prob()  # [n, t]
        return -(log_prob * comes).sum() / comes.sum()

    def next_token(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """The likeliest token that fits."""
        logits, left = self._next(inputs, tokens)
        return logits.argmax(-1).masked_fill(left == 0, -1)

    @torch.no_grad()
    def sample(self, inputs: HeadInputs, generator: torch.Generator | None = None) -> Tensor:
        """Tokens drawn one after another among those that fit."""

        def draw(tokens: Tensor) -> Tensor:
            logits, left = self._next(inputs, tokens)
            shares = (logits / self.temperature).softmax(-1)
            token = torch.multinomial(shares, 1, generator=generator)[:, 0]
            return token.masked_fill(left == 0, -1)

        return self.generate(inputs, draw)

    def actions(self, samples: Tensor) -> Tensor:
        """The inverse transform of the coefficients that the tokens stand for."""
        # [n, chunk_length * action]: the tokens' coefficients are written one after another, in all
        # rows at once.
        count = samples.shape[0]
        flat = samples.new_zeros(count, self.count, dtype=torch.float32)
        place = samples.new_zeros(count)
        columns = torch.arange(self.count, device=samples.device)
        for token in samples.unbind(1):
            known = token.clamp_min(0)
            ahead = columns - place[:, None]  # [n, count], index within this token
            inside = (ahead >= 0) & (ahead < self.lengths[known][:, None]) & (token >= 0)[:, None]
            value = self.values[known].gather(1, ahead.clamp(0, self.count - 1))
            flat = torch.where(inside, value, flat)
            place = place + torch.where(token >= 0, self.lengths[known], 0)
        waves = flat.unflatten(1, self.shape) / self.config.scale  # [n, frequency, action]
        # The transform is orthonormal, so its transpose is its inverse.
        back = torch.einsum("fh,nfa->nha", _cosines(self.shape[0]).to(waves), waves)
        return back.clamp(-1, 1)

    def tokens(self, actions: Tensor) -> Tensor:
        """Chunks [n, chunk_length, action] as tokens int64 [n, t], -1 after the end."""
        texts = _spell(_coefficients(actions, self.config.scale), self.config.limit)
        coded = [e.ids for e in self.config.tokenizer.encode_batch(texts, add_special_tokens=False)]
        rows = torch.full((len(coded), self.count), -1)
        for row, ids in enumerate(coded):
            rows[row, : len(ids)] = torch.tensor(ids)
        return rows[:, : max(map(len, coded))].to(actions.device)

    def untempered(self, inputs: HeadInputs, samples: Tensor) -> TokenLikelihood:
        """Of tokens, all in one pass; every control step has an equal part."""
        comes = samples >= 0
        tokens = samples.clamp_min(0)
        # [n, t]: coefficients written after each token, and from them those left before it.
        taken = (self.lengths[tokens] * comes).cumsum(1)
        left = self.count - torch.nn.functional.pad(taken, (1, 0))[:, :-1]
        logits = self._fitting(self.decoder(inputs, tokens), left)
        share = comes[..., None].float().expand(-1, -1, self.shape[0]) / self.shape[0]
        return TokenLikelihood(logits, tokens, share)

    def _fitting(self, logits: Tensor, left: Tensor) -> Tensor:
        """Logits of tokens that are longer than what is left of the chunk become -inf."""
        # Nothing fits after the end; those places are not counted, and must not become NaN.
        return logits.masked_fill(self.lengths > left.clamp_min(1)[..., None], -math.inf)

    def _next(self, inputs: HeadInputs, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, vocabulary] after int64 [n, t], and how many coefficients are missing, [n]."""
        written = (self.lengths[tokens.clamp_min(0)] * (tokens >= 0)).sum(1)
        left = self.count - written
        return self._fitting(self.decoder.next_logits(inputs, tokens), left), left


def _cosines(chunk_length: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II), [frequency, step]."""
    step = torch.arange(chunk_length, dtype=torch.float64)
    # X_f = sqrt(2 / H) sum_h x_h cos(pi / H (h + 1/2) f), and X_0 smaller by sqrt(2).
    waves = torch.cos(math.pi / chunk_length * (step + 0.5) * step[:, None])
    waves *= math.sqrt(2 / chunk_length)
    waves[0] /= math.sqrt(2)
    return waves.float()


def _coefficients(actions: Tensor, scale: float) -> Tensor:
    """Rounded coefficients int64 [n, chunk_length * action], low frequencies first."""
    waves = torch.einsum("fh,nha->nfa", _cosines(actions.shape[1]).to(actions), actions)
    # Frequency first, then action dimension: the low frequencies of all dimensions lead.
    return (waves * scale).round().long().flatten(1)


def _spell(coefficients: Tensor, limit: int) -> list[str]:
    """One letter for every coefficient of int64 [n, count]; those beyond `limit` are clipped."""
    letters = (coefficients.clamp(-limit, limit) + limit + _FIRST).tolist()
    return ["".join(map(chr, row)) for row in letters]
