"""A fair untrained start for LeRobot's ACT where no ImageNet weights can be downloaded.

LeRobot freezes the batch norms of ACT's ResNet, which with random weights do nothing. Set from
frames of the demonstrations, they normalise as a pretrained ResNet's would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from torch import Tensor
from torchvision.ops.misc import FrozenBatchNorm2d

from policies.lerobot.decoded_dataset import DecodedDataset
from scripts.bench.lerobot_decisions import training_config

ACT = ("dim_model=256", "dim_feedforward=1024", "chunk_size=10", "n_action_steps=5")
"""Sizes with which ACT learned most in pilots of five minutes on FetchPush; without its VAE."""
_FRAMES = 192


def write_act_start(root: Path, seed: int, out: Path) -> None:
    """Save a checkpoint for `lerobot-train --policy.path`; one that is there is left as it is.

    Args:
        root: demonstrations.
        seed: of the weights, and of the frames.
        out: a folder.
    """
    if (out / "model.safetensors").is_file():
        return
    config: Any = training_config(root, ACT, "cpu", 1).policy
    config.use_vae = False
    torch.manual_seed(seed)
    data = DecodedDataset(LeRobotDataset(f"local/{root.name}", root=str(root)))
    policy: Any = make_policy(config, data.meta).eval()
    before, after = make_pre_post_processors(config, dataset_stats=data.meta.stats)
    batch = data.batch(torch.randperm(len(data))[:_FRAMES].tolist())
    for key in config.image_features:
        batch[key] = batch[key].float() / 255
    seen = before(batch)
    calibrate(policy.model.backbone, torch.cat([seen[key] for key in config.image_features]))
    for part in (policy, before, after):
        part.save_pretrained(out)


@torch.no_grad()
def calibrate(network: torch.nn.Module, images: Tensor) -> None:
    """Set mean and variance of each frozen batch norm from what it is given, first to last.

    Args:
        network: in place.
        images: float32 [n, 3, h, w], normalised.
    """

    def measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs  # [n, channels, h, w]
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3)))

    norms = [module for module in network.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    network(images)
    for hook in hooks:
        hook.remove()
