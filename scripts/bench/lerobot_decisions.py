"""Time of a decision: LeRobot's eager way and ours, with the same weights; for `bench/lerobot.py`.

From the bytes and numbers of an environment to a command in physical units on the CPU, with all
that is put around the network and with an empty queue of actions, so that the network runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.envs import preprocess_observation
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.factory import make_policy_config
from torch import Tensor

from policies.lerobot.act_acceleration import optimise_inference
from vla.checkpoint.initialisation import GROUNDED
from vla.contract import ObservationBatch, RobotSpec
from vla.data.dataset_contract import read_contract
from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig
from vla.lerobot_plugin.foreign import ForeignPolicy, load_lerobot_policy
from vla.lerobot_plugin.modeling_vla import LeRobotVLAPolicy
from vla.policy import load_policy

_WORDS = "push the block to the red target"
Seen = tuple[dict[str, np.ndarray], np.ndarray]
"""Images uint8 [1, height, width, 3] by camera, and proprioception float32 [1, proprio]."""


class Decider(NamedTuple):
    """A policy with all around it.

    Attributes:
        reference: LeRobot's decider with the same weights.
        spec: its contract, for random observations.
        begin: an episode begins.
        decide: the next command [1, action.dim], on the CPU.
    """

    reference: str
    spec: RobotSpec
    begin: Callable[[], None]
    decide: Callable[[Seen], Tensor]


def training_config(
    root: Path, policy: Sequence[str], device: str, batch_size: int
) -> TrainPipelineConfig:
    """As `lerobot-train --policy.type=act` makes it, with these settings `name=value` of ACT."""
    config = make_policy_config("act", push_to_hub=False, device=device)
    # No download: random weights cost the same time.
    config.pretrained_backbone_weights = None
    for name, _, value in (setting.partition("=") for setting in policy):
        # By the type of the default: text such as "32" becomes an int.
        setattr(config, name, type(getattr(config, name))(value))
    data = DatasetConfig(f"local/{root.name}", root=str(root))
    settings = TrainPipelineConfig(data, policy=config, batch_size=batch_size)
    settings.optimizer = config.get_optimizer_preset()
    return settings


def deciders(
    root: Path, policy: Sequence[str], device: str, compiled: bool = True, bf16: bool = True
) -> dict[str, Decider]:
    """ACT for this data set's robot, also in `bf16`, and our grounded model, also `compiled`."""
    spec = read_contract(root)
    config: Any = training_config(root, policy, device, 1).policy
    meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    # Also saved below, from where ours loads it: both sides have the same weights.
    network = make_policy(config, meta).eval()
    native = load_policy(GROUNDED, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder, grounded = Path(scratch) / "act", Path(scratch) / "vla"
        before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
        for part in (network, before, after):
            part.save_pretrained(folder)
        ours = load_lerobot_policy(folder, spec, device, optimise=optimise_inference)
        if bf16:
            reduced = load_lerobot_policy(folder, spec, device, True, optimise_inference)
        else:
            reduced = None
        native.save(grounded)
        # Our model through LeRobot's plug-in: it shows what LeRobot's pipeline around it costs.
        settings = LeRobotVLAConfig.from_pretrained(grounded)
        settings.device = device
        plugin = LeRobotVLAPolicy.from_pretrained(grounded, config=settings)
        around = make_pre_post_processors(settings, str(grounded))
    # References come first in the order: `measure` compares the others with their commands.
    act, vla = "ACT, LeRobot", "our model, LeRobot"
    chosen = {
        act: lerobot_decider(act, spec, network, before, after),
        "ACT, ours": _ours(act, ours),
        vla: lerobot_decider(vla, native.spec, plugin, *around),
        "our model, ours": _ours(vla, native),
    }
    if reduced is not None:
        chosen["ACT, ours, bfloat16"] = _ours(act, reduced)
    if compiled:
        captured = load_policy(GROUNDED, device)
        captured.compile()
        chosen["our model, ours, compiled"] = _ours(vla, captured)
    return chosen


def lerobot_decider(name: str, spec: RobotSpec, policy: Any, before: Any, after: Any) -> Decider:
    """What `lerobot-eval` does a step."""
    prefix = "observation.images."

    @torch.inference_mode()
    def decide(seen: Seen) -> Tensor:
        images, proprio = seen
        named = {spec.features.camera(c).removeprefix(prefix): p for c, p in images.items()}
        # [1, h, w, 3] uint8 to [1, 3, h, w] float32 in [0, 1].
        batch: dict[str, Any] = preprocess_observation({"pixels": named, "agent_pos": proprio})
        batch["task"] = [_WORDS]
        return after(policy.select_action(before(batch)))

    return Decider(name, spec, policy.reset, decide)


def _ours(reference: str, policy: Any) -> Decider:
    def decide(seen: Seen) -> Tensor:
        images = {name: torch.from_numpy(image) for name, image in seen[0].items()}
        proprio = torch.from_numpy(seen[1])
        # [1, k, action] to [1, action]: the first command of the chunk.
        return policy.act(ObservationBatch(images, proprio, [_WORDS], torch.zeros(1)))[:, 0]

    spec = policy.spec if isinstance(policy, ForeignPolicy) else policy.processor.spec
    return Decider(reference, spec, lambda: policy.reset([0]), decide)


def measure(
    chosen: dict[str, Decider], rounds: int, decisions: int
) -> tuple[dict[str, list[list[float]]], dict[str, float]]:
    """Decisions in turns, on the same random observations; references come first.

    Returns:
        Decider → round → seconds of each decision; and decider → largest difference from LeRobot's
        command with the same weights, in the action's own units.
    """
    times: dict[str, list[list[float]]] = {name: [[] for _ in range(rounds)] for name in chosen}
    apart = dict.fromkeys(chosen, 0.0)
    references = {decider.reference for decider in chosen.values()}
    rng = np.random.default_rng(0)
    for turn in range(-3, rounds * decisions):  # the first ones warm up
        # One observation for each reference, shared by all that are compared with it.
        seen = {name: _observe(chosen[name].spec, rng) for name in references}
        commands: dict[str, Tensor] = {}
        for name, decider in chosen.items():
            # Empties the queue of actions, or most decisions would take one from it.
            decider.begin()
            begun = time.perf_counter()
            commands[name] = decider.decide(seen[decider.reference])
            elapsed_s = time.perf_counter() - begun
            difference = (commands[name] - commands[decider.reference]).abs().max()
            apart[name] = max(apart[name], float(difference))
            if turn >= 0:
                times[name][turn // decisions].append(elapsed_s)
    return times, apart


def _observe(spec: RobotSpec, rng: np.random.Generator) -> Seen:
    images = {
        camera.name: rng.integers(256, size=(1, camera.height, camera.width, 3), dtype=np.uint8)
        for camera in spec.cameras
    }
    return images, rng.normal(size=(1, spec.proprio.dim)).astype(np.float32)
