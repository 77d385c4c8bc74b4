"""How long an instruction may be: ordinary English always fits, only an extreme is cut."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable
from textwrap import shorten

_ORDINARY = 64  # tokens, about fifty words
_STEP = 16

_log = logging.getLogger(__name__)


def prompt_width(usual: int, needed: int) -> int:
    """Tokens of a prompt: the usual number, or what it needs, to the next multiple of 16.

    In steps, since a compiled model is compiled for every width.
    """
    return usual if needed <= usual else -(-needed // _STEP) * _STEP


def fit_instruction(instruction: str, count: Callable[[str], int], limit: int) -> str:
    """The instruction, cut behind its last word that fits, with a warning.

    Args:
        instruction: any text.
        count: tokens of a text, its end token included.
        limit: most tokens.

    Raises:
        ValueError: it does not fit, and the limit is so low that ordinary instructions would be
            cut, which could then mean something else; or not even its first word fits, as of a
            long text without spaces.
    """
    if (tokens := count(instruction)) <= limit:
        return instruction
    if limit < _ORDINARY:
        raise ValueError(
            f"instruction has {tokens} tokens with its end token, this model reads {limit} "
            f"(max_text_tokens); shorten it: {shorten(instruction, 80)!r}"
        )
    words = instruction.split()
    # The number of tokens grows with the number of words, so the last that fit are found by halves.
    kept = bisect_right(range(1, len(words) + 1), limit, key=lambda n: count(" ".join(words[:n])))
    if words and not kept:
        # Nothing would be left, and the robot would act on what nobody said.
        raise ValueError(
            f"instruction has {tokens} tokens without a space to cut it at, this model reads "
            f"{limit}; shorten it: {shorten(instruction, 80)!r}"
        )
    fitting = " ".join(words[:kept])
    _log.warning(
        "instruction of %d tokens is cut to its first %d words, since the model reads %d tokens: "
        "%r",
        tokens,
        kept,
        limit,
        shorten(fitting, 200),
    )
    return fitting
