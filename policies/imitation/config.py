"""Settings of behaviour cloning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from policies.imitation.augmentation import Augmentation
from vla.settings import require_numbers


@dataclass(frozen=True)
class CloningConfig:
    """How long, how fast and what is trained.

    Attributes:
        updates: optimizer steps.
        batch: samples an update.
        perception: "frozen" trains the actor alone on features computed once, for a model that has
            learned to point; "trained" also trains readouts, pointer and as much of the
            vision-language model as its own `tuning` leaves free.
        learning_rate: of AdamW for the head; falls to 0 along a cosine.
        perception_learning_rate: of AdamW for perception when it is trained; None chooses 1e-4,
            which a pretrained model stands, and for a model from scratch `learning_rate`.
        point_weight: of the loss of the points that both the data and the model know, beside the
            head's, where perception is trained; 0 leaves it out. It is about a mean absolute error
            of numbers in [-1, 1], as the l1 head's of actions is, so 1 weighs both alike.
        weight_decay: of AdamW.
        feature_noise: std of Gaussian noise added to points and proprioception, in the model's
            units: later it has to act near the demonstrated states, not exactly in them.
        proprio_dropout: share of the samples that are learned without proprioception.
        max_grad_norm: gradients are clipped to this norm.
        evaluate_every: updates between checkpoints, each with its success and held-out loss.
        image_shift: augmentation: largest share of height and width by which an image is shifted;
            like the next two only where perception is trained, since a frozen one reads every
            image once. None chooses 0, and for a model from scratch 0.04.
        image_light: augmentation: largest relative change of brightness and of contrast.
        image_colour: augmentation: largest relative change of each colour channel.
        static_points: points that do not move during an episode: their positions are averaged over
            it, weighted by inverse variances; only where perception is frozen, since one that is
            trained reads every frame alone. None takes `target` where the model knows such a point;
            without names, none is averaged.
        scene_shift: augmentation: most metres along x and y by which points and tool are moved
            together. None chooses 0.15 where scenes can be moved (`SceneMover`), and else 0.
        scene_turn: augmentation: most degrees by which they are turned about the vertical; None
            chooses 180 likewise.
        tool_offset: augmentation: most metres along x and y by which the tool alone is moved; None
            chooses 0.05 likewise.
        phrasings: with paraphrases and frozen perception, how many phrasings of each frame, drawn
            at random, get features; trained perception draws one at every sample.
        bf16: train perception in bfloat16 by autocast; the embedded backbone always does.
        seed: of everything random.
    """

    updates: int = 1000
    batch: int = 256
    perception: Literal["frozen", "trained"] = "frozen"
    learning_rate: float = 1e-3
    perception_learning_rate: float | None = None
    point_weight: float = 1.0
    weight_decay: float = 0.01
    feature_noise: float = 0.02
    proprio_dropout: float = 0.0
    max_grad_norm: float = 1.0
    evaluate_every: int = 500
    image_shift: float | None = None
    image_light: float = 0.0
    image_colour: float = 0.0
    scene_shift: float | None = None
    scene_turn: float | None = None
    tool_offset: float | None = None
    static_points: tuple[str, ...] | None = None
    phrasings: int = 4
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        # Asked for first: its own bounds are checked whatever perception is.
        if self.augmentation.is_on and self.perception == "frozen":
            raise ValueError(
                "images are augmented only with perception='trained': a frozen one reads each once"
            )
        if self.perception == "trained" and any(self.scene_bounds):
            raise ValueError(
                "scenes are moved only with perception='frozen': one that is trained would see "
                "them where they were"
            )
        require_numbers(
            self,
            at_least_1=("updates", "batch", "evaluate_every", "phrasings"),
            above_0=("max_grad_norm",),
            at_most={"proprio_dropout": 1, "scene_turn": 180},
        )

    @property
    def augmentation(self) -> Augmentation:
        """How images are augmented."""
        return Augmentation(self.image_shift or 0.0, self.image_light, self.image_colour)

    @property
    def scene_bounds(self) -> tuple[float | None, float | None, float | None]:
        """How far scenes are moved, as it was asked for."""
        return self.scene_shift, self.scene_turn, self.tool_offset

    def from_scratch(self) -> CloningConfig:
        """As a model needs it that has learned nothing yet, where nothing else was chosen."""
        rate, shift = self.perception_learning_rate, self.image_shift
        return replace(
            self,
            perception="trained",
            perception_learning_rate=self.learning_rate if rate is None else rate,
            image_shift=0.04 if shift is None else shift,
        )
