"""Instructions to token ids, by `tokenizers` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from vla_runtime.exported.folder import PromptSettings
from vla_runtime.instructions import fit_instruction, prompt_width

# Few distinct instructions, many calls; but a server's clients may send a new one each time.
_CACHED_INSTRUCTIONS = 256  # some kilobytes each
_CACHED_STATES = 32  # of 256 tokens 0.4 MB each


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
        self._row = lru_cache(_CACHED_INSTRUCTIONS)(self._make_row)

    def rows(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 [1, tokens], and a mask bool [1, tokens], False at padding.

        Raises:
            ValueError: the instruction holds what is more than words to the model, or the model
                reads too few tokens for ordinary instructions.
        """
        return self._row(instruction)

    def _make_row(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        settings = self._settings
        if special := [token for token in settings.refused if token in instruction]:
            raise ValueError(
                f"the model reads {special} as more than words: say {instruction!r} without"
            )
        fitting = fit_instruction(
            instruction, lambda text: len(self._words(text)), settings.max_text_tokens
        )
        tokens = [*settings.prefix, *self._words(fitting)]
        width = prompt_width(settings.length, len(tokens))
        ids = np.full((1, width), settings.pad, dtype=np.int64)
        mask = np.full((1, width), settings.padding_visible)
        left = width - len(tokens) if settings.padding_side == "left" else 0
        where = slice(left, left + len(tokens))
        ids[0, where], mask[0, where] = tokens, True
        return ids, mask

    def _words(self, instruction: str) -> list[int]:
        """The instruction's tokens and those behind it."""
        text = f"{self._settings.before}{instruction}{self._settings.after}"
        words = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*words, *self._settings.suffix]


class WordStates:
    """What an exported language tower makes of an instruction, once for each.

    Args:
        tower: `input_ids` int64 [1, tokens] to `words` float32 [1, tokens, width].
        prompts: give the tokens.
    """

    def __init__(
        self, tower: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]], prompts: Prompts
    ):
        self._tower, self._prompts = tower, prompts
        self._row = lru_cache(_CACHED_STATES)(self._make_row)

    def rows(self, instruction: str) -> np.ndarray:
        """Hidden states float32 [1, tokens, width], 0 at padding; errors as `Prompts.rows`."""
        return self._row(instruction)

    def _make_row(self, instruction: str) -> np.ndarray:
        ids, mask = self._prompts.rows(instruction)
        count, width = int(mask.sum()), ids.shape[1]
        # The last of them only keeps a place; it is read where there are no words.
        states = self._tower({"input_ids": ids[:, : max(count - 1, 1)]})["words"][:, -count:]
        return np.pad(states, ((0, 0), (0, width - count), (0, 0)))
