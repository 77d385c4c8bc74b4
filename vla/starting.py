"""A policy to train: the vision-language model of a checkpoint, under the contract of new data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import vla
from vla.contract import RobotSpec
from vla.model.heads.base import HeadConfig
from vla.model.vla import Interface
from vla.normalisation import Statistics
from vla.policy import VLAPolicy
from vla.processor import Processor
from vla.prompts import EmbeddedPrompts

GROUNDED = Path(vla.__file__).parent / "weights" / "grounded"
"""The shipped checkpoint, which has learned to point but not to act."""


def start_policy(
    start: VLAPolicy,
    spec: RobotSpec,
    statistics: Statistics,
    instructions: Iterable[str],
    chunks: Tensor,
    head: HeadConfig,
) -> VLAPolicy:
    """Put `start` under another contract; its model is changed in place.

    The actor starts untrained unless it is of the same kind for the same robot. For another robot
    what its cameras and proprioception decide starts untrained too.

    Args:
        start: brings the vision-language model and its tokenizer.
        spec: contract of the data.
        statistics: of the data.
        instructions: all that will be met; the prompt is made long enough for them.
        chunks: expert actions [n, horizon, action.dim] in the contract's units.
        head: which action head, and its settings.
    """
    old, model = start.processor, start.model
    # The pointer reads proprioception as it was normalised when it learned to point.
    if old.statistics is not None and old.spec.proprio == spec.proprio:
        statistics = replace(statistics, proprio=old.statistics.proprio)
    sizes = {(camera.height, camera.width) for camera in spec.cameras}
    size = old.config.image_size_px if sizes == {old.image_size_px} else old.image_size_px
    config = replace(old.config, image_size_px=size)
    if isinstance(old.prompts, EmbeddedPrompts):
        longest = max((len(old.prompts.tokens(text)) for text in instructions), default=0)
        if longest > config.max_text_tokens:
            config = replace(config, max_text_tokens=2 ** (longest - 1).bit_length())
    processor = Processor(spec, statistics, old.language, config)
    model.replace_interface(Interface.of(processor))
    model.replace_actor(chunks.shape[1], head.fitted(processor.encode_actions(chunks)))
    return VLAPolicy(model, processor)
