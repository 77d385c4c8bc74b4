"""Paraphrases of recorded instructions, one of which is drawn for every training sample."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vla.data.rewordings import rewordings


class Paraphrases:
    """Phrasings of instructions.

    Args:
        phrasings: recorded instruction → other words for it; none for those that are missing.
    """

    def __init__(self, phrasings: Mapping[str, Sequence[str]] | None = None):
        # Each once: a phrasing that is written twice is drawn as often as the others.
        self._phrasings = {
            text: [*dict.fromkeys([text, *others])] for text, others in (phrasings or {}).items()
        }

    def __bool__(self) -> bool:
        return bool(self._phrasings)

    @classmethod
    def read(cls, path: Path, recorded: Iterable[str]) -> Paraphrases:
        """From a JSON file: {"recorded instruction": ["other words", ...], ...}.

        Args:
            path: the file.
            recorded: the instructions of the demonstrations.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, or words for what was never recorded; names
                the nearest that was.
        """
        data = read_phrasings(path)
        known = list(recorded)
        for text in data:
            # A typing error would otherwise leave the paraphrases unused in silence.
            if text not in known:
                near = difflib.get_close_matches(text, known, n=3, cutoff=0.0)
                raise ValueError(
                    f"paraphrases {path} has words for {text!r}, which was never recorded; "
                    f"recorded are {len(known)} instructions, the nearest: {near}"
                )
        return cls(data)

    def reworded(self, recorded: Iterable[str]) -> Paraphrases:
        """With the `rewordings` of all phrasings of these instructions."""
        return Paraphrases(
            {
                text: [new for old in self.every([text]) for new in rewordings(old)]
                for text in recorded
            }
        )

    def every(self, instructions: Iterable[str]) -> list[str]:
        """All phrasings of these instructions, each once."""
        phrasings = (p for text in instructions for p in self._phrasings.get(text, [text]))
        return [*dict.fromkeys(phrasings)]

    def draw(
        self, instructions: Sequence[str], generator: torch.Generator | None = None
    ) -> list[str]:
        """A phrasing of each, all equally often, the recorded one among them."""
        if not self:
            return list(instructions)
        uniform = torch.rand(len(instructions), generator=generator, dtype=torch.float64).tolist()
        choices = [self._phrasings.get(text, [text]) for text in instructions]
        return [c[int(u * len(c))] for c, u in zip(choices, uniform, strict=True)]


def read_phrasings(path: Path) -> dict[str, list[str]]:
    """The file alone: recorded instruction → other words.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"paraphrases {path} are no JSON: {error}") from error
    if not _is_table(data):
        raise ValueError(
            f'paraphrases {path} must be {{"recorded instruction": ["other words", ...]}}, '
            "with at least one each, none empty"
        )
    return data


def _is_table(data: Any) -> bool:
    return isinstance(data, dict) and all(
        isinstance(words, list) and words and all(isinstance(w, str) and w.strip() for w in words)
        for words in data.values()
    )
