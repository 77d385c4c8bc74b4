"""Conversions between a robot's physical units and a model's tensors, in both directions.

`decode_actions` is the inverse of `encode_actions`, and keeps to the contract's limits.
Proprioception stays in physical units here: the network normalises it, so that no export can skip
that (`vla.model.network`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from vla.contract import (
    ContractMismatchError,
    Observation,
    ObservationBatch,
    RobotSpec,
)
from vla.processing.language_tower import LanguageTower
from vla.processing.model_inputs import ModelInputs
from vla.processing.normalisation import (
    NORMALISATIONS,
    AffineNormaliser,
    Limits,
    Normalisation,
    Statistics,
)
from vla.processing.prompts import (
    LONGEST_TEXT,
    EmbeddedPrompts,
    ForeignPrompts,
    Language,
    Prompts,
    load_language,
)
from vla.processing.tokenizer import IMAGE
from vla.processing.tower_prompts import TowerPrompts
from vla.settings import require_numbers


@dataclass(frozen=True)
class ProcessorConfig:
    """How observations and actions become tensors.

    Attributes:
        action_normalisation: what maps to [-1, 1]: the contract's limits ("limits"), the data's
            extremes ("min_max") or 1% and 99% quantiles ("quantile"); or mean 0 and standard
            deviation 1 ("mean_std").
        proprio_normalisation: the same choice for proprioception.
        image_size_px: height and width the model sees, or that its own processor starts from; None
            keeps the cameras' own.
        image_tokens_per_camera: positions that the prompt reserves for one camera's image.
        image_token: the token that reserves such a position in the embedded model's prompts.
        max_text_tokens: tokens that every prompt has for its instruction, the end token included.
            A longer one makes the embedded model's prompt longer (a word that its tokenizer was not
            trained on takes about one token per letter); for other models it is the limit.
        padding: "fixed" gives every prompt one length, so compiled models see one shape and
            batches concatenate; "longest" pads to the longest prompt of the batch, which only the
            embedded model's prompts can.
        camera_slots: images the model sees, black ones after the robot's own; like the next two
            for a model that several robots share, and None gives the robot's own number.
        proprio_dim: numbers of proprioception the model sees, zeros after the robot's own.
        action_dim: numbers of a control step the model gives, zeros after the robot's own.
    """

    action_normalisation: Normalisation = "limits"
    proprio_normalisation: Normalisation = "mean_std"
    image_size_px: tuple[int, int] | None = None
    image_tokens_per_camera: int = 16
    image_token: str = IMAGE
    max_text_tokens: int = 64
    padding: Literal["fixed", "longest"] = "fixed"
    camera_slots: int | None = None
    proprio_dim: int | None = None
    action_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("action_normalisation", "proprio_normalisation"):
            if getattr(self, name) not in NORMALISATIONS:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {NORMALISATIONS}")
        if self.padding not in ("fixed", "longest"):
            raise ValueError(f"padding {self.padding!r} is not 'fixed' or 'longest'")
        require_numbers(
            self,
            at_least_1=(
                "image_size_px",
                "image_tokens_per_camera",
                "max_text_tokens",
                "camera_slots",
                "proprio_dim",
                "action_dim",
            ),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ProcessorConfig:
        """What `dataclasses.asdict` gave, also after JSON."""
        size = data["image_size_px"]
        return cls(**{**data, "image_size_px": None if size is None else tuple(size)})

    @property
    def is_shared(self) -> bool:
        """Whether the model needs a mask of the dimensions that a robot has."""
        return (self.camera_slots, self.proprio_dim, self.action_dim) != (None, None, None)


def collate(observations: Sequence[Observation], spec: RobotSpec) -> ObservationBatch:
    """Single-robot observations as one batch on the CPU.

    Raises:
        ContractMismatchError: an observation does not follow the contract.
    """
    for observation in observations:
        observation.validate(spec)
    # float64 from a robot's driver is accepted; copy=False, since most are float32 already.
    proprio = np.stack([o.proprio for o in observations]).astype(np.float32, copy=False)
    return ObservationBatch(
        images={
            camera.name: torch.from_numpy(np.stack([o.images[camera.name] for o in observations]))
            for camera in spec.cameras
        },
        proprio=torch.from_numpy(proprio),
        instructions=[o.instruction for o in observations],
        time_s=torch.tensor([o.time_s for o in observations], dtype=torch.float32),
    )


def common_size_px(specs: Iterable[RobotSpec], config: ProcessorConfig) -> tuple[int, int]:
    """Height and width that all images of all these robots get.

    Raises:
        ValueError: cameras differ in size and none is configured.
    """
    if config.image_size_px is not None:
        return config.image_size_px
    sizes = {
        f"{spec.robot}/{camera.name}": (camera.height, camera.width)
        for spec in specs
        for camera in spec.cameras
    }
    # All cameras are stacked into one tensor, so they need one size.
    if len(set(sizes.values())) != 1:
        raise ValueError(f"cameras differ in size, set image_size_px: {sizes}")
    return next(iter(sizes.values()))


class Processor:
    """Observations to model inputs, actions to normalised ones and back, for one contract.

    Args:
        spec: the robot's contract.
        statistics: of the demonstrations; None where the configuration needs none.
        language: for the embedded model any fast tokenizer that has the image token, an end and a
            padding token, or a language tower; for other models their own transformers processor.
        config: how to convert.

    Raises:
        ValueError: statistics are missing, limits are infinite, cameras differ in size, the
            language and the configuration do not fit, or the configured sizes are too small.

    Attributes:
        cameras: images the model sees of an observation, black ones included.
        proprio_dim: dimensions of proprioception it sees, zeros included.
        action_dim: dimensions of a control step it gives, those that are dropped included.
        present: bool [cameras + proprio + action], True for the robot's own, which come before the
            padding; see `ModelInputs.present`.
        proprio: normaliser of proprioception; `RobotNetwork` holds it, with the next two.
        action: normaliser of actions.
        limits: of actions.
    """

    def __init__(
        self,
        spec: RobotSpec,
        statistics: Statistics | None,
        language: Language,
        config: ProcessorConfig | None = None,
    ) -> None:
        self.spec = spec
        self.statistics = statistics
        self.language = language
        self.config = config = config or ProcessorConfig()
        action, proprio = (statistics.action, statistics.proprio) if statistics else (None, None)
        self.action = AffineNormaliser(
            "action", spec.action, action, config.action_normalisation, config.action_dim
        )
        self.proprio = AffineNormaliser(
            "proprio", spec.proprio, proprio, config.proprio_normalisation, config.proprio_dim
        )
        self.limits = Limits("action", spec.action)
        if not (own := len(spec.cameras)):
            raise ValueError(f"{spec.robot!r} has no camera, and this model acts on what it sees")
        self.cameras = own if config.camera_slots is None else config.camera_slots
        if self.cameras < own:
            raise ValueError(f"{spec.robot!r} has {own} cameras, {self.cameras} slots are too few")
        self.proprio_dim, self.action_dim = self.proprio.width, self.action.width
        self.present = torch.cat(
            [
                torch.arange(size) < count
                for size, count in (
                    (self.cameras, own),
                    (self.proprio_dim, spec.proprio.dim),
                    (self.action_dim, spec.action.dim),
                )
            ]
        )
        self.image_size_px = common_size_px([spec], config)
        self.prompts = self._make_prompts()

    # actions

    def encode_actions(self, actions: Tensor | np.ndarray) -> Tensor:
        """Physical [..., action.dim] to normalised float32 [..., action_dim], on the same device.

        Raises:
            ContractMismatchError: wrong shape, or a dimension that is not finite.
        """
        return self.action.encode(actions)

    def decode_actions(self, actions: Tensor) -> Tensor:
        """Inverse of `encode_actions`, clipped to the contract's limits; clipping is logged once.

        Raises:
            ContractMismatchError: wrong shape, or a dimension that is not finite.
        """
        return self.limits.enforce(self.action.decode(actions))

    # observations

    def encode_observation(self, observation: ObservationBatch) -> ModelInputs:
        """Model inputs on the observation's device.

        Raises:
            ContractMismatchError: cameras, shapes or types differ from the contract, or
                proprioception is not finite.
            ValueError: an instruction cannot be read, see `Prompts.texts`.
        """
        device = observation.proprio.device
        # Checked before the network, where a compiled or exported graph could not raise.
        self.proprio.require(observation.proprio)
        # Tokens are made on the CPU, and are cached there; images stay on the device they are on.
        texts = self.prompts.texts(observation.instructions)
        tensors, flat = self.prompts.images(self._stack_images(observation))
        tensors |= {name: tensor.to(device) for name, tensor in texts.items()}
        columns = {n: tensors.pop(n) for n in ("pixel_values", "input_ids", "attention_mask")}
        # expand copies nothing: all rows are the same.
        present = self.present.to(device).expand(len(observation), -1)
        return ModelInputs(
            **columns, proprio=observation.proprio, present=present, extra=tensors, flat=flat
        )

    def _stack_images(self, observation: ObservationBatch) -> Tensor:
        expected = {camera.name for camera in self.spec.cameras}
        if set(observation.images) != expected:
            raise ContractMismatchError(
                f"observation has cameras {sorted(observation.images)}, "
                f"contract has {sorted(expected)}"
            )
        images = []
        for camera in self.spec.cameras:
            image = observation.images[camera.name]
            shape = (len(observation), camera.height, camera.width, 3)
            if tuple(image.shape) != shape or image.dtype != torch.uint8:
                raise ContractMismatchError(
                    f"camera {camera.name!r} is {image.dtype} {tuple(image.shape)}, contract says "
                    f"torch.uint8 {shape}"
                )
            images.append(image)
        return self.stack_images(images)

    def stack_images(self, images: Sequence[Tensor]) -> Tensor:
        """Uint8 [n, height, width, 3] of each camera as `ModelInputs.pixel_values` of the model."""
        resized = [_resize(image, self.image_size_px) for image in images]
        # Black images for cameras that the robot lacks; `present` marks them as padding.
        resized += [torch.zeros_like(resized[0])] * (self.cameras - len(resized))
        # [n, cameras, 3, h, w] as a view with the colour last in memory, see `ModelInputs`.
        return torch.stack(resized, dim=1).permute(0, 1, 4, 2, 3)

    def _make_prompts(self) -> Prompts:
        config, cameras = self.config, self.cameras
        is_foreign = isinstance(self.language, LanguageTower | ProcessorMixin)
        if is_foreign and config.padding != "fixed":
            raise ValueError("only the embedded model's own words can have padding='longest'")
        if isinstance(self.language, LanguageTower):
            return TowerPrompts(self.language, config.max_text_tokens, LONGEST_TEXT)
        if not isinstance(self.language, ProcessorMixin):
            return EmbeddedPrompts(
                self.language,
                config.image_token,
                config.image_tokens_per_camera * cameras,
                config.max_text_tokens,
                config.padding,
            )
        return ForeignPrompts(self.language, cameras, self.image_size_px, config.max_text_tokens)

    # files

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all but the contract and the language."""
        statistics = self.statistics.to_dict() if self.statistics else None
        return {"config": asdict(self.config), "statistics": statistics}

    def save(self, folder: Path | str) -> None:
        """Write contract.json, processor.json and the language's files into an existing folder."""
        folder = Path(folder)
        for name, data in (("contract", self.spec.to_dict()), ("processor", self.to_dict())):
            # Floats survive: JSON holds the shortest text that reads back as the same float64.
            text = json.dumps(data, indent=2)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        self.prompts.save(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Processor:
        """Rebuild what `save` wrote, exactly.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file does not hold what it should.
        """
        folder = Path(folder)
        contract, data = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("contract", "processor")
        )
        statistics = data["statistics"]
        return cls(
            RobotSpec.from_dict(contract),
            None if statistics is None else Statistics.from_dict(statistics),
            load_language(folder),
            ProcessorConfig.from_dict(data["config"]),
        )


def _resize(image: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Uint8 [n, h, w, 3] to another size, antialiased; the same tensor where nothing changes."""
    if tuple(image.shape[1:3]) == tuple(size_px):
        return image
    channels_first = image.permute(0, 3, 1, 2).float()
    # Without antialiasing, shrinking skips pixels, and small objects come and go.
    resized = torch.nn.functional.interpolate(
        channels_first, size=size_px, mode="bilinear", antialias=True
    )
    # byte() would truncate, and darken the image by half a step. Weights are fractions of small
    # numbers, so halves are common: without the nudge every library rounds them in its own way.
    return (resized + 2**-10).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
