"""`vla reward`: fit a reward model to comparisons, and measure it on held-out states."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes
from vla_runtime.atomic_folder import digest, new_folder

from policies.preferences.calibration import measure, reliability
from policies.preferences.comparisons import ComparisonError, ComparisonStore, require_told
from policies.preferences.pairing import split_by_state
from policies.preferences.preference_batch import PreferenceBatch
from policies.preferences.reward_model import RewardModel, RewardModelConfig, fit
from policies.run_folder import RunFolder
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.tasks.registry import short_name


@dataclass(frozen=True)
class RewardConfig:
    """Fit a reward model.

    Attributes:
        task: registry name.
        comparisons: folder that `vla compare` wrote; by default `runs/<task>/comparisons`.
        out: a new folder; by default `runs/<task>/reward`.
        training: what it sees, and how it is fitted.
    """

    task: str = "FetchPush"
    comparisons: Path | None = None
    out: Path | None = None
    training: OmitArgPrefixes[RewardModelConfig] = field(default_factory=RewardModelConfig)


def main(config: RewardConfig) -> int:
    """Fit, say how far the model can be trusted, and where it lies."""
    training, runs = config.training, Path("runs") / short_name(config.task)
    out = config.out or runs / "reward"
    store = ComparisonStore(config.comparisons or runs / "comparisons")
    store.require_task(config.task)
    compared = [c for c in store.comparisons if c.label is not None]
    trajectories = store.load(s.trajectory for c in compared for s in (c.pair.first, c.pair.second))
    interfaces = {trajectory.interface for trajectory in trajectories.values()}
    if training.inputs == "features" and len(interfaces) > 1:
        raise ComparisonError(
            f"{store.folder} holds episodes of {len(interfaces)} kinds of policies, whose features "
            "differ: fit to --inputs privileged, or compare policies of one perception"
        )
    seeds = {name: trajectory.seed for name, trajectory in trajectories.items()}
    parts = split_by_state(compared, seeds, training.heldout_fraction, training.seed)
    require_told(parts[0])
    train, heldout = (PreferenceBatch.stack(part, trajectories, training.inputs) for part in parts)
    with new_folder(out) as partial, Bar("reward", training.epochs) as bar:
        run = RunFolder(partial, config, command_line("reward", config))
        run.open({"comparisons": digest(store.folder / "comparisons.jsonl")})

        def progress(epoch: int, model: RewardModel, loss: float) -> None:
            values = {"loss/train": loss, **measure(model, heldout)}
            run.log(epoch, values)
            bar.update(epoch, values)

        model = fit(train, training, progress)
        table = reliability(model.probability(heldout), heldout.label)
        found = measure(model, heldout)
        about = {
            "task": config.task,
            "privileged_names": store.settings["privileged_names"],
            "interface": next(iter(interfaces)),
            "comparisons": {"train": len(train), "heldout": len(heldout)},
            # As a ledger counts it, for policies that learn from this model.
            "spent": {
                "collection_steps": sum(t.control_steps for t in trajectories.values()),
                "comparisons": len(store.comparisons),
            },
            "heldout": found,
            "reliability": table,
        }
        model.save(partial, about)
        run.close()
    print(f"fitted to {len(train)} comparisons; on {len(heldout)} of held-out initial states:")
    for name, value in found.items():
        print(f"  {name:20} {value:.3f}")
    print("  predicted  actual  comparisons")
    for row in table:
        print(f"  {row['predicted']:9.2f} {row['actual']:7.2f} {row['comparisons']:12.1f}")
    learning = ("--reward", f"model:{out}", "--algorithm", "ppo:reference_kl=0.1")
    print(f"learn from it: {shlex.join(('vla', 'refine', '--task', config.task, *learning))}")
    return 0
