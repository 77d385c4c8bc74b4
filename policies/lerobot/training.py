"""LeRobot's own training of its own policies, on decoded images.

`lerobot-train` runs as it is, with three of the parts that it is made of exchanged: the data set
reads the decoded cache, ACT leaves out what nobody reads, and Adam and AdamW update all parameters
in one fused pass. The order of the samples, loss, schedule, checkpoints and whatever else its flags
ask for remain LeRobot's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_train_eval_datasets
from lerobot.optim.factory import make_optimizer_and_scheduler
from lerobot.policies import make_policy
from lerobot.scripts import lerobot_train
from lerobot.utils.constants import HF_LEROBOT_HOME
from lerobot.utils.import_utils import register_third_party_plugins
from torch.optim.lr_scheduler import LRScheduler

from policies.imitation.frame_cache import open_frames
from policies.lerobot.act_acceleration import optimise_training
from policies.lerobot.decoded_dataset import DecodedDataset
from vla.data.recorded_frames import read_frames


def train() -> None:
    """Train with the flags in `sys.argv`, which are those of `lerobot-train`.

    Raises:
        ValueError: a streamed data set, or one that cannot be decoded, see `DecodedDataset`.
    """
    register_third_party_plugins()
    # `lerobot_train` looks its parts up by name at each call; they are its own again afterwards.
    with patch.multiple(
        lerobot_train,
        make_train_eval_datasets=decoded_datasets,
        make_policy=make_optimised_policy,
        make_optimizer_and_scheduler=fused_optimizer,
    ):
        lerobot_train.train()


def decoded_datasets(config: TrainPipelineConfig) -> tuple[DecodedDataset, DecodedDataset | None]:
    """LeRobot's data sets for training and evaluation, read from the decoded cache."""
    if config.dataset.streaming:
        raise ValueError("a streamed data set cannot be decoded beforehand: download it")
    config.num_workers = 0  # a batch costs less than handing it from one process to another
    try:
        training, heldout = make_train_eval_datasets(config)
    except Exception:
        _require_local_frames(config.dataset)
        raise
    cameras = getattr(config.policy, "cameras", ())  # ours has a choice, LeRobot's see all
    return (
        DecodedDataset(training, cameras),
        None if heldout is None else DecodedDataset(heldout, cameras),
    )


def _require_local_frames(config: DatasetConfig) -> None:
    """Name what is wrong with files that are there: LeRobot would ask the hub for them instead."""
    root = Path(config.root or HF_LEROBOT_HOME / config.repo_id)
    if not (root / "meta" / "info.json").is_file():
        return
    numbers = [number for number, _ in read_frames(root).episodes()]
    if numbers != list(range(len(numbers))):
        raise ValueError(
            f"data set {root}: LeRobot counts episodes from 0 without a gap, here they are "
            f"{numbers}. `vla pretrain` reads them as they are; lerobot-edit-dataset "
            "--operation.type=merge --push_to_hub=false writes a copy with new numbers"
        )
    open_frames(root)


def make_optimised_policy(*args: Any, **options: Any) -> Any:
    """LeRobot's policy; ACT computes less."""
    policy: Any = make_policy(*args, **options)
    if policy.name == "act":
        optimise_training(policy)
    return policy


def fused_optimizer(
    config: TrainPipelineConfig, policy: Any
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """LeRobot's optimizer; Adam and AdamW in one fused pass, which only rounds differently."""
    optimizer, schedule = make_optimizer_and_scheduler(config, policy)
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        _fuse(optimizer.param_groups, True)
        # LeRobot goes on only from what its own optimizer would have written.
        optimizer.register_state_dict_post_hook(lambda _, s: _fuse(s["param_groups"], None))
        optimizer.register_load_state_dict_pre_hook(lambda _, s: _fuse(s["param_groups"], True))
    return optimizer, schedule


def _fuse(groups: Iterable[dict[str, Any]], fused: bool | None) -> None:
    for group in groups:
        group["fused"] = fused
