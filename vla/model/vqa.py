"""Questions and answers: the language side of the vision-language model.

A prompt (images, question, end token) is followed by the answer and an end token; the language
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
    prompts = processor.prompts
    if not isinstance(prompts, EmbeddedPrompts):
        raise ValueError("only the embedded model answers in words here")
    answer_tokens = [
        [*prompts.tokenizer.encode(text, add_special_tokens=False), prompts.eos_token_id]
        for text in answers
    ]
    begins = inputs.attention_mask.sum(1).tolist()
    ends = [begin + len(t) for begin, t in zip(begins, answer_tokens, strict=True)]
    ids = torch.full((len(inputs), max(ends)), prompts.pad_token_id)
    labels = torch.full_like(ids, _NOT_LEARNED)
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        ids[row, :begin] = inputs.input_ids[row, :begin]
        ids[row, begin:end] = labels[row, begin:end] = torch.tensor(answer_tokens[row])
    mask = torch.arange(max(ends)) < torch.tensor(ends)[:, None]  # [n, tokens]
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
def answer_is_correct(model: VLA, inputs: ModelInputs, labels: Tensor, off: int = 2) -> Tensor:
    """Bool [n]: whether each word is the likeliest after the true ones before it.

    With `off` 0 that is what greedy decoding would say.

    Args:
        model: of the embedded model, which alone answers in words.
        inputs: prompts followed by their answers.
        labels: int64 [n, tokens], see `with_answers`.
        off: bins that a location may be off, of `LOCATION_BINS` a side of the image.
    """
    logits, tokens = answer_logits(model, inputs, labels)
    greedy = logits.argmax(-1)
    first = SPECIAL_TOKENS.index(LOCATIONS[0])
    both_locations = torch.ones_like(tokens, dtype=torch.bool)
    for t in (greedy, tokens):
        both_locations &= (t >= first) & (t < first + LOCATION_BINS)
    learned = labels[:, 1:] != _NOT_LEARNED
    correct = torch.ones_like(learned)
    correct[learned] = (greedy == tokens) | both_locations & ((greedy - tokens).abs() <= off)
    return correct.all(1)
