"""Questions about frames as training batches, and how many are answered correctly.

The vision-language part of grounding: captions, locations, colours and what is gripped. The
questions themselves come from whoever knows the scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from policies.grounding.grounding_set import GroundingSet, observe
from vla.model.vla import VLA
from vla.model.vqa import answer_is_correct, with_answers
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor

_MEASURED = 256  # questions of each kind and phrasing
_BATCH = 64  # questions answered at once


class VqaSampler:
    """Draws frames with a question each.

    Args:
        sets: frames and questions; all kinds of all sets are drawn equally often.
        processor: makes the prompts.
        heldout: share of each set's last frames kept for measuring.
    """

    def __init__(self, sets: Sequence[GroundingSet], processor: Processor, heldout: float):
        self._sets, self._processor = sets, processor
        self._kept = [s.kept(heldout) for s in sets]
        # By kind and not by frame: a set with more scenes does not crowd out the others.
        self._choices = [(i, kind) for i, s in enumerate(sets) for kind in s.kinds]

    def train(self, rng: np.random.Generator, size: int) -> tuple[ModelInputs, Tensor]:
        """Inputs of `size` frames, and labels."""
        drawn = [self._choices[i] for i in rng.integers(len(self._choices), size=size)]
        rows = [int(rng.integers(self._kept[index])) for index, _ in drawn]
        asked = [
            self._sets[index].ask(row, kind, "train", rng)
            for (index, kind), row in zip(drawn, rows, strict=True)
        ]
        images = np.stack(
            # Stacked: all sets have images of one size, [size, cameras, h, w, 3].
            [self._sets[i].images[row] for (i, _), row in zip(drawn, rows, strict=True)]
        )
        proprio = np.stack(
            [self._sets[i].proprio[row] for (i, _), row in zip(drawn, rows, strict=True)]
        )
        return self._encode(images, proprio, asked)

    def accuracy(self, model: VLA, device: torch.device) -> dict[str, float]:
        """Share of questions on held-out frames that are answered correctly, for each phrasing.

        Every word must be right; a location may be off by 2 of 64 bins.

        Keys are `<task>/<kind>_accuracy` and `<task>/<kind>_heldout_phrasing_accuracy`.
        """
        found = {}
        phrasings: tuple[tuple[Literal["train", "heldout"], str], ...] = (
            ("train", ""),
            ("heldout", "_heldout_phrasing"),
        )
        for index, kind in self._choices:
            source = self._sets[index]
            for phrasing, label in phrasings:
                # The same questions at each measurement, so that accuracies can be compared.
                rng = np.random.default_rng(0)
                rows = rng.integers(self._kept[index], len(source.images), size=_MEASURED)
                right = []
                # At most _BATCH rows each: logits over the vocabulary are large.
                for part in np.split(rows, range(_BATCH, len(rows), _BATCH)):
                    asked = [source.ask(int(row), kind, phrasing, rng) for row in part]
                    inputs, labels = self._encode(source.images[part], source.proprio[part], asked)
                    right.append(answer_is_correct(model, inputs.to(device), labels.to(device)))
                # bool [_MEASURED], True where every token was right
                share = torch.cat(right).float().mean()
                found[f"{source.name}/{kind}{label}_accuracy"] = float(share)
        return found

    def _encode(
        self, images: np.ndarray, proprio: np.ndarray, asked: Sequence[tuple[str, str]]
    ) -> tuple[ModelInputs, Tensor]:
        questions, answers = zip(*asked, strict=True)
        observation = observe(self._processor.spec, images, proprio, questions)
        inputs = self._processor.encode_observation(observation)
        return with_answers(self._processor, inputs, answers)
