"""LeRobot's ACT: samples/s of its training and time of a decision, LeRobot's way and ours.

Both sides have the same network, batch, optimizer settings and data. Training runs LeRobot's own
update (`update_policy`); ours differs by what `vla lerobot-train` exchanges. LeRobot's loader first
shows how many workers suit this machine best. Decisions are described in `lerobot_decisions`.
Run it as `python -m scripts.bench.lerobot --root data/FetchPush --out bench.json`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
import tyro

from policies.evaluation.statistics import median_of_ratios
from scripts.bench.env import Contender, interleave
from scripts.bench.lerobot_decisions import deciders, measure, training_config
from scripts.progress import stages
from vla.model.backbone import multiplies_bfloat16
from vla.settings import require_numbers

OURS, THEIRS = "ours", "LeRobot"


@dataclass(frozen=True)
class BenchLeRobotConfig:
    """What to measure.

    Attributes:
        root: a LeRobotDataset v3.
        batch_size: samples an update; LeRobot's default.
        policy: settings of LeRobot's ACT as `name=value`, such as `dim_model=32`; those left out
            are LeRobot's own. The vision tower starts untrained, which changes no speed.
        rounds: interleaved measurements of each.
        updates: of one measurement.
        decisions: of each decider in one round, taken in turns.
        worker_counts: numbers of loader workers to choose from for LeRobot.
        device: of the networks.
        compiled: compile our model for its last row, which takes minutes.
        out: JSON file with every measurement.
    """

    root: Path
    batch_size: int = 8
    policy: tuple[str, ...] = ()
    rounds: int = 5
    updates: int = 4
    decisions: int = 30
    worker_counts: tuple[int, ...] = (0, 1, 2, 4)
    device: Literal["cpu", "cuda"] = "cpu"
    compiled: bool = True
    out: Path | None = None

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("batch_size", "rounds", "updates", "decisions"))


def main(config: BenchLeRobotConfig) -> dict[str, Any]:
    """Measure, print two Markdown tables, and return every measurement."""
    load, announce = os.getloadavg()[0], stages()
    samples = config.updates * config.batch_size
    tried = {}
    for workers in config.worker_counts:  # one after the other: idle workers would take memory
        announce(f"LeRobot's training with {workers} loader workers")
        alone = {"": (partial(trainer, config, False, False, workers), {})}
        tried[workers] = interleave(alone, samples, 1, config.batch_size)[""][0]
    # LeRobot's side gets the number that suits this machine best; `decoded_datasets` sets ours to
    # 0.
    best = max(tried, key=lambda workers: tried[workers])
    # bfloat16 only where it is not emulated, which is several times slower than float32.
    reduced = multiplies_bfloat16(torch.device(config.device))
    precisions = {"float32": False, "bfloat16": True} if reduced else {"float32": False}
    contenders = {
        f"{side}, {precision}": (partial(trainer, config, side == OURS, bf16, best), {})
        for precision, bf16 in precisions.items()
        for side in (OURS, THEIRS)
    }
    announce(f"{config.rounds} rounds of training: {', '.join(contenders)}")
    # Each contender in a process of its own, one at a time, in every round.
    rates = interleave(contenders, samples, config.rounds, config.batch_size)
    announce("decisions")
    chosen = deciders(config.root, config.policy, config.device, config.compiled, reduced)
    times, apart = measure(chosen, config.rounds, config.decisions)
    result = {
        "workers_tried": tried,
        "samples_per_s": rates,
        "decision_s": times,
        "largest_action_difference": apart,
        # A busy machine explains an odd figure, so its load is kept with it.
        "load": [load, os.getloadavg()[0]],
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    if config.out:
        config.out.write_text(json.dumps(result, indent=1))
    reference = {name: decider.reference for name, decider in chosen.items()}
    print(_training_table(rates, best), _decision_table(times, reference, apart), sep="\n\n")
    print(
        f"\n{config.rounds} interleaved rounds; {os.cpu_count()} cores, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after. Workers tried for LeRobot, samples/s: "
        + ", ".join(f"{workers}: {rate:.2f}" for workers, rate in tried.items())
    )
    return result


def trainer(config: BenchLeRobotConfig, ours: bool, bf16: bool, workers: int) -> Contender:
    """LeRobot's update as it is, or with the parts that `vla lerobot-train` exchanges."""
    from accelerate import Accelerator
    from lerobot.datasets.factory import make_train_eval_datasets
    from lerobot.optim.factory import make_optimizer_and_scheduler
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    from policies.lerobot.training import (
        decoded_datasets,
        fused_optimizer,
        make_optimised_policy,
    )

    settings = training_config(config.root, config.policy, config.device, config.batch_size)
    settings.num_workers = workers
    dataset: Any = (decoded_datasets if ours else make_train_eval_datasets)(settings)[0]
    policy = (make_optimised_policy if ours else make_policy)(settings.policy, dataset.meta)
    # LeRobot's own normalisation on both sides.
    before, _ = make_pre_post_processors(settings.policy, dataset_stats=dataset.meta.stats)
    optimizer, _ = (fused_optimizer if ours else make_optimizer_and_scheduler)(settings, policy)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=config.device == "cpu")
    loader, prefetched = _loader(settings, dataset)
    policy, optimizer, loader = accelerator.prepare(policy, optimizer, loader)
    batches = _forever(loader)
    names = ("loss", "grad_norm", "lr", "update_s")
    meters = {name: AverageMeter(name) for name in names}
    metrics = MetricsTracker(config.batch_size, len(dataset), 1, meters, accelerator=accelerator)
    # `training_config` has set it from ACT's preset.
    assert settings.optimizer is not None
    clip = settings.optimizer.grad_clip_norm

    def update(count: int) -> tuple[float, float]:
        """Seconds in all, and of them waiting for batches."""
        waited_s, begun = 0.0, time.perf_counter()
        for _ in range(count):
            asked = time.perf_counter()
            batch = next(batches)
            waited_s += time.perf_counter() - asked
            for key in dataset.meta.camera_keys:
                # As LeRobot's training loop does: [0, 255] to [0, 1].
                if batch[key].dtype == torch.uint8:
                    batch[key] = batch[key].to(dtype=torch.float32) / 255.0
            update_policy(metrics, policy, before(batch), optimizer, clip, accelerator)
        return time.perf_counter() - begun, waited_s

    def run(samples: int) -> float:
        updates = max(1, samples // config.batch_size)
        # What was loaded meanwhile is used up or replaced at the pace of training.
        update(prefetched)
        elapsed_s, waited_s = update(updates)
        if prefetched and waited_s > elapsed_s / 10:
            # Workers with an empty queue load ahead once more; that must not slow the next
            # contender.
            time.sleep(prefetched * elapsed_s / updates)
        return updates * config.batch_size / elapsed_s

    return Contender(run, lambda: None)


def _loader(settings: Any, dataset: Any) -> tuple[Any, int]:
    """The loader that `lerobot-train` makes, and how many batches it loads ahead."""
    from lerobot.datasets import EpisodeAwareSampler
    from lerobot.scripts.lerobot_train import _dataloader_worker_kwargs

    episodes = dataset.meta.episodes
    sampler = EpisodeAwareSampler(
        episodes["dataset_from_index"], episodes["dataset_to_index"], shuffle=True, seed=0
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=settings.batch_size,
        sampler=sampler,
        num_workers=settings.num_workers,
        pin_memory=settings.policy.device == "cuda",
        # LeRobot's own choice of prefetching and of workers that persist.
        **_dataloader_worker_kwargs(settings),
    )
    return loader, settings.num_workers * settings.prefetch_factor


def _forever(loader: Any) -> Iterator[dict[str, Any]]:
    while True:
        # A new epoch shuffles anew.
        yield from loader


def _training_table(rates: dict[str, list[float]], workers: int) -> str:
    lines = [
        f"| training ACT ({workers} workers for LeRobot) | samples/s | lowest | highest "
        "| / LeRobot's float32 | / LeRobot's, same precision |\n|---|---:|---:|---:|---:|---:|"
    ]
    for name, values in rates.items():
        # LeRobot's contender of the same precision; for LeRobot's own rows the ratio is 1.
        same = name.replace(OURS, THEIRS)
        ratios = [_ratio(values, rates[other]) for other in (f"{THEIRS}, float32", same)]
        numbers = [f"{number:.2f}" for number in (median(values), min(values), max(values))]
        lines.append(_row(name, *numbers, *ratios))
    return "\n".join(lines)


def _decision_table(
    times: dict[str, list[list[float]]], reference: dict[str, str], apart: dict[str, float]
) -> str:
    lines = [
        "| a decision | p50, ms | p99, ms | p50 / LeRobot's | p99 / LeRobot's "
        "| largest difference of a command |\n|---|---:|---:|---:|---:|---:|"
    ]
    for name, rounds in times.items():
        theirs = times[reference[name]]
        numbers, ratios = [], []
        for percent in (50, 99):
            numbers.append(f"{1e3 * np.percentile(np.concatenate(rounds), percent):.1f}")
            # Percentile by round, so that the ratio is taken within a round.
            pair = [[float(np.percentile(r, percent)) for r in side] for side in (rounds, theirs)]
            ratios.append(_ratio(*pair))
        lines.append(_row(name, *numbers, *ratios, f"{apart[name]:.1e}"))
    return "\n".join(lines)


def _ratio(ours: list[float], theirs: list[float]) -> str:
    ratio = median_of_ratios(ours, theirs)
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(tyro.cli(BenchLeRobotConfig))
