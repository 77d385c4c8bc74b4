"""`vla pretrain`: clone demonstrations, starting from the grounded model or from any other VLM."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import OmitArgPrefixes

import vla
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
from vla.normalisation import Statistics, VectorStatistics
from vla.policy import load_policy, vlm_policy
from vla.processor import Processor, ProcessorConfig

HeadName = Literal["gaussian", "token", "fast", "l1", "flow"]
GROUNDED = Path(vla.__file__).parent / "weights" / "grounded"


@dataclass(frozen=True)
class PretrainConfig:
    """Clone demonstrations into a policy.

    Attributes:
        task: registry name of the task in which checkpoints are tried.
        data: recorded folders; by default `data/<task>`.
        start: checkpoint that brings the vision-language model.
        vlm: instead of `start`, a pretrained vision-language model: hub id, or folder written by
            `save_pretrained`. It has not learned to point, so perception is trained.
        backbone: how `vlm` is used.
        conversions: how observations and actions reach `vlm`.
        head: action head; a start with another one gets an untrained one of this kind.
        horizon: control steps a chunk.
        out: run folder; by default `runs/<task>/clone`. Its best checkpoint is `<out>/best`.
        device: where to train.
        num_envs: environments stepped together when a checkpoint is tried.
        selection_episodes: initial states that choose the checkpoint.
        training: how to clone.
    """

    task: str = "FetchPush"
    data: tuple[Path, ...] = ()
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


# Between the seeds of demonstrations and scenes, which lie below, and those of evaluation.
SELECTION_SEED = 900_000


def main(config: PretrainConfig) -> int:
    """Clone, say how well, and where the policy lies."""
    out = config.out or Path("runs") / config.task / "clone"
    roots = config.data or (Path("data") / config.task,)
    data = DemoDataset(roots, config.horizon, seed=config.training.seed)
    training = config.training
    torch.manual_seed(training.seed)
    if config.vlm is None:
        start = load_policy(config.start, config.device)
        model, processor = start.model, _adopt(start.processor, data)
    else:
        training = replace(training, perception="trained")
        start = vlm_policy(
            config.vlm,
            config.backbone,
            data.spec,
            Statistics(**_measure(data)),
            VLAConfig(config.horizon),
            config.conversions,
        )
        model, processor = start.model.to(config.device), start.processor
    chunks = processor.encode_actions(data.batch(data.rows("train")).actions)
    model.replace_actor(config.horizon, HEADS[config.head].config().fitted(chunks))
    folder = RunFolder(out, config, command_line("pretrain", config))
    cloner = Cloner(model, processor, data, training, folder)
    envs = min(config.num_envs, config.selection_episodes)
    with CpuVecEnv(config.task, envs) as env, Bar("clone", training.updates) as bar:
        seeds = range(SELECTION_SEED, SELECTION_SEED + config.selection_episodes)
        best = cloner.run(env, seeds, bar.update)
    folder.close()
    print(f"clone: success {cloner.best_success:.2f} on {config.selection_episodes}: {best}")
    return 0


def _measure(data: DemoDataset) -> dict[str, VectorStatistics]:
    return {
        name: VectorStatistics.from_dict({k: v.tolist() for k, v in numbers.items()})
        for name, numbers in data.statistics().items()
    }


def _adopt(old: Processor, data: DemoDataset) -> Processor:
    """The start's conversions for these demonstrations, with their actions' statistics."""
    known, given = ([camera.name for camera in spec.cameras] for spec in (old.spec, data.spec))
    if known != given:
        raise ContractMismatchError(
            f"the demonstrations have the cameras {given}, the start has learned to see {known}: "
            "record those, or train another start with `vla ground`"
        )
    measured = _measure(data)
    # The pointer reads proprioception as it was normalised when it learned to point.
    proprio = old.statistics.proprio if old.statistics else measured["proprio"]
    statistics = Statistics(measured["action"], proprio)
    return Processor(data.spec, statistics, old.language, old.config)
