"""Settings of our policy in LeRobot's commands: `--policy.type=vla`.

LeRobot derives the names of the classes and of the modules beside this one from the names here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, DiffuserSchedulerConfig

from vla.checkpoint.lerobot_files import POLICY_TYPE
from vla.model.heads.registry import HEADS
from vla.settings import refusals_logged, require_numbers


def _unscaled() -> dict[str, NormalizationMode]:
    # The policy scales by itself, with the statistics that its checkpoint holds.
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass(POLICY_TYPE)
@dataclass
class LeRobotVLAConfig(PreTrainedConfig):
    """What is trained, from where and how fast.

    Attributes:
        push_to_hub: upload the trained policy; unlike LeRobot's own, off by default.
        normalization_mapping: LeRobot's normalisers do nothing around this policy.
        chunk_length: control steps a chunk; all of them are executed before the next decision.
        head: action head; None chooses: gaussian for a model that knows points, else flow,
            which attends to the whole prompt.
        start: checkpoint of ours that brings the vision-language model; None is the shipped one.
        perception: "frozen" trains the actor alone; "trained" also backbone and pointer, as far as
            the vision-language model's own tuning allows; None chooses: frozen for a robot
            with the cameras and the proprioception on which the start has learned to point.
        learning_rate: of AdamW for the actor; falls to 0 along a cosine.
        perception_learning_rate: of AdamW for perception when it is trained.
        weight_decay: of AdamW.
        feature_noise: std of Gaussian noise on points and proprioception in training, in the
            model's units; as `vla pretrain` has it.
        proprio_dropout: share of the samples that are learned without proprioception; as
            `vla pretrain` has it.
        static_points: points that do not move during an episode, whose positions are averaged over
            it when the policy acts; only with frozen perception. None chooses: the target.
        paraphrases: JSON file {"recorded instruction": ["other words", ...]}; every sample gets one
            of the phrasings while training.
        cameras: names of the data set's cameras that are used; by default all, which have to be
            RGB: an infrared or depth camera is left out by naming the others.
        embodiment: which robot of a checkpoint for several; by default the one that fits the data
            set. For a new policy the robot's name, by default that of the contract.
        vla: what is built on the vision-language model; written by the checkpoint, not by users.
        dims: sizes of inputs and outputs; written by the checkpoint.
        backbone: the vision-language model's configuration; written by the checkpoint.
    """

    push_to_hub: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_unscaled)
    chunk_length: int = 5
    # A name and not the head's settings: those of a checkpoint are in `vla`, below.
    head: str | None = None
    start: Path | None = None
    perception: str | None = None
    learning_rate: float = 1e-3
    perception_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    feature_noise: float = 0.02
    proprio_dropout: float = 0.0
    static_points: tuple[str, ...] | None = None
    paraphrases: Path | None = None
    cameras: tuple[str, ...] = ()
    embodiment: str | None = None
    # LeRobot parses config.json into this class and refuses unknown keys, so ours are fields.
    vla: dict[str, Any] | None = None
    dims: dict[str, Any] | None = None
    backbone: dict[str, Any] | None = None

    @refusals_logged()
    def __post_init__(self) -> None:
        # Errors here come before any data or weights are read.
        super().__post_init__()
        if self.head is not None and self.head not in HEADS:
            raise ValueError(f"no action head {self.head!r}; valid: {', '.join(HEADS)}")
        if self.perception not in (None, "frozen", "trained"):
            raise ValueError(f"perception {self.perception!r} is not 'frozen' or 'trained'")
        # torch checks none of the rates that a group of parameters brings: it would ascend.
        require_numbers(self, at_least_1=("chunk_length",), at_most={"proprio_dropout": 1})

    @property
    def observation_delta_indices(self) -> None:
        """The present observation only."""

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk that follows the observation."""
        # Offsets in frames: LeRobot then gives every sample its action and those of the next
        # frames.
        return list(range(self.chunk_length))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW, gradients clipped to norm 1."""
        return AdamWConfig(
            lr=self.learning_rate, weight_decay=self.weight_decay, grad_clip_norm=1.0
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        """Cosine to 0 without warm-up."""
        return DiffuserSchedulerConfig(name="cosine", num_warmup_steps=0)

    def validate_features(self) -> None:
        """Nothing here: the contract of the data set or of the checkpoint is what counts."""
