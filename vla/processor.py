"""Between what a robot senses and commands and what a model computes with, in both directions.

The only place where numpy meets torch and where physical units meet normalised ones:
`decode_actions` is the exact inverse of `encode_actions`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vla.contract import (
    ActionChunk,
    ContractMismatchError,
    Observation,
    ObservationBatch,
    RobotSpec,
)
from vla.normalisation import NORMALISATIONS, AffineNormaliser, Normalisation, Statistics
from vla.tokenizer import IMAGE, load_tokenizer

_CACHED_INSTRUCTIONS = 4096


@dataclass(frozen=True)
class ProcessorConfig:
    """How observations and actions become tensors.

    Attributes:
        action_normalisation: what maps to [-1, 1]: the contract's limits ("limits"), the data's
            extremes ("min_max") or 1% and 99% quantiles ("quantile"); or mean 0 and standard
            deviation 1 ("mean_std").
        proprio_normalisation: the same choice for proprioception.
        image_size_px: height and width the model sees; None keeps the cameras' own.
        image_tokens_per_camera: places the prompt keeps for one camera's picture.
        image_token: the token that keeps such a place.
        max_text_tokens: longest instruction, its end token included; a word that the embedded
            tokenizer was not trained on takes about one token a letter.
        padding: "fixed" gives every prompt one length, so compiled models see one shape and
            batches concatenate; "longest" pads to the longest prompt of the batch.
    """

    action_normalisation: Normalisation = "limits"
    proprio_normalisation: Normalisation = "mean_std"
    image_size_px: tuple[int, int] | None = None
    image_tokens_per_camera: int = 16
    image_token: str = IMAGE
    max_text_tokens: int = 32
    padding: Literal["fixed", "longest"] = "fixed"

    def __post_init__(self) -> None:
        for name in ("action_normalisation", "proprio_normalisation"):
            if getattr(self, name) not in NORMALISATIONS:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {NORMALISATIONS}")
        if self.padding not in ("fixed", "longest"):
            raise ValueError(f"padding {self.padding!r} is not 'fixed' or 'longest'")
        if self.image_tokens_per_camera < 1 or self.max_text_tokens < 1:
            raise ValueError(f"image_tokens_per_camera and max_text_tokens start at 1: {self}")


@dataclass(frozen=True)
class ModelInputs:
    """What a model sees of `n` observations.

    Attributes:
        pixel_values: uint8 [n, cameras, 3, height, width], cameras in contract order; the model
            calls `normalise_pixels`. Bytes, because replayed batches are then 4 times smaller; laid
            out with the colour last, because that needs no transposing copy (0.15 against 2.1 ms
            for 16 x 3 pictures of 96 px on one core) and convolutions are as fast on it.
        input_ids: int64 [n, tokens], padded on the right.
        attention_mask: bool [n, tokens], False at padding.
        proprio: float32 [n, proprio.dim], normalised.
    """

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    proprio: Tensor

    def __len__(self) -> int:
        return len(self.proprio)

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> ModelInputs:
        """The same on another device."""
        moved = {name: t.to(device) for name, t in self._tensors().items()}
        return ModelInputs(**moved)

    def select(self, rows: Tensor | Sequence[int]) -> ModelInputs:
        """A copy of these rows."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.proprio.device)
        return ModelInputs(**{name: tensor[index] for name, tensor in self._tensors().items()})

    @classmethod
    def concatenate(cls, parts: Sequence[ModelInputs]) -> ModelInputs:
        """All rows of all parts.

        Raises:
            ValueError: the prompts differ in length.
        """
        if len(lengths := {part.input_ids.shape[1] for part in parts}) > 1:
            raise ValueError(
                f"prompts of {sorted(lengths)} tokens do not concatenate: use padding='fixed'"
            )
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def normalise_pixels(pixel_values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes 0..255 to -1..1; called inside the model, so that no export can skip it."""
    return pixel_values.to(dtype) * (2 / 255) - 1


def collate(observations: Sequence[Observation], spec: RobotSpec) -> ObservationBatch:
    """Single-robot observations as one batch on the CPU.

    Raises:
        ContractMismatchError: an observation does not follow the contract.
    """
    for observation in observations:
        observation.validate(spec)
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


class Processor:
    """Observations to model inputs, actions to normalised ones and back, for one contract.

    Args:
        spec: the robot's contract.
        statistics: of the demonstrations; None where the configuration needs none.
        tokenizer: any fast tokenizer that has the image token, an end and a padding token.
        config: how to convert.

    Raises:
        ValueError: statistics are missing, limits are infinite, cameras differ in size, or the
            tokenizer lacks a token.
    """

    def __init__(
        self,
        spec: RobotSpec,
        statistics: Statistics | None,
        tokenizer: PreTrainedTokenizerBase,
        config: ProcessorConfig | None = None,
    ) -> None:
        self.spec = spec
        self.statistics = statistics
        self.tokenizer = tokenizer
        self.config = config = config or ProcessorConfig()
        action, proprio = (statistics.action, statistics.proprio) if statistics else (None, None)
        self._action = AffineNormaliser("action", spec.action, action, config.action_normalisation)
        self._proprio = AffineNormaliser(
            "proprio", spec.proprio, proprio, config.proprio_normalisation
        )
        self.image_size_px = self._common_size()
        self.image_token_id = self._token_id("image token", config.image_token)
        self.pad_token_id = self._token_id("padding token", tokenizer.pad_token)
        self.eos_token_id = self._token_id("end token", tokenizer.eos_token)
        images = [self.image_token_id] * (config.image_tokens_per_camera * len(spec.cameras))
        self._image_prompt = torch.tensor(images)
        self._forget_instructions()

    # actions

    def encode_actions(self, actions: Tensor | np.ndarray) -> Tensor:
        """Physical [..., action.dim] to normalised float32, on the same device.

        Raises:
            ContractMismatchError: wrong shape, or a dimension that is not finite.
        """
        return self._action.encode(actions)

    def decode_actions(self, actions: Tensor) -> Tensor:
        """Exact inverse of `encode_actions`."""
        return self._action.decode(actions)

    def to_action_chunk(self, actions: Tensor, time_s: float = 0.0) -> ActionChunk:
        """One robot's physical actions [horizon, action.dim] as numpy, checked."""
        chunk = ActionChunk(actions.detach().float().cpu().numpy(), time_s)
        chunk.validate(self.spec)
        return chunk

    # observations

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt with padding "fixed": the most that a prompt can have."""
        return len(self._image_prompt) + self.config.max_text_tokens

    def encode_observation(self, observation: ObservationBatch) -> ModelInputs:
        """Model inputs on the observation's device.

        Raises:
            ContractMismatchError: cameras, shapes or types differ from the contract, or
                proprioception is not finite.
            ValueError: an instruction is too long.
        """
        device = observation.proprio.device
        proprio = self._proprio.encode(observation.proprio)
        input_ids, attention_mask = self.encode_instructions(observation.instructions)
        return ModelInputs(
            pixel_values=self._stack_images(observation),
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            proprio=proprio,
        )

    def encode_instructions(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts: places for every camera's picture, the instruction, the end token, padding.

        Returns:
            input_ids int64 [n, tokens] and attention_mask bool [n, tokens], on the CPU.

        Raises:
            ValueError: an instruction does not fit into `max_text_tokens`.
        """
        if len(self._rows) + len(set(instructions)) > _CACHED_INSTRUCTIONS:
            self._forget_instructions()
        if new := [text for text in dict.fromkeys(instructions) if text not in self._rows]:
            self._remember_instructions(new)
        rows = torch.tensor([self._rows[text] for text in instructions], dtype=torch.long)
        lengths = self._lengths[rows]
        width = self.prompt_length if self.config.padding == "fixed" else int(lengths.max())
        return self._prompts[rows, :width], torch.arange(width) < lengths[:, None]

    def _forget_instructions(self) -> None:
        # Few distinct instructions meet many calls: one row each, then indexing.
        self._rows: dict[str, int] = {}
        self._prompts = torch.empty(0, self.prompt_length, dtype=torch.long)
        self._lengths = torch.empty(0, dtype=torch.long)

    def _remember_instructions(self, instructions: Sequence[str]) -> None:
        prompts = torch.full((len(instructions), self.prompt_length), self.pad_token_id)
        prompts[:, : len(self._image_prompt)] = self._image_prompt
        lengths = torch.empty(len(instructions), dtype=torch.long)
        for row, instruction in enumerate(instructions):
            # split_special_tokens: an instruction that says "<image>" must not become a picture.
            text = self.tokenizer.encode(
                instruction, add_special_tokens=False, split_special_tokens=True
            )
            text.append(self.eos_token_id)
            if len(text) > self.config.max_text_tokens:
                raise ValueError(
                    f"instruction has {len(text)} tokens with its end token, the limit is "
                    f"max_text_tokens={self.config.max_text_tokens}; shorten it or build the "
                    f"processor with a higher limit: {instruction!r}"
                )
            lengths[row] = end = len(self._image_prompt) + len(text)
            prompts[row, len(self._image_prompt) : end] = torch.tensor(text)
        for instruction in instructions:
            self._rows[instruction] = len(self._rows)
        self._prompts = torch.cat([self._prompts, prompts])
        self._lengths = torch.cat([self._lengths, lengths])

    def _stack_images(self, observation: ObservationBatch) -> Tensor:
        expected = {camera.name for camera in self.spec.cameras}
        if set(observation.images) != expected:
            raise ContractMismatchError(
                f"observation has cameras {sorted(observation.images)}, "
                f"contract has {sorted(expected)}"
            )
        pictures = []
        for camera in self.spec.cameras:
            image = observation.images[camera.name]
            shape = (len(observation), camera.height, camera.width, 3)
            if tuple(image.shape) != shape or image.dtype != torch.uint8:
                raise ContractMismatchError(
                    f"camera {camera.name!r} is {image.dtype} {tuple(image.shape)}, contract says "
                    f"torch.uint8 {shape}"
                )
            pictures.append(_resize(image, self.image_size_px))
        return torch.stack(pictures, dim=1).permute(0, 1, 4, 2, 3)

    def _common_size(self) -> tuple[int, int]:
        if self.config.image_size_px is not None:
            return self.config.image_size_px
        sizes = {camera.name: (camera.height, camera.width) for camera in self.spec.cameras}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"cameras differ in size, set image_size_px: {sizes}")
        return next(iter(sizes.values()))

    def _token_id(self, role: str, token: Any) -> int:
        vocabulary = self.tokenizer.get_vocab()
        if token not in vocabulary:
            raise ValueError(f"the tokenizer has no {role} {token!r}")
        return vocabulary[token]

    # files

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all but the contract and the tokenizer."""
        statistics = self.statistics.to_dict() if self.statistics else None
        return {"config": asdict(self.config), "statistics": statistics}

    def save(self, folder: Path | str) -> None:
        """Write contract.json, processor.json and tokenizer/ into an existing folder."""
        folder = Path(folder)
        for name, data in (("contract", self.spec.to_dict()), ("processor", self.to_dict())):
            text = json.dumps(data, indent=2)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(str(folder / "tokenizer"))

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
        config = dict(data["config"])
        if config["image_size_px"] is not None:
            config["image_size_px"] = tuple(config["image_size_px"])
        statistics = data["statistics"]
        return cls(
            RobotSpec.from_dict(contract),
            None if statistics is None else Statistics.from_dict(statistics),
            load_tokenizer(folder / "tokenizer"),
            ProcessorConfig(**config),
        )


def _resize(image: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Uint8 [n, h, w, 3] to another size, antialiased; the same tensor where nothing changes."""
    if tuple(image.shape[1:3]) == tuple(size_px):
        return image
    channels_first = image.permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(
        channels_first, size=size_px, mode="bilinear", antialias=True
    )
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
