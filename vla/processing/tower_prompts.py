"""Prompts of an embedded model whose words are the hidden states of a language tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vla_runtime.instructions import fit_instruction, prompt_width

from vla.processing.language_tower import LanguageTower

_CACHED_TOKENS = 2**18  # some two kilobytes each
END = 0
"""Stands behind the words, for the mean of their hidden states."""


class TowerPrompts:
    """The words alone: the image tokens stand beside them, before the first.

    Args:
        tower: reads them; each instruction once.
        max_text_tokens: tokens that every prompt has for its instruction, the end included; a
            longer one makes the prompts of its batch longer.
        most_tokens: of an instruction; what is beyond is cut, with a warning.
    """

    image_token_id: int | None = None
    """None: no token of a prompt is an image's."""

    def __init__(self, tower: LanguageTower, max_text_tokens: int, most_tokens: int) -> None:
        self.tower, self.max_text_tokens = tower, max_text_tokens
        self.most_tokens = min(most_tokens, tower.longest + 1)
        # Few distinct instructions, many calls.
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}
        self._cached = 0  # tokens in them

    @property
    def length(self) -> int:
        """Tokens of a prompt, unless its instruction needs more."""
        return self.max_text_tokens

    def texts(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """What the model reads of n instructions, padded on the right.

        Returns:
            input_ids int64 [n, tokens], the tower's and `END`; attention_mask bool [n, tokens]; and
            `words`, the tower's hidden states float32 [n, tokens, width], 0 at padding.
        """
        rows = [self._row(instruction) for instruction in instructions]
        longest = max((len(ids) for ids, _ in rows), default=0)
        width = prompt_width(self.max_text_tokens, longest)
        # One row more, of the full width, which the padding of the others follows.
        ids = pad_sequence([*(row[0] for row in rows), torch.zeros(width, dtype=torch.long)], True)
        full = torch.zeros(width, self.tower.width)
        words = pad_sequence([*(row[1] for row in rows), full], True)
        lengths = torch.tensor([len(row[0]) for row in rows], dtype=torch.long)
        mask = torch.arange(width) < lengths[:, None]  # [n, width]
        return {"input_ids": ids[:-1], "attention_mask": mask, "words": words[:-1]}

    def images(self, images: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The bytes as they are; none is flat."""
        return {"pixel_values": images}, ()

    def save(self, folder: Path) -> None:
        """Write which tower it is."""
        self.tower.save(folder)

    def _row(self, instruction: str) -> tuple[Tensor, Tensor]:
        if (row := self._rows.get(instruction)) is not None:
            return row
        row = self._read(instruction)
        self._cached += len(row[0])
        # By tokens: pages of text, each another one, would fill the memory. Dropped as a whole.
        if self._cached > _CACHED_TOKENS:
            self._rows, self._cached = {}, len(row[0])
        self._rows[instruction] = row
        return row

    def _read(self, instruction: str) -> tuple[Tensor, Tensor]:
        """Tokens int64 [tokens], an end token behind them, and their states [tokens, width]."""
        fitting = fit_instruction(
            instruction, lambda text: len(self.tower.tokens(text)) + 1, self.most_tokens
        )
        ids = torch.tensor([*self.tower.tokens(fitting), END])
        # No model reads nothing: the end token stands for the words of an empty instruction.
        read = ids[: max(len(ids) - 1, 1)]
        # What is kept must not depend on who asked first: a training may run under autocast.
        with torch.autocast("cpu", enabled=False):
            return ids, self.tower.states(read[None])[0, -len(ids) :]
