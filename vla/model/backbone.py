"""The interface of every vision-language backbone: hidden states at known positions.

`embedded.py` holds the small model that is made here, `vlm.py` any image-text model of
transformers, `dual.py` a vision tower and a text encoder; `registry.py` builds them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from vla.processing.model_inputs import ModelInputs
from vla.settings import require_numbers

Tuning = Literal["frozen", "lora", "full"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BackboneConfig:
    """How a pretrained model is used.

    Attributes:
        tuning: which of its weights train: none ("frozen"), low-rank adapters ("lora") or all
            ("full"). The readouts, and what is built on them, always train.
        lora_rank: rank of the adapters.
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank.
        lora_targets: last parts of the names of the linear layers that get adapters.
        layer: whose hidden states are read: -1 the last, 12 the twelfth, -2 the last but one. The
            layers above are dropped, and the final normalisation is applied to what is read. Of
            two towers both are cut.
        dtype: of the pretrained weights; adapters and readouts stay float32.
        gradient_checkpointing: recompute activations in the backward pass; less memory, more time.
        text_tower: hub id or folder of a text encoder, where the model is a vision tower alone.
        fusion_width: width of the transformer that joins two towers.
        fusion_layers: its layers.
    """

    tuning: Tuning = "frozen"
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    layer: int = -1
    dtype: Precision = "float32"
    gradient_checkpointing: bool = False
    text_tower: str | None = None
    fusion_width: int = 256
    fusion_layers: int = 2

    def __post_init__(self) -> None:
        for name, valid in (("tuning", get_args(Tuning)), ("dtype", get_args(Precision))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {valid}")
        counts = ("lora_rank", "fusion_layers", "fusion_width")
        require_numbers(self, at_least_1=counts, above_0=("lora_alpha",), any_sign=("layer",))
        # Attention heads are 64 wide (`vla.model.dual`), hence the multiple.
        if self.fusion_width % 64:
            raise ValueError(f"fusion_width is a multiple of 64, got {self.fusion_width}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BackboneConfig:
        """What `dataclasses.asdict` gave, also after JSON."""
        # JSON has no tuples; a list would not equal the configuration that was saved.
        fields: dict[str, Any] = {**data, "lora_targets": tuple(data["lora_targets"])}
        return cls(**fields)


@dataclass(frozen=True)
class Hidden:
    """Hidden states of the chosen layer.

    Attributes:
        images: at the image tokens that are places in an image, a square grid row by row.
        readout: at the learned positions after the prompt: one asks for each point, the last is
            read by the actor.
        prompt: of the whole prompt without the learned positions, in the model's own precision: a
            large model's prompt is megabytes a frame.
        mask: False at the prompt's padding.
    """

    images: Float32[Tensor, "n cameras image_tokens width"]
    readout: Float32[Tensor, "n readouts width"]
    prompt: Float[Tensor, "n tokens width"]
    mask: Bool[Tensor, "n tokens"]


class Backbone(nn.Module, ABC):
    """Images and words to hidden states.

    Attributes:
        width: of the hidden states.
        readout: the learned positions, [readouts, width].
        prompt_tokens: of a usual prompt. The readouts' positions are those behind it, also where an
            instruction needs more tokens: positions are what the model was trained with.
        bf16: compute in bfloat16 where the device multiplies such matrices. Faster, but actions are
            rounded, and in another way for every size of batch.
    """

    width: int
    readout: nn.Parameter
    prompt_tokens: int | None = None
    bf16: bool = False  # how to compute, no property of the weights: not saved

    @abstractmethod
    def forward(self, inputs: ModelInputs) -> Hidden:
        """Hidden states."""

    def placed_tokens(self, image_tokens: int) -> int:
        """How many of an image's tokens `Hidden.images` has: those that are places in it."""
        return image_tokens

    def keep_last_readout(self) -> None:
        """Drop the readouts that ask for points: the last one stays, which the actor reads."""
        self.readout = nn.Parameter(self.readout.detach()[-1:].clone())

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What rebuilds the same architecture: plain data for JSON, with its `kind`."""


def reduced_precision(device: torch.device) -> AbstractContextManager:
    """Autocast to bfloat16 where that is faster: emulated, it is several times slower."""
    if multiplies_bfloat16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


# A query of the hardware cannot be traced by torch.compile; the answer is fixed for a process.
@torch.compiler.assume_constant_result
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 matrices."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere or later
    # Either instruction set will do; without both PyTorch emulates the products.
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
