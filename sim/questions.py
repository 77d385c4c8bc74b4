"""Questions about a scene and their true answers: what the vision-language model learns to say.

Four kinds: a caption of the scene, where a thing is (as location tokens of the first camera's
picture, as PaliGemma gives them, Beyer et al. 2024, arXiv:2407.07726), which colour the block has
that lies nearest to something, and what is gripped. Each kind has phrasings to train on and others,
never trained on, to measure with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sim.scenes import Scenes
from sim.tasks.base import Phrasing
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
    "where": {
        "train": (
            "locate the {thing}",
            "give the place of the {thing}",
            "where does the {thing} lie",
            "say where the {thing} lies",
            "what is the place of the {thing}",
            "tell me where the {thing} lies",
            "in which place is the {thing}",
            "say in which place the {thing} lies",
        ),
        "heldout": ("tell me the place of the {thing}", "in which place does the {thing} lie"),
    },
    "colour": {
        "train": (
            "which colour has the block nearest to the {thing}",
            "what colour is the block closest to the {thing}",
            "say which colour the block next to the {thing} has",
            "tell me the colour of the block closest to the {thing}",
            "give the colour of the block nearest to the {thing}",
            "which colour is the block next to the {thing}",
        ),
        "heldout": (
            "which colour is the block nearest to the {thing}",
            "say the colour of the block closest to the {thing}",
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
_HELD_M = 0.025
"""A block of 5 cm is held when the hand is this near to its centre and no finger is shut."""
_SHUT_M, _OPEN_M = 0.022, 0.028


class Questioner:
    """Asks about the frames of one task's scenes.

    Args:
        scenes: frames with named points.
    """

    def __init__(self, scenes: Scenes):
        self._scenes = scenes
        self._column = scenes.phrases.index
        blocks = [phrase for phrase in scenes.phrases if phrase.endswith(" block")]
        self._blocks = [b for b in blocks if not b.startswith("above")]
        self._zones = [phrase for phrase in scenes.phrases if phrase.endswith(" zone")]
        known = np.isfinite(scenes.points[0]).all(-1)
        plain = [p for p in ("object", "target") if known[self._column(p)]]
        # On the tabletop words name things; elsewhere there is one block or puck and one target.
        self._things = [*self._blocks, *self._zones] or plain
        self._spoken = {"object": "puck" if scenes.task == "FetchSlide" else "block"}
        self.kinds: tuple[str, ...] = tuple(
            kind for kind in KINDS if kind != "colour" or len(self._blocks) > 1
        )

    def ask(
        self, row: int, kind: str, phrasing: Phrasing, rng: np.random.Generator
    ) -> tuple[str, str]:
        """A question of a kind about a frame, and its answer.

        Things out of the first picture are not asked for.
        """
        seen = [t for t in self._things if np.isfinite(self._place(row, t)).all()]
        if kind == "where" and not seen:
            kind = "gripped"
        templates = PHRASINGS[kind][phrasing]
        template = templates[rng.integers(len(templates))]
        if kind == "where":
            thing = seen[rng.integers(len(seen))]
            x, y = (self._place(row, thing) + 1) / 2
            return template.format(thing=self._say(thing)), location_token(y) + location_token(x)
        if kind == "colour":
            around = ["gripper", *self._zones]
            thing = around[rng.integers(len(around))]
            nearest = min(self._blocks, key=lambda block: self._apart(row, block, thing))
            return template.format(thing=thing), nearest.removesuffix(" block")
        return template, self._gripped(row) if kind == "gripped" else self._caption(row)

    def _caption(self, row: int) -> str:
        """The things from left to right in the first picture, and what is gripped."""
        places = {thing: self._place(row, thing)[0] for thing in self._things}
        named = sorted((t for t in places if np.isfinite(places[t])), key=places.__getitem__)
        order = ", ".join(self._say(thing) for thing in named) or "nothing"
        return f"from left to right {order}, gripped {self._gripped(row)}"

    def _gripped(self, row: int) -> str:
        fingers = self._scenes.proprio[row, -2:]
        if not ((fingers > _SHUT_M) & (fingers < _OPEN_M)).all():
            return "nothing"
        held = self._blocks or [t for t in self._things if t == "object"]
        near = [thing for thing in held if self._apart(row, thing, "gripper") < _HELD_M]
        return self._say(near[0]) if near else "nothing"

    def _say(self, thing: str) -> str:
        return self._spoken.get(thing, thing)

    def _place(self, row: int, thing: str) -> np.ndarray:
        return self._scenes.pictures[row, self._column(thing), 0]

    def _apart(self, row: int, one: str, other: str) -> float:
        points = self._scenes.points[row]
        return float(np.linalg.norm(points[self._column(one)] - points[self._column(other)]))


def all_sentences(things: Sequence[str]) -> set[str]:
    """Every question in every phrasing, for a tokenizer to know their words."""
    return {
        template.format(thing=thing)
        for kind in KINDS
        for templates in PHRASINGS[kind].values()
        for template in templates
        for thing in things
    }
