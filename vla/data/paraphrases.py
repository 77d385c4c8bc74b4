"""Other words for recorded instructions, of which a training sample gets any."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class Paraphrases:
    """What else can be said instead of an instruction.

    Args:
        phrasings: recorded instruction → other words for it; none for those that are missing.
    """

    def __init__(self, phrasings: Mapping[str, Sequence[str]] | None = None):
        # Each once: a phrasing that is written twice is drawn as often as the others.
        self._phrasings = {
            said: [*dict.fromkeys([said, *p])] for said, p in (phrasings or {}).items()
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
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"paraphrases {path} are no JSON: {error}") from error
        if not _is_table(data):
            raise ValueError(
                f'paraphrases {path} must be {{"recorded instruction": ["other words", ...]}}, '
                "with at least one each, none empty"
            )
        known = list(recorded)
        for said in data:
            if said not in known:
                near = difflib.get_close_matches(said, known, n=3, cutoff=0.0)
                raise ValueError(
                    f"paraphrases {path} has words for {said!r}, which was never recorded; "
                    f"recorded are {len(known)} instructions, the nearest: {near}"
                )
        return cls(data)

    def every(self, instructions: Iterable[str]) -> list[str]:
        """All phrasings of these instructions, each once."""
        return [
            *dict.fromkeys(p for said in instructions for p in self._phrasings.get(said, [said]))
        ]

    def draw(
        self, instructions: Sequence[str], generator: torch.Generator | None = None
    ) -> list[str]:
        """A phrasing of each, all equally often, the recorded one among them."""
        if not self:
            return list(instructions)
        chances = torch.rand(len(instructions), generator=generator, dtype=torch.float64).tolist()
        choices = [self._phrasings.get(said, [said]) for said in instructions]
        return [c[int(chance * len(c))] for c, chance in zip(choices, chances, strict=True)]


def _is_table(data: Any) -> bool:
    return isinstance(data, dict) and all(
        isinstance(words, list) and words and all(isinstance(w, str) and w.strip() for w in words)
        for words in data.values()
    )
