"""Visual question answering: labels, loss and correctness of answers in words.

A prompt (images, question, end token) is followed by the answer and an end token. The answer alone
is learned. Of the backbones only the embedded one keeps its vocabulary head, and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from vla.model.embedded import EmbeddedBackbone
from vla.model.vla import VLA
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor
from vla.processing.prompts import EmbeddedPrompts
from vla.processing.tokenizer import LOCATION_BINS, LOCATIONS, SPECIAL_TOKENS

_IGNORED = -100  # cross_entropy's ignore_index


def with_answers(
    processor: Processor, inputs: ModelInputs, answers: Sequence[str]
) -> tuple[ModelInputs, Int64[Tensor, "n tokens"]]:
    """Prompts followed by their answers.

    Returns:
        the inputs, padded to the longest, and labels: the answer's tokens, -100 elsewhere.

    Raises:
        ValueError: the processor is not of the embedded model, which alone answers in words.
    """
    prompts = processor.prompts
    if not isinstance(prompts, EmbeddedPrompts):
        raise ValueError("only the embedded model answers in words here")
    encode, end = prompts.tokenizer.encode, prompts.eos_token_id
    tokens = [torch.tensor([*encode(text, add_special_tokens=False), end]) for text in answers]
    lengths = inputs.attention_mask.sum(1).tolist()
    ends = [length + len(answer) for length, answer in zip(lengths, tokens, strict=True)]
    ids = torch.full((len(inputs), max(ends)), prompts.pad_token_id)
    labels = torch.full_like(ids, _IGNORED)
    # Labels only where the answer is: the prompt is given, not learned.
    for row, (length, answer) in enumerate(zip(lengths, tokens, strict=True)):
        ids[row, :length] = inputs.input_ids[row, :length]
        ids[row, length : ends[row]] = labels[row, length : ends[row]] = answer
    mask = torch.arange(max(ends)) < torch.tensor(ends)[:, None]  # [n, tokens]
    return replace(inputs, input_ids=ids, attention_mask=mask), labels


def answer_logits(
    model: VLA, inputs: ModelInputs, labels: Int64[Tensor, "n tokens"]
) -> tuple[Float32[Tensor, "m vocabulary"], Int64[Tensor, " m"]]:
    """Logits of all m answer tokens of the batch, and the tokens."""
    assert isinstance(model.backbone, EmbeddedBackbone)
    vocabulary: nn.Module = model.backbone.language_model.get_output_embeddings()
    # The hidden state of a token predicts the token after it.
    hidden, following = model.backbone(inputs).prompt[:, :-1], labels[:, 1:]
    is_answer = following != _IGNORED
    return vocabulary(hidden[is_answer]).float(), following[is_answer]


def answer_loss(
    model: VLA, inputs: ModelInputs, labels: Int64[Tensor, "n tokens"]
) -> Float32[Tensor, ""]:
    """Mean cross-entropy of an answer token, nats."""
    return F.cross_entropy(*answer_logits(model, inputs, labels))


@torch.no_grad()
def answer_is_correct(
    model: VLA, inputs: ModelInputs, labels: Int64[Tensor, "n tokens"], tolerance_bins: int = 2
) -> Bool[Tensor, " n"]:
    """Whether each token of an answer is the most likely one after the true tokens before it.

    With `tolerance_bins` 0, greedy decoding gives exactly the answers that are correct.

    Args:
        model: of the embedded model, which alone answers in words.
        inputs: prompts followed by their answers.
        labels: see `with_answers`.
        tolerance_bins: by how many bins a location may be off, of `LOCATION_BINS` a side of the
            image.
    """
    logits, tokens = answer_logits(model, inputs, labels)
    predicted = logits.argmax(-1)  # [m]
    first = SPECIAL_TOKENS.index(LOCATIONS[0])
    are_locations = [(t >= first) & (t < first + LOCATION_BINS) for t in (predicted, tokens)]
    is_near = are_locations[0] & are_locations[1] & ((predicted - tokens).abs() <= tolerance_bins)
    is_answer = labels[:, 1:] != _IGNORED
    correct = torch.ones_like(is_answer)
    correct[is_answer] = (predicted == tokens) | is_near
    return correct.all(1)
