"""Questions and answers: the language side of the vision-language model.

A prompt (pictures, question, end token) is followed by the answer and an end token; the language
model learns and gives only the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.model.embedded import EmbeddedBackbone
from vla.model.vla import VLA
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor
from vla.processing.prompts import EmbeddedPrompts
from vla.processing.tokenizer import LOCATION_BINS, LOCATIONS, SPECIAL_TOKENS

_NOT_LEARNED = -100  # cross_entropy's ignore_index


def with_answers(
    processor: Processor, inputs: ModelInputs, answers: Sequence[str]
) -> tuple[ModelInputs, Tensor]:
    """Prompts followed by their answers.

    Returns:
        the inputs, padded to the longest, and labels int64 [n, tokens]: the answer's tokens, -100
        elsewhere.

    Raises:
        ValueError: the processor is not of the embedded model, which alone answers in words.
    """
    prompts = _prompts(processor)
    end = prompts.eos_token_id
    said = [
        torch.tensor([*prompts.tokenizer.encode(text, add_special_tokens=False), end])
        for text in answers
    ]
    return _append(prompts, inputs, said)


def _prompts(processor: Processor) -> EmbeddedPrompts:
    if not isinstance(processor.prompts, EmbeddedPrompts):
        raise ValueError("only the embedded model answers in words here")
    return processor.prompts


def _append(
    prompts: EmbeddedPrompts, inputs: ModelInputs, said: Sequence[Tensor]
) -> tuple[ModelInputs, Tensor]:
    lengths = inputs.attention_mask.sum(1).tolist()
    width = max(length + len(tokens) for length, tokens in zip(lengths, said, strict=True))
    ids = torch.full((len(inputs), width), prompts.pad_token_id)
    labels = torch.full_like(ids, _NOT_LEARNED)
    ends = torch.zeros(len(inputs), dtype=torch.long)
    for row, (length, tokens) in enumerate(zip(lengths, said, strict=True)):
        ends[row] = length + len(tokens)
        ids[row, :length] = inputs.input_ids[row, :length]
        ids[row, length : ends[row]] = labels[row, length : ends[row]] = tokens
    mask = torch.arange(width) < ends[:, None]
    return replace(inputs, input_ids=ids, attention_mask=mask), labels


def answer_logits(model: VLA, inputs: ModelInputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits float32 [m, vocabulary] of all answer tokens, and the tokens int64 [m]."""
    hidden = model.backbone(inputs).prompt[:, :-1]
    learned = labels[:, 1:] != _NOT_LEARNED
    return _words(model)(hidden[learned]).float(), labels[:, 1:][learned]


def _words(model: VLA) -> nn.Module:
    """The embedded model's head over its vocabulary."""
    assert isinstance(model.backbone, EmbeddedBackbone)
    return model.backbone.language_model.get_output_embeddings()


def answer_loss(model: VLA, inputs: ModelInputs, labels: Tensor) -> Tensor:
    """Mean cross-entropy of an answer token, nats."""
    return F.cross_entropy(*answer_logits(model, inputs, labels))


@torch.no_grad()
def rightly_answered(model: VLA, inputs: ModelInputs, labels: Tensor, off: int = 2) -> Tensor:
    """Bool [n]: whether each word is the likeliest after the true ones before it.

    With `off` 0 that is what greedy decoding would say.

    Args:
        model: of the embedded model, which alone answers in words.
        inputs: prompts followed by their answers.
        labels: int64 [n, tokens], see `with_answers`.
        off: bins that a location may be off, of `LOCATION_BINS` a side of the picture.
    """
    logits, tokens = answer_logits(model, inputs, labels)
    said = logits.argmax(-1)
    first = SPECIAL_TOKENS.index(LOCATIONS[0])
    places = [(t >= first) & (t < first + LOCATION_BINS) for t in (said, tokens)]
    near = places[0] & places[1] & ((said - tokens).abs() <= off)
    learned = labels[:, 1:] != _NOT_LEARNED
    right = torch.ones_like(learned)
    right[learned] = (said == tokens) | near
    return right.all(1)


@torch.no_grad()
def answer(
    model: VLA, processor: Processor, inputs: ModelInputs, most_tokens: int = 48
) -> list[str]:
    """What the model says to the questions of these prompts, greedily."""
    model.eval()
    prompts = _prompts(processor)
    said = [torch.zeros(0, dtype=torch.long) for _ in range(len(inputs))]
    going = set(range(len(inputs)))
    for _ in range(most_tokens):
        grown, _ = _append(prompts, inputs, said)
        hidden = model.backbone(grown).prompt
        last = hidden[torch.arange(len(inputs)), grown.attention_mask.sum(1) - 1]
        for row, token in enumerate(_words(model)(last).argmax(-1).tolist()):
            if row in going and token == prompts.eos_token_id:
                going.remove(row)
            elif row in going:
                said[row] = torch.cat([said[row], torch.tensor([token])])
        if not going:
            break
    return [str(prompts.tokenizer.decode(tokens)) for tokens in said]
