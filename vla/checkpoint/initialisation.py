"""A policy to train: the vision-language model of a checkpoint, under the contracts of new data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import vla
from vla.checkpoint.folder import load_checkpoint
from vla.contract import RobotSpec
from vla.model.heads.base import HeadConfig
from vla.model.vla import ModelDims
from vla.policy import VLAPolicy, load_model
from vla.processing.embodiments import Embodiment, Embodiments, fit_sizes
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.prompts import EmbeddedPrompts

GROUNDED = Path(vla.__file__).parent / "weights" / "grounded"
"""The shipped checkpoint, which has learned to point but not to act."""


def start_policy(
    start: VLAPolicy,
    robots: Mapping[str, Embodiment],
    instructions: Iterable[str],
    chunks: Mapping[str, Tensor],
    head: HeadConfig,
) -> VLAPolicy:
    """Give `start` other contracts; its model is changed in place.

    The actor starts untrained unless it is of the same kind for the same sizes. Where the start
    knows none of the robots, the parts that depend on cameras and proprioception start untrained
    too.

    Args:
        start: brings the vision-language model and its tokenizer.
        robots: contract and statistics of the data of each robot, by name; the policy returned is
            that of the first.
        instructions: all that will occur; the prompt is made long enough for them.
        chunks: by the same names, expert actions [n, chunk_length, action.dim] in the
            contract's units.
        head: which action head, and its settings.
    """
    old = start.embodiments.processors
    specs = [robot.spec for robot in robots.values()]
    is_known = any(same_inputs(spec, p.spec) for spec in specs for p in old.values())
    config = _conversions(start.processor, specs, instructions, is_known)
    scaled = {name: _keep_scale(name, robot, old) for name, robot in robots.items()}
    # The tokenizer stays that of the start: new ids would make its word embeddings useless.
    conversions = Embodiments.make(scaled, start.processor.language, config)
    first = next(iter(robots))
    # Sizes first: the actor is built for them.
    start.model.replace_dims(ModelDims.of(conversions[first]), widen=is_known)
    start.model.replace_actor(encode_chunks(conversions, chunks), head)
    return VLAPolicy(start.model, conversions, first, start.ledger)


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


def _conversions(
    old: Processor, specs: list[RobotSpec], instructions: Iterable[str], keep_sizes: bool
) -> ProcessorConfig:
    """The configuration of the start, with room for these robots, their images and their words."""
    # Explicit, since the new cameras may differ in size and the model's grid of tokens may not.
    config = replace(old.config, image_size_px=old.image_size_px)
    if not keep_sizes:
        config = replace(config, camera_slots=None, proprio_dim=None, action_dim=None)
    if isinstance(old.prompts, EmbeddedPrompts):
        longest = max((len(old.prompts.tokens(text)) for text in instructions), default=0)
        # To the next power of two, which leaves room for words that come later.
        if longest > config.max_text_tokens:
            config = replace(config, max_text_tokens=2 ** (longest - 1).bit_length())
    return fit_sizes(config, specs)


def _keep_scale(name: str, robot: Embodiment, old: Mapping[str, Processor]) -> Embodiment:
    """The pointer reads proprioception as it was normalised when it learned to point."""
    alike = {n: p.statistics for n, p in old.items() if p.spec.proprio == robot.spec.proprio}
    # The robot of this name first, else any with an equal specification of proprioception.
    kept = alike.get(name) or next(filter(None, alike.values()), None)
    if kept is None or robot.statistics is None:
        return robot
    return replace(robot, statistics=replace(robot.statistics, proprio=kept.proprio))
