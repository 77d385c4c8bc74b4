"""Two robots that share nothing, their recordings, and a tiny model to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vla.contract import CameraSpec, ObservationBatch, RobotSpec, VectorSpec
from vla.model.embedded import EmbeddedConfig, embedded_backbone
from vla.model.points import PointsConfig, PointSpec
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.policy import VLAPolicy
from vla.processing.embodiments import Embodiment, Embodiments, fit_sizes
from vla.processing.normalisation import Statistics
from vla.processing.processor import ProcessorConfig
from vla.processing.tokenizer import train_tokenizer

SIZE = 12
WORDS = ("go to the left", "lift the red block", "put it down")
CART = RobotSpec(
    robot="cart",
    action=VectorSpec(("x",), ("1",), (-1.0,), (1.0,)),
    proprio=VectorSpec(("x",), ("m",), (-1.0,), (1.0,)),
    cameras=(CameraSpec("top", 2, 2),),
    control_rate_hz=10.0,
)
ARM = RobotSpec(
    robot="arm",
    action=VectorSpec(("a", "b", "c"), ("deg",) * 3, (100.0,) * 3, (200.0, 300.0, 400.0)),
    proprio=VectorSpec(("a", "b"), ("deg",) * 2, (0.0,) * 2, (360.0,) * 2),
    cameras=(CameraSpec("front", SIZE, SIZE), CameraSpec("wrist", SIZE, SIZE)),
    control_rate_hz=30.0,
)


def measure(spec: RobotSpec, seed: int = 0) -> Statistics:
    """Statistics of random demonstrations."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(spec.action.low, spec.action.high, (50, spec.action.dim))
    return Statistics.measure(
        actions, rng.uniform(spec.proprio.low, spec.proprio.high, (50, spec.proprio.dim))
    )


def observe(spec: RobotSpec, count: int = 3, seed: int = 0) -> ObservationBatch:
    """Random observations."""
    rng = np.random.default_rng(seed)
    proprio = rng.uniform(spec.proprio.low, spec.proprio.high, (count, spec.proprio.dim))
    return ObservationBatch(
        images={
            c.name: torch.from_numpy(
                rng.integers(256, size=(count, c.height, c.width, 3), dtype="u1")
            )
            for c in spec.cameras
        },
        proprio=torch.from_numpy(proprio.astype(np.float32)),
        instructions=[WORDS[i % len(WORDS)] for i in range(count)],
        time_s=torch.zeros(count),
    )


POINTS = PointsConfig(
    (PointSpec("gripper"), PointSpec("object"), PointSpec("target")),
    center_m=(1.3, 0.75, 0.5),
    scale_m=0.2,
    relative=(("gripper", "object"), ("object", "target")),
    relative_gain=16.0,
)


def tiny_policy(
    *specs: RobotSpec,
    chunk_length: int = 3,
    points: PointsConfig = POINTS,
    grid: int = 0,
    size: int = SIZE,
) -> VLAPolicy:
    """An untrained model of a few thousand weights for these robots, in control of the first."""
    torch.manual_seed(0)
    embedded = EmbeddedConfig(32, 1, 1, heads=2, patch_size=6, grid=grid)
    tokenizer = train_tokenizer(WORDS)
    config = ProcessorConfig(
        image_size_px=(size, size),
        image_tokens_per_camera=embedded.image_tokens(size),
        max_text_tokens=16,
    )
    robots = {spec.robot: Embodiment(spec, measure(spec)) for spec in specs}
    embodiments = Embodiments.make(robots, tokenizer, fit_sizes(config, specs))
    name = specs[0].robot
    backbone = embedded_backbone(embedded, tokenizer, size, len(points) + 1)
    model = VLA(backbone, ModelDims.of(embodiments[name]), VLAConfig(chunk_length, points=points))
    return VLAPolicy(model, embodiments, name)


def record(
    root: Path,
    spec: RobotSpec,
    lengths: Sequence[int] = (5, 4, 6),
    points: Sequence[str] = (),
) -> Path:
    """A LeRobotDataset of random episodes, with its contract; an episode has two instructions.

    Positions of the points are random, and not known in the first frame of an episode.
    """
    # Here, so that the models above can be used where LeRobot is not installed.
    from lerobot_folder import Frame, camera, vector, write_episodes

    features = {f"observation.images.{c.name}": camera(c.height, c.width) for c in spec.cameras} | {
        "observation.state": vector(spec.proprio.names),
        "action": vector(spec.action.names),
        **{f"points.{name}": vector("xyz") for name in points},
    }
    rng = np.random.default_rng(0)

    def frame(step: int, length: int) -> Frame:
        images = {
            f"observation.images.{c.name}": rng.integers(
                256, size=(c.height, c.width, 3), dtype=np.uint8
            )
            for c in spec.cameras
        }
        numbers = {
            key: rng.uniform(limits.low, limits.high).astype(np.float32)
            for key, limits in (("observation.state", spec.proprio), ("action", spec.action))
        }
        for name in points:
            there = rng.uniform(0, 1, 3).astype(np.float32)
            numbers[f"points.{name}"] = there if step else there * np.float32("nan")
        return images | numbers | {"task": WORDS[step >= length // 2]}

    episodes = ((frame(step, length) for step in range(length)) for length in lengths)
    write_episodes(root, features, episodes, int(spec.control_rate_hz), spec.robot)
    (root / "meta" / "contract.json").write_text(json.dumps(spec.to_dict()))
    return root
