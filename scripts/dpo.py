"""`vla dpo`: improve a cloned policy by comparisons, without a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from policies.preferences.comparisons import ComparisonError, ComparisonStore
from policies.preferences.dpo import DPOConfig
from policies.preferences.dpo_trainer import DPOTrainer
from policies.preferences.trajectories import interface_fingerprint
from policies.run_folder import RunFolder
from scripts.devices import require_device
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.seeds import SELECTION
from sim.tasks.registry import make_task, short_name
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.policy import load_policy
from vla.settings import require_numbers


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation of a clone.

    Attributes:
        task: registry name.
        comparisons: folder that `vla compare` wrote; by default `runs/<task>/comparisons`.
        clone: checkpoint to start from, and the reference; by default `runs/<task>/clone/best`.
        embodiment: which robot of a clone for several; by default the one that fits the task.
        out: run folder; by default `runs/<task>/dpo`. Its best checkpoint is `<out>/best`.
        device: where to learn.
        num_envs: environments stepped together when a checkpoint is tried.
        selection_episodes: initial states that choose the checkpoint.
        training: hyperparameters.
    """

    task: str = "FetchPush"
    comparisons: Path | None = None
    clone: Path | None = None
    embodiment: str | None = None
    out: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_envs: int = 50
    selection_episodes: int = 200
    training: OmitArgPrefixes[DPOConfig] = field(default_factory=DPOConfig)

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("num_envs", "selection_episodes"))


def main(config: DpoConfig) -> int:
    """Learn, say how well, and where the policy lies."""
    require_device(config.device)
    training, runs = config.training, Path("runs") / short_name(config.task)
    store = ComparisonStore(config.comparisons or runs / "comparisons")
    store.require_task(config.task)
    clone = config.clone or runs / "clone" / "best"
    policy = load_policy(clone, config.device, config.embodiment or make_task(config.task).spec)
    names = {s.trajectory for c in store.comparisons for s in (c.pair.first, c.pair.second)}
    trajectories = store.load(sorted(names))
    # What was drawn has to have a likelihood under this policy, in features that it would see.
    ours, theirs = interface_fingerprint(policy), {t.interface for t in trajectories.values()}
    if theirs != {ours}:
        raise ComparisonError(
            f"{store.folder} holds episodes of policies with another perception or another head "
            f"than {clone}: compare episodes of that one, or of what it was refined to"
        )
    policy.ledger.spend(
        collection_steps=sum(t.control_steps for t in trajectories.values()),
        comparisons=len(store.comparisons),
    )
    folder = RunFolder(
        config.out or runs / "dpo",
        config,
        command_line("dpo", config),
        {"command": "dpo", "task": config.task, "clone": fingerprint(clone)},
    )
    with (
        CpuVecEnv(config.task, min(config.num_envs, config.selection_episodes)) as env,
        Bar("dpo", training.epochs) as bar,
    ):
        trainer = DPOTrainer(
            policy,
            env,
            training,
            folder,
            store.comparisons,
            trajectories,
            store.settings["log_std"],
            store.settings["temperature"],
        )
        best = trainer.run(SELECTION.seeds(config.selection_episodes), bar.update)
    folder.close()
    print(
        f"dpo: success {trainer.checkpoints.best_score:.2f} on {config.selection_episodes}: {best}"
    )
    return 0
