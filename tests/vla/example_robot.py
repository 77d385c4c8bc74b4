"""A small robot for tests: 3 actions, 4 proprioceptive values, 2 cameras of 12 x 16 pixels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from vla.contract import CameraSpec, Observation, RobotSpec, VectorSpec
from vla.processing.processor import Processor, ProcessorConfig, Statistics
from vla.processing.tokenizer import train_tokenizer

SENTENCES = ("push the red block to the blue zone", "lift the green block", "move to the red ball")
SPEC = RobotSpec(
    robot="example",
    action=VectorSpec(("x", "y", "grip"), ("m/s", "m/s", "m"), (-2, -1, 0), (2, 3, 0.1)),
    proprio=VectorSpec(("px", "py", "pz", "width"), ("m",) * 4, (-1.0,) * 4, (1.0,) * 4),
    cameras=(CameraSpec("front", 12, 16), CameraSpec("wrist", 12, 16)),
    control_rate_hz=25.0,
)


def make_statistics() -> Statistics:
    """Statistics of random demonstrations, always the same."""
    rng = np.random.default_rng(0)
    return Statistics.measure(rng.normal(size=(50, 3)), rng.normal(0.5, 2.0, size=(50, 4)))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One tokenizer for all tests."""
    return train_tokenizer(SENTENCES, vocab_size=512)


def make_processor(**config: Any) -> Processor:
    """A processor with these configuration fields."""
    return Processor(SPEC, make_statistics(), tokenizer(), ProcessorConfig(**config))


def make_observation(seed: int = 0, instruction: str = SENTENCES[0]) -> Observation:
    """A random observation that follows `SPEC`."""
    rng = np.random.default_rng(seed)
    return Observation(
        images={
            camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
            for camera in SPEC.cameras
        },
        proprio=rng.normal(size=4).astype(np.float32),
        instruction=instruction,
        time_s=0.04 * seed,
    )
