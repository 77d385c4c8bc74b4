"""Backbones by kind, and pretrained models from the hub or a folder.

No code of a model's author is ever run and no pickle is read: only architectures that transformers
itself brings, with weights in safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    VisionTextDualEncoderProcessor,
)
from transformers.utils import logging

from vla.model.backbone import Backbone, BackboneConfig
from vla.model.dual import DualBackbone, tower_class
from vla.model.embedded import EmbeddedBackbone
from vla.model.vlm import VLMBackbone
from vla.processing.prompts import ForeignPrompts

KINDS: dict[str, Callable[[dict[str, Any], int], Backbone]] = {
    "embedded": EmbeddedBackbone.from_dict,
    "vlm": VLMBackbone.from_dict,
    "dual": DualBackbone.from_dict,
}

_LONGEST_TEXT = 64
"""Tokens that a text encoder is given, padding included; SigLIP learned with 64."""

_UNREAD = ("pooler", "lm_head")
"""Parts of weights' names that some checkpoints lack and nothing here reads."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, ready to be built on.

    Attributes:
        backbone: the model.
        processor: makes its inputs.
        image_tokens: tokens that one image becomes.
        max_text_tokens: longest instruction.
    """

    backbone: Backbone
    processor: ProcessorMixin
    image_tokens: int
    max_text_tokens: int


def backbone_from_dict(data: dict[str, Any], readouts: int) -> Backbone:
    """An untrained backbone of the architecture that its `to_dict` described.

    Args:
        data: what `to_dict` gave, also after JSON.
        readouts: learned positions after the prompt.

    Raises:
        ValueError: unknown kind; lists the known ones.
    """
    fields = dict(data)
    kind = fields.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of backbone {kind!r}: {sorted(KINDS)}")
    return KINDS[kind](fields, readouts)


def require_pretrained(name: str, config: BackboneConfig) -> None:
    """Refuse a pretrained model that cannot be read, without reading its weights.

    Raises:
        FileNotFoundError: see `load_pretrained`.
    """
    for part in (name, config.text_tower):
        if part is not None:
            _read(part, AutoConfig.from_pretrained)


def load_pretrained(
    name: str,
    config: BackboneConfig,
    cameras: int,
    size_px: tuple[int, int],
    max_text_tokens: int,
    readouts: int = 1,
) -> Pretrained:
    """Load a pretrained model with its processor.

    Args:
        name: hub id, or folder written by `save_pretrained`.
        config: how it is used.
        cameras: images an observation.
        size_px: height and width of the images.
        max_text_tokens: longest instruction; a text encoder has a limit of its own.
        readouts: learned positions after the prompt.

    Raises:
        FileNotFoundError: neither a folder nor reachable on the hub; says what is valid.
        ValueError: another architecture, weights of another one, or a context that is too short.
    """
    found = _read(name, AutoConfig.from_pretrained)
    if type(found) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        processor = _image_text_processor(name)
        prompts = ForeignPrompts(processor, cameras, size_px, max_text_tokens)
        # Checked before the weights are read, which takes minutes for a large model.
        context = getattr(found.get_text_config(), "max_position_embeddings", None)
        if context is not None and (needed := prompts.length + readouts) > context:
            raise ValueError(
                f"{name} reads {context} tokens, but {cameras} images, an instruction of "
                f"{max_text_tokens} tokens and {readouts} readouts need {needed}: allow a shorter "
                "instruction, or give smaller images where the model keeps their size"
            )
        model = _weights(name, AutoModelForImageTextToText, config)
        tokens = prompts.image_tokens_per_camera
        backbone = VLMBackbone(model, config, tokens, readouts)
        return Pretrained(backbone, processor, tokens, max_text_tokens)
    return _load_towers(name, found, config, cameras, size_px, readouts)


def _load_towers(
    name: str,
    found: PreTrainedConfig,
    config: BackboneConfig,
    cameras: int,
    size_px: tuple[int, int],
    readouts: int,
) -> Pretrained:
    pair = (
        found if config.text_tower is None else _read(config.text_tower, AutoConfig.from_pretrained)
    )
    vision = getattr(found, "vision_config", found)
    text: Any = getattr(pair, "text_config", None if config.text_tower is None else pair)
    # Recognised by attributes instead of by name, so that new architectures of transformers fit.
    if not hasattr(vision, "patch_size") or not hasattr(text, "vocab_size"):
        image_text = sorted(c.model_type for c in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
        raise ValueError(
            f"{name} is a {found.model_type!r}"
            + (f" and {config.text_tower} a {pair.model_type!r}" if config.text_tower else "")
            + ": give a dual encoder such as siglip or clip, a vision transformer with a text "
            f"encoder as text_tower, or an image-text model, one of {image_text}"
        )
    processor = _tower_processor(name, config.text_tower)
    # Most text encoders have learned position embeddings: their context is a hard limit.
    longest = min(_LONGEST_TEXT, getattr(text, "max_position_embeddings", _LONGEST_TEXT))
    prompts = ForeignPrompts(processor, cameras, size_px, longest)
    # The image processor decides the size of the images: a blank one shows which.
    pixels = prompts.images(torch.zeros(1, cameras, 3, *size_px, dtype=torch.uint8))[0]
    height, width = pixels["pixel_values"].shape[-2:]
    # Patches alone: the backbone drops the special tokens before them.
    tokens = (height // vision.patch_size) * (width // vision.patch_size)
    backbone = DualBackbone(
        _weights(name, tower_class(vision), config),
        _weights(config.text_tower or name, tower_class(text), config),
        config,
        cameras,
        tokens,
        readouts,
    )
    return Pretrained(backbone, processor, tokens, longest)


def _image_text_processor(name: str) -> ProcessorMixin:
    processor = _read(name, AutoProcessor.from_pretrained)
    images: Any = getattr(processor, "image_processor")  # noqa: B009  no typed attribute
    if getattr(images, "do_image_splitting", False):
        # Every camera is one image; without tiles there is no reason to enlarge it first.
        images.do_image_splitting = False
        images.size = dict(images.max_image_size)
    return processor


def _tower_processor(name: str, text_tower: str | None) -> ProcessorMixin:
    if text_tower is None:
        return _read(name, AutoProcessor.from_pretrained)
    return VisionTextDualEncoderProcessor(
        _read(name, AutoImageProcessor.from_pretrained),
        _read(text_tower, AutoTokenizer.from_pretrained),
    )


def _read[Loaded](name: str, load: Callable[..., Loaded], **options: Any) -> Loaded:
    try:
        # transformers raises OSError for a missing folder or file and for an unreachable hub alike.
        return load(name, trust_remote_code=False, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"no model {name!r}: give a folder written by save_pretrained, with its processor and "
            f"weights in safetensors ({Path(name).absolute()} is none), or the id of a hub model "
            f"while the hub can be reached ({error})"
        ) from error


def _weights(name: str, kind: Any, config: BackboneConfig) -> PreTrainedModel:
    """A model with all of its weights: transformers itself fills gaps with random numbers."""
    level = logging.get_verbosity()
    # It would list what a tower leaves in the file; what is missing is said below.
    logging.set_verbosity_error()
    try:
        model, report = _read(
            name,
            kind.from_pretrained,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,  # never a pickle
            # Wrong shapes go into the report, so that one error below names them and what is
            # missing.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(level)
    lacking = [key for key in report["missing_keys"] if not any(part in key for part in _UNREAD)]
    if lacking := sorted([*lacking, *(key for key, *_ in report["mismatched_keys"])]):
        raise ValueError(
            f"{name} holds weights of another architecture than its config.json says "
            f"({model.config.model_type}): {len(lacking)} are missing or of another shape, such "
            f"as {lacking[0]}"
        )
    return model
