"""Questions about a scene and their true answers: what the vision-language model learns to say.

Four kinds: a caption of the scene, where an object is (as location tokens of the first camera's
image, as in PaliGemma, Beyer et al. 2024, arXiv:2407.07726), which colour the block has that lies
nearest to something, and what is gripped. Each kind has phrasings to train on and held-out ones to
measure with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sim.scenes import Scenes
from sim.tasks.base import Phrasing, Task
from sim.tasks.registry import find_task
from vla.processing.tokenizer import location_token

PHRASINGS: Mapping[str, Mapping[Phrasing, tuple[str, ...]]] = {
    "caption": {
        "train": (
            "describe the scene",
            "what do you see",
            "say what is on the table",
            "describe what is on the table",
            "what is on the table",
            "say what you see in the scene",
            "give a caption of the scene",
            "tell me what you see",
        ),
        "heldout": ("describe what you see on the table", "tell me what is in the scene"),
    },
    # "lie", "place": "where is" belongs to pointing, see `QUESTIONS` in scripts/ground.py.
    "where": {
        "train": (
            "locate the {noun}",
            "give the place of the {noun}",
            "where does the {noun} lie",
            "say where the {noun} lies",
            "what is the place of the {noun}",
            "tell me where the {noun} lies",
            "in which place is the {noun}",
            "say in which place the {noun} lies",
        ),
        "heldout": ("tell me the place of the {noun}", "in which place does the {noun} lie"),
    },
    # The answer is one word of colour, so that it can be compared exactly.
    "colour": {
        "train": (
            "which colour has the block nearest to the {noun}",
            "what colour is the block closest to the {noun}",
            "say which colour the block next to the {noun} has",
            "tell me the colour of the block closest to the {noun}",
            "give the colour of the block nearest to the {noun}",
            "which colour is the block next to the {noun}",
        ),
        "heldout": (
            "which colour is the block nearest to the {noun}",
            "say the colour of the block closest to the {noun}",
        ),
    },
    "gripped": {
        "train": (
            "what is gripped",
            "what does the gripper hold",
            "say what the fingers hold",
            "what is in the gripper",
            "tell me what is gripped",
            "which thing do the fingers hold",
        ),
        "heldout": ("what do the fingers hold", "tell me what the gripper holds"),
    },
}
KINDS = tuple(PHRASINGS)
_BLOCK = " block"
"""How a phrase ends that says the colour of a block, as "red block" does."""


class Questioner:
    """Asks about the frames of one task's scenes.

    Args:
        scenes: frames with named points.

    Attributes:
        kinds: of questions that this task's scenes allow.
    """

    def __init__(self, scenes: Scenes):
        self._scenes = scenes
        self._task: type[Task] = find_task(scenes.task).task
        self._column = scenes.phrases.index
        present = set(scenes.phrases)
        # Sorted, so that an equal seed asks equal questions, in whatever order a task states them.
        self._objects = [p for p in sorted(self._task.object_phrases) if p in present]
        self._places = [p for p in sorted(self._task.place_phrases) if p in present]
        self._blocks = [p for p in self._objects if p.endswith(_BLOCK)]
        # A colour is asked for where there are several blocks to tell apart by it.
        self.kinds: tuple[str, ...] = tuple(
            kind for kind in KINDS if kind != "colour" or len(self._blocks) > 1
        )

    def ask(
        self, row: int, kind: str, phrasing: Phrasing, rng: np.random.Generator
    ) -> tuple[str, str]:
        """A question of a kind about a frame, and its answer.

        What is outside of the first image is not asked for.
        """
        visible = [p for p in (*self._objects, *self._places) if self._is_visible(row, p)]
        # Then ask what every scene can answer.
        if kind == "where" and not visible:
            kind = "gripped"
        templates = PHRASINGS[kind][phrasing]
        template = templates[rng.integers(len(templates))]
        if kind == "where":
            phrase = visible[rng.integers(len(visible))]
            x, y = (self._image_point(row, phrase) + 1) / 2  # from [-1, 1] to [0, 1]
            # Row before column, as PaliGemma orders them.
            place = location_token(y) + location_token(x)
            return template.format(noun=self._task.noun(phrase)), place
        if kind == "colour":
            # Never another block: the nearest block to a block would be itself.
            around = ["gripper", *self._places]
            phrase = around[rng.integers(len(around))]
            # In space, metres: in one image a block behind another may look nearer.
            nearest = min(self._blocks, key=lambda block: self._distance_m(row, block, phrase))
            question = template.format(noun=self._task.noun(phrase))
            return question, nearest.removesuffix(_BLOCK)
        return template, self._gripped(row) if kind == "gripped" else self._caption(row, visible)

    def _caption(self, row: int, visible: list[str]) -> str:
        """The visible objects from left to right in the first image, and what is gripped."""
        ordered = sorted(visible, key=lambda phrase: self._image_point(row, phrase)[0])
        order = ", ".join(self._task.noun(phrase) for phrase in ordered) or "nothing"
        return f"from left to right {order}, gripped {self._gripped(row)}"

    def _gripped(self, row: int) -> str:
        points = dict(zip(self._scenes.phrases, self._scenes.points[row], strict=True))
        held = self._task.held(self._scenes.proprio[row], points)
        return "nothing" if held is None else self._task.noun(held)

    def _image_point(self, row: int, phrase: str) -> np.ndarray:
        # [2]: x, y in the first camera's image, from -1 to 1.
        return self._scenes.image_points[row, self._column(phrase), 0]

    def _is_visible(self, row: int, phrase: str) -> bool:
        # NaN stands for outside of the image, see `Scenes.image_points`; an occluded object counts
        # as visible.
        return bool(np.isfinite(self._image_point(row, phrase)).all())

    def _distance_m(self, row: int, one: str, other: str) -> float:
        points = self._scenes.points[row]
        return float(np.linalg.norm(points[self._column(one)] - points[self._column(other)]))


def all_sentences(nouns: Sequence[str]) -> set[str]:
    """Every question in every phrasing about each of these nouns, for a tokenizer's vocabulary."""
    return {
        template.format(noun=noun)
        for kind in KINDS
        for templates in PHRASINGS[kind].values()
        for template in templates
        for noun in nouns
    }
