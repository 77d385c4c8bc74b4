"""How a robot without transformers makes the prompts of a pretrained model: found and checked here.

A processor of transformers puts templates, image tokens and special tokens around an instruction.
For one policy they are always the same, so they are kept as tokens, and with them the text that is
joined to the words before they become tokens. What is found is compared with the processor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer
from vla_runtime.exported.folder import PromptSettings

from vla.deploy.onnx_graphs import ExportError
from vla.processing.prompts import ForeignPrompts
from vla.processing.tower_prompts import END, TowerPrompts

_SAMPLES = (
    "push the red block to the blue zone",
    "Lift it!",
    "go to x=0.25, then 2 cm up; don't touch the (green) ball",
    "große Äpfel 拿起",
    "",
)
"""Instructions with capitals, numbers, punctuation and letters that a tokenizer may not know."""


def tokenizer_json(tokenizer: Any) -> str:
    """The tokenizer as a file for `tokenizers`.

    Raises:
        ExportError: it computes in Python, which a robot without transformers does not have.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        raise ExportError(
            f"{type(tokenizer).__name__} is no fast tokenizer: without transformers nothing could "
            "read it"
        )
    # Settings of single calls, which the tokenizer keeps: a robot's calls set their own.
    settings = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return json.dumps(settings, ensure_ascii=False)


def foreign_settings(prompts: ForeignPrompts) -> PromptSettings:
    """Of a policy on a pretrained model.

    Raises:
        ExportError: its prompts cannot be made without transformers.
    """
    tokenizer = prompts.tokenizer
    found = find_settings(
        tokenizer_json(tokenizer),
        prompts.unpadded,
        around=prompts.around(),
        pad=tokenizer.pad_token_id or 0,
        length=prompts.length,
        padding_side="left" if prompts.image_token_id is not None else tokenizer.padding_side,
    )
    return replace(
        found,
        padding_visible=prompts.pads_visibly,
        refused=tuple(tokenizer.all_special_tokens),
    )


def tower_settings(prompts: TowerPrompts) -> PromptSettings:
    """Of a policy whose words a language tower reads.

    Raises:
        ExportError: its prompts cannot be made without transformers.
    """
    # Compared with the tokenizer's own encoding, as for every pretrained model.
    found = find_settings(
        tokenizer_json(prompts.tower.tokenizer),
        lambda text: [*prompts.tower.tokens(text), END],
        around=(("", ""),),
        pad=0,
        length=prompts.length,
        padding_side="right",
    )
    return replace(found, max_text_tokens=prompts.most_tokens)


def find_settings(
    tokenizer: str,
    encode: Callable[[str], list[int]],
    around: Sequence[tuple[str, str]],
    pad: int,
    length: int,
    padding_side: str,
) -> PromptSettings:
    """The settings with which the tokenizer alone gives the tokens of `encode`.

    Args:
        tokenizer: for `tokenizers`.
        encode: an instruction's whole prompt, without padding.
        around: texts that may stand before and after an instruction.
        pad: the token of padding.
        length: tokens of a prompt, padding included.
        padding_side: "left" or "right".

    Raises:
        ExportError: there are none.
    """
    alone = Tokenizer.from_str(tokenizer)
    alone.encode_special_tokens = True
    prompts = [encode(text) for text in _SAMPLES]
    for before, after in around:
        words = [
            alone.encode(f"{before}{text}{after}", add_special_tokens=False).ids
            for text in _SAMPLES
        ]
        for end in range(min(map(len, prompts)) + 1):
            parts = [_split(p, w, end) for p, w in zip(prompts, words, strict=True)]
            if None not in parts and len(set(parts)) == 1:
                (prefix, suffix), *_ = parts  # pyright: ignore[reportGeneralTypeIssues]
                longest = length - len(prefix)
                return PromptSettings(
                    prefix, suffix, pad, length, longest, padding_side, before, after
                )
    raise ExportError(
        "the tokenizer alone does not give the tokens that the model's processor gives: without "
        "transformers nothing could make its prompts"
    )


def _split(
    prompt: list[int], words: list[int], end: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """What stands before and after the words, if `end` tokens stand after them; else None."""
    last = len(prompt) - end
    first = last - len(words)
    if first < 0 or prompt[first:last] != words:
        return None
    return tuple(prompt[:first]), tuple(prompt[last:])
