"""Scenes as training data for grounding: images, where objects are, and what can be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vla.contract import ObservationBatch, RobotSpec
from vla.model.points import WORLD, PointsConfig

# A callback: what a scene holds is known in `sim`, which this package does not import.
Ask = Callable[[int, str, Literal["train", "heldout"], np.random.Generator], tuple[str, str]]
"""From row, kind of question, phrasing and generator: a question and its answer."""


@dataclass(frozen=True)
class Prompt:
    """Words, and which of the scene's named points they are about."""

    text: str
    object: str
    target: str

    def phrase(self, point: str) -> str:
        """The scene's name of what the model's point of this name is, such as "gripper"."""
        # What the words name is another thing in every prompt; all else has a name of its own.
        return {"object": self.object, "target": self.target}.get(point, point)


@dataclass(frozen=True)
class GroundingSet:
    """Scenes of one task and what can be asked about them.

    Attributes:
        name: the task's.
        images: uint8 [n, cameras, h, w, 3].
        proprio: float32 [n, proprio].
        points: float32 [n, phrases, 3], metres, in `frame`.
        image_points: float32 [n, phrases, cameras, 2], image coordinates, NaN outside.
        phrases: names of `points`, "gripper" among them.
        prompts: what can be pointed at; any may be asked of any frame.
        unseen: prompts that are never trained on, only measured with, by what is new in them.
        kinds: of questions that are answered in words.
        ask: makes such a question and its answer for a row, a kind and a phrasing.
        frame: of `points`.
    """

    name: str
    images: np.ndarray
    proprio: np.ndarray
    points: np.ndarray
    image_points: np.ndarray
    phrases: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    unseen: Mapping[str, tuple[Prompt, ...]]
    kinds: tuple[str, ...]
    ask: Ask
    frame: str = WORLD

    def require_points(self, config: PointsConfig) -> None:
        """Refuse a model whose points these are not.

        Raises:
            ValueError: a point is in another frame, or nothing here has its name.
        """
        if other := {spec.name: spec.frame for spec in config.specs if spec.frame != self.frame}:
            raise ValueError(
                f"{self.name} has positions in the frame {self.frame!r}, the model's points are in "
                f"others: {other}"
            )
        # What the words name has another phrase in every prompt.
        if unknown := sorted({*config.names} - {"object", "target", *self.phrases}):
            raise ValueError(
                f"{self.name} has no positions of the model's points {unknown}; it has "
                f"{[*self.phrases]}, and object and target, which the words name"
            )

    def kept(self, heldout: float) -> int:
        """Frames that are trained on; this share, the last ones, is kept for measuring.

        At least one frame is kept where a share is, so that something can be measured.

        Raises:
            ValueError: nothing would be left to train on.
        """
        count = len(self.images)
        # A prefix and no random draw: pointing and questions hold out the same frames.
        kept = min(round(count * (1 - heldout)), count - 1 if heldout else count)
        if kept < 1:
            raise ValueError(
                f"{self.name} has {count} frames, of which a share of {heldout} is held out: too "
                "few to train on any"
            )
        return kept


def observe(
    spec: RobotSpec, images: np.ndarray, proprio: np.ndarray, texts: Sequence[str]
) -> ObservationBatch:
    """Frames with a text each, as an actor would see them; images [n, cameras, h, w, 3]."""
    every = torch.from_numpy(images)
    return ObservationBatch(
        # uint8 [n, h, w, 3] each; a view, nothing is copied.
        images={camera.name: every[:, i] for i, camera in enumerate(spec.cameras)},
        proprio=torch.from_numpy(proprio),
        instructions=list(texts),
        # A single frame has no episode: every one is at its beginning.
        time_s=torch.zeros(len(images)),
    )
