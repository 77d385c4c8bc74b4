"""`vla pretrain`: clone demonstrations, starting from the grounded model or from any other VLM."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import OmitArgPrefixes

from policies.imitation.bc import Cloner, CloningConfig
from policies.imitation.dataset import DemoDataset
from policies.run_folder import RunFolder
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.vector import CpuVecEnv
from vla.contract import ContractMismatchError
from vla.model.backbone import BackboneConfig
from vla.model.heads.registry import HEADS
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, load_policy, vlm_policy
from vla.processor import ProcessorConfig
from vla.starting import GROUNDED, start_policy

HeadName = Literal["gaussian", "token", "fast", "l1", "flow"]


@dataclass(frozen=True)
class PretrainConfig:
    """Clone demonstrations into a policy.

    Attributes:
        task: registry name of the task in which checkpoints are tried and the best is chosen; None
            for data of a robot that is not simulated here, where held-out episodes choose.
        data: LeRobotDataset v3 folders, ours or others'; by default `data/<task>`.
        weights: share of the samples that each data folder gets, in any unit; by default every
            frame is drawn equally often.
        start: checkpoint that brings the vision-language model.
        vlm: instead of `start`, a pretrained vision-language model: hub id, or folder written by
            `save_pretrained`. It has not learned to point, so perception is trained.
        backbone: how `vlm` is used.
        conversions: how observations and actions reach `vlm`.
        head: action head; a start with another one gets an untrained one of this kind.
        horizon: control steps a chunk.
        out: run folder; by default `runs/<task>/clone`, without a task named after the first data
            folder. Its best checkpoint is `<out>/best`.
        device: where to train.
        num_envs: environments stepped together when a checkpoint is tried.
        selection_episodes: initial states that choose the checkpoint.
        training: how to clone.
    """

    task: str | None = "FetchPush"
    data: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    start: Path = GROUNDED
    vlm: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    conversions: ProcessorConfig = field(default_factory=ProcessorConfig)
    head: HeadName = "gaussian"
    horizon: int = 5
    out: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_envs: int = 50
    selection_episodes: int = 50
    training: OmitArgPrefixes[CloningConfig] = field(default_factory=CloningConfig)

    def __post_init__(self) -> None:
        if self.task is None and not self.data:
            raise ValueError("no task and no data: name the folders with --data")


# Between the seeds of demonstrations and scenes, which lie below, and those of evaluation.
SELECTION_SEED = 900_000


def main(config: PretrainConfig) -> int:
    """Clone, say how well, and where the policy lies."""
    out = config.out or Path("runs") / (config.task or config.data[0].name) / "clone"
    roots = config.data or (Path("data") / str(config.task),)
    data = DemoDataset(roots, config.horizon, seed=config.training.seed, weights=config.weights)
    torch.manual_seed(config.training.seed)
    policy, training = _start(config, data)
    folder = RunFolder(out, config, command_line("pretrain", config))
    cloner = Cloner(policy.model, policy.processor, data, training, folder)
    with _selection(config) as env, Bar("clone", training.updates) as bar:
        seeds = range(SELECTION_SEED, SELECTION_SEED + config.selection_episodes)
        best = cloner.run(env, seeds, bar.update)
    folder.close()
    judged = f"success {cloner.best_score:.2f} on {config.selection_episodes}"
    if config.task is None:
        judged = f"loss {-cloner.best_score:.4f} on held-out episodes"
    print(f"clone: {judged}: {best}")
    return 0


def _start(config: PretrainConfig, data: DemoDataset) -> tuple[VLAPolicy, CloningConfig]:
    """What is trained, and how."""
    head = HEADS[config.head].config()
    if config.vlm is None:
        start = load_policy(config.start, config.device)
        known, given = ([c.name for c in spec.cameras] for spec in (start.spec, data.spec))
        if known != given and config.training.perception == "frozen":
            raise ContractMismatchError(
                f"the demonstrations have the cameras {given}, the start has learned to see "
                f"{known}: record those, or let it learn to see with --perception trained"
            )
        measured = data.statistics()
        policy = start_policy(start, data.spec, measured, data.instructions, data.chunks(), head)
        return policy, config.training
    made = VLAConfig(config.horizon)
    policy = vlm_policy(
        config.vlm, config.backbone, data.spec, data.statistics(), made, config.conversions
    )
    policy.model.to(config.device)
    chunks = policy.processor.encode_actions(data.chunks())
    policy.model.replace_actor(config.horizon, head.fitted(chunks))
    return policy, replace(config.training, perception="trained")


def _selection(config: PretrainConfig) -> AbstractContextManager[CpuVecEnv | None]:
    """Where checkpoints are tried."""
    if config.task is None:
        return nullcontext()
    return CpuVecEnv(config.task, min(config.num_envs, config.selection_episodes))
