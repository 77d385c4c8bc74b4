"""Instructions to token ids, by `tokenizers` alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from textwrap import shorten

import numpy as np
from tokenizers import Tokenizer

from vla_runtime.exported.folder import PromptSettings

_CACHED_INSTRUCTIONS = 4096


class Prompts:
    """Prompts with the ids that the checkpoint's own processor makes.

    Args:
        tokenizer: file of the tokenizer.
        settings: what stands around the words.
    """

    def __init__(self, tokenizer: Path, settings: PromptSettings):
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        # A word such as "<image>" in an instruction must not become an image.
        self._tokenizer.encode_special_tokens = True
        # Settings of single calls, which its file may have kept.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._settings = settings
        # Few distinct instructions, many calls.
        self._row = lru_cache(_CACHED_INSTRUCTIONS)(self._make_row)

    def rows(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [1, length], and a mask bool [1, length], False at padding.

        Raises:
            ValueError: the instruction is too long, or holds what is more than words to the model.
        """
        return self._row(instruction)

    def _make_row(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        settings = self._settings
        if special := [token for token in settings.refused if token in instruction]:
            raise ValueError(
                f"the model reads {special} as more than words: say {instruction!r} without"
            )
        text = f"{settings.before}{instruction}{settings.after}"
        words = self._tokenizer.encode(text, add_special_tokens=False).ids
        words += settings.suffix
        if len(words) > settings.max_text_tokens:
            raise ValueError(
                f"instruction has {len(words)} tokens with its end token, the policy reads "
                f"{settings.max_text_tokens}; shorten it: {shorten(instruction, 80)!r}"
            )
        tokens = [*settings.prefix, *words]
        ids = np.full((1, settings.length), settings.pad, dtype=np.int64)
        mask = np.full((1, settings.length), settings.padding_visible)
        left = settings.length - len(tokens) if settings.padding_side == "left" else 0
        where = slice(left, left + len(tokens))
        ids[0, where], mask[0, where] = tokens, True
        return ids, mask
