"""`vla pretrain`: clone demonstrations, starting from the grounded vision-language model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from vla.model.heads.registry import HEADS
from vla.policy import load_policy
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
    start = load_policy(config.start, config.device)
    roots = config.data or (Path("data") / str(config.task),)
    data = DemoDataset(roots, config.horizon, seed=config.training.seed, weights=config.weights)
    torch.manual_seed(config.training.seed)
    policy = start_policy(
        start,
        data.spec,
        data.statistics(),
        data.instructions,
        data.chunks(),
        HEADS[config.head].config(),
    )
    folder = RunFolder(out, config, command_line("pretrain", config))
    cloner = Cloner(policy.model, policy.processor, data, config.training, folder)
    with _selection(config) as env, Bar("clone", config.training.updates) as bar:
        seeds = range(SELECTION_SEED, SELECTION_SEED + config.selection_episodes)
        best = cloner.run(env, seeds, bar.update)
    folder.close()
    judged = f"success {cloner.best_score:.2f} on {config.selection_episodes}"
    if config.task is None:
        judged = f"loss {-cloner.best_score:.4f} on held-out episodes"
    print(f"clone: {judged}: {best}")
    return 0


def _selection(config: PretrainConfig) -> AbstractContextManager[CpuVecEnv | None]:
    """Where checkpoints are tried."""
    if config.task is None:
        return nullcontext()
    return CpuVecEnv(config.task, min(config.num_envs, config.selection_episodes))
