"""A policy to train: the vision-language model of a checkpoint, under the contracts of new data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from vla_runtime.instructions import prompt_width

import vla
from vla.checkpoint.folder import load_checkpoint
from vla.contract import RobotSpec
from vla.model.embedded import EmbeddedConfig, embedded_backbone
from vla.model.heads.base import HeadConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.points import PointsConfig
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.policy import VLAPolicy, load_model
from vla.processing.embodiments import Embodiment, Embodiments, fit_sizes
from vla.processing.language_tower import LanguageTower
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.tokenizer import train_tokenizer

GROUNDED = Path(vla.__file__).parent / "weights" / "grounded"
"""The shipped checkpoint, which has learned to point but not to act."""

SCRATCH_SIZE_PX = 96
"""Side of the images that a model from scratch sees."""


def start_policy(
    start: VLAPolicy,
    robots: Mapping[str, Embodiment],
    chunks: Mapping[str, Tensor],
    head: HeadConfig | None,
) -> VLAPolicy:
    """Give `start` other contracts; its model is changed in place.

    The actor starts untrained unless it is of the same kind for the same sizes. A start that knows
    none of the robots forgets its points: it has never seen their cameras. One that knows some of
    them points on, but its actor reads no relative positions: of the other robots the points are
    features like any others, and a gain would multiply what they begin with, noise.

    Args:
        start: brings the vision-language model and its tokenizer.
        robots: contract and statistics of the data of each robot, by name; the policy returned is
            that of the first.
        chunks: by the same names, expert actions [n, chunk_length, action.dim] in the
            contract's units.
        head: which action head, and its settings; None for the one that suits the start.
    """
    old = start.embodiments.processors
    specs = [robot.spec for robot in robots.values()]
    known = [any(same_inputs(spec, p.spec) for p in old.values()) for spec in specs]
    is_known = any(known)
    config = _conversions(start.processor, specs, is_known)
    scaled = {name: _keep_scale(name, robot, old) for name, robot in robots.items()}
    # The tokenizer stays that of the start: new ids would make its word embeddings useless.
    conversions = Embodiments.make(scaled, start.processor.language, config)
    first = next(iter(robots))
    # Points and sizes first: the actor is built for them.
    if not is_known:
        start.model.drop_points()
    elif not all(known):
        start.model.drop_relative()
    start.model.replace_dims(ModelDims.of(conversions[first]))
    start.model.replace_actor(
        encode_chunks(conversions, chunks), head or default_head(start.model.config.points)
    )
    return VLAPolicy(start.model, conversions, first, start.ledger)


def scratch_policy(
    robots: Mapping[str, Embodiment],
    instructions: Collection[str],
    embedded: EmbeddedConfig,
    model: VLAConfig,
    conversions: ProcessorConfig,
    tower: LanguageTower | None = None,
) -> VLAPolicy:
    """A new embedded model for these robots, with a tokenizer of these instructions; untrained.

    Args:
        robots: contract and statistics of the data of each robot, by name; the policy returned is
            that of the first.
        instructions: all that occur.
        embedded: sizes of the vision-language model.
        model: what is built on it.
        conversions: how observations and actions are converted; without an `image_size_px` images
            become `SCRATCH_SIZE_PX` a side, and sizes that the model determines are overridden.
        tower: reads the instructions instead of a tokenizer of their own.

    Raises:
        ValueError: images that are not square, or do not divide into the model's tokens.
    """
    height, width = conversions.image_size_px or (SCRATCH_SIZE_PX, SCRATCH_SIZE_PX)
    if height != width:
        raise ValueError(f"the embedded model sees square images, image_size_px is {height, width}")
    language = tokenizer = tower or train_tokenizer(instructions)
    if isinstance(tokenizer, LanguageTower):
        longest = max(len(tokenizer.tokens(text)) for text in instructions)
    else:
        encode = tokenizer.encode
        longest = max(len(encode(text, add_special_tokens=False)) for text in instructions)
    config = replace(
        fit_sizes(conversions, [robot.spec for robot in robots.values()]),
        image_size_px=(height, width),
        image_tokens_per_camera=embedded.image_tokens(height),
        # Room for what is demonstrated and its end token: padding costs as much as words.
        max_text_tokens=prompt_width(8, longest + 1),
    )
    every, first = Embodiments.make(robots, language, config), next(iter(robots))
    backbone = embedded_backbone(embedded, language, height, len(model.points) + 1)
    return VLAPolicy(VLA(backbone, ModelDims.of(every[first]), model), every, first)


def default_head(points: PointsConfig) -> HeadConfig:
    """The head where none is chosen: without points, one that attends to the whole prompt."""
    return GaussianHeadConfig() if len(points) else FlowHeadConfig()


def encode_chunks(embodiments: Embodiments, chunks: Mapping[str, Tensor]) -> Tensor:
    """Chunks of all robots, by name, normalised and padded: [n, chunk_length, action_dim]."""
    return torch.cat([embodiments[name].encode_actions(part) for name, part in chunks.items()])


def load_start(folder: Path | str, device: torch.device | str = "cpu") -> VLAPolicy:
    """A checkpoint to start from, of whichever of its robots; see `load_policy` for the errors."""
    checkpoint = load_checkpoint(folder)
    embodiments = checkpoint.embodiments
    model, first = load_model(checkpoint).to(device), next(iter(embodiments))
    return VLAPolicy(model, embodiments, first, checkpoint.ledger)


def same_inputs(one: RobotSpec, other: RobotSpec) -> bool:
    """Whether a pointer trained for one robot works for the other."""
    # In order: image slots and columns of proprioception are told apart by position alone.
    cameras, others = ([camera.name for camera in spec.cameras] for spec in (one, other))
    return cameras == others and one.proprio.names == other.proprio.names


def _conversions(old: Processor, specs: list[RobotSpec], keep_sizes: bool) -> ProcessorConfig:
    """The configuration of the start, with room for these robots and their images."""
    # Explicit, since the new cameras may differ in size and the model's grid of tokens may not.
    config = replace(old.config, image_size_px=old.image_size_px)
    if not keep_sizes:
        config = replace(config, camera_slots=None, proprio_dim=None, action_dim=None)
    return fit_sizes(config, specs)


def _keep_scale(name: str, robot: Embodiment, old: Mapping[str, Processor]) -> Embodiment:
    """The pointer reads proprioception as it was normalised when it learned to point."""
    alike = {n: p.statistics for n, p in old.items() if p.spec.proprio == robot.spec.proprio}
    # The robot of this name first, else any with an equal specification of proprioception.
    kept = alike.get(name) or next(filter(None, alike.values()), None)
    if kept is None or robot.statistics is None:
        return robot
    return replace(robot, statistics=replace(robot.statistics, proprio=kept.proprio))
