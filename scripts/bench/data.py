"""Training samples/s: the decoded cache against LeRobotDataset behind torch's DataLoader.

Both draw uniformly random frames of one data set, every camera, with the same chunk of actions. The
DataLoader first shows which number of workers suits this machine best and keeps that one. Rounds
are interleaved, since these machines are shared. Run it as
`python -m scripts.bench.data --root data/FetchPush`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro

from policies.evaluation.statistics import median_of_ratios
from policies.imitation.dataset import DemoDataset
from vla.settings import require_numbers


@dataclass(frozen=True)
class BenchDataConfig:
    """What to measure.

    Attributes:
        root: a recorded data set.
        batch_size: samples a batch.
        chunk: actions a sample.
        rounds: interleaved measurements of each.
        round_s: seconds a measurement, at least.
        worker_counts: numbers of DataLoader workers to choose from.
    """

    root: Path
    batch_size: int = 64
    chunk: int = 10
    rounds: int = 5
    round_s: float = 3.0
    worker_counts: tuple[int, ...] = (0, 1, 2, 4)

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("batch_size", "chunk", "rounds"), above_0=("round_s",))


def main(config: BenchDataConfig) -> None:
    """Measure, then print a Markdown table."""
    # No held-out episodes: both sides draw from the same frames.
    dataset = DemoDataset(config.root, config.chunk, heldout_fraction=0.0)
    loader = _lerobot_batches(config, dataset.spec.control_rate_hz)
    # LeRobot's side is tuned to this machine, ours has nothing to tune.
    sweep = {count: _rate(config, loader(count), 2 * count) for count in config.worker_counts}
    best = max(sweep, key=lambda count: sweep[count])
    load_before = os.getloadavg()[0]
    ours, theirs = [], []
    for _ in range(config.rounds):
        # Alternating, so that a load from outside hits both sides of a ratio alike.
        ours.append(_rate(config, _cache_batches(config, dataset), prefetched=0))
        theirs.append(_rate(config, loader(best), prefetched=2 * best))
    ratio = median_of_ratios(ours, theirs)
    listed = ", ".join(f"{count}: {rate:.0f}" for count, rate in sweep.items())
    cameras = len(dataset.spec.cameras)
    print(
        f"Training samples/s on `{config.root}` ({len(dataset)} frames, {cameras} cameras, batches "
        f"of {config.batch_size}, chunks of {config.chunk}; {os.cpu_count()} cores, load "
        f"{load_before:.1f} to {os.getloadavg()[0]:.1f}; {config.rounds} interleaved rounds).\n"
        f"DataLoader workers tried, samples/s: {listed}.\n\n"
        "| source | median | lowest | highest |\n|---|---:|---:|---:|\n"
        f"| decoded cache | {median(ours):.0f} | {min(ours):.0f} | {max(ours):.0f} |\n"
        f"| LeRobotDataset, {best} workers | {median(theirs):.1f} | {min(theirs):.1f} "
        f"| {max(theirs):.1f} |\n"
        f"| ratio | {ratio.value:.0f} | {ratio.low:.0f} | {ratio.high:.0f} |"
    )


def _rate(config: BenchDataConfig, batches: Iterator[object], prefetched: int) -> float:
    """Samples/s once batches flow; starting up and what was prefetched meanwhile do not count."""
    # Workers fill their queues while nobody asks; taking these would measure the queue.
    for _ in range(prefetched + 1):
        next(batches)
    count, begin_s, elapsed_s = 0, time.perf_counter(), 0.0
    # By time rather than by count: the two sides differ by orders of magnitude.
    while elapsed_s < config.round_s:
        next(batches)
        count += 1
        elapsed_s = time.perf_counter() - begin_s
    return count * config.batch_size / elapsed_s


def _cache_batches(config: BenchDataConfig, dataset: DemoDataset) -> Iterator[object]:
    generator = np.random.default_rng(0)
    while True:
        yield dataset.sample(generator, config.batch_size)


def _lerobot_batches(config: BenchDataConfig, rate_hz: float) -> Callable[[int], Iterator[object]]:
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader, RandomSampler

    dataset = LeRobotDataset(
        "local/bench",
        root=config.root,
        # Seconds from the frame to each action of its chunk.
        delta_timestamps={"action": [step / rate_hz for step in range(config.chunk)]},
        video_backend="pyav",
    )

    def start(workers: int) -> Iterator[object]:
        sampler = RandomSampler(
            dataset,
            replacement=True,
            # In effect without end: a new epoch would restart the workers.
            num_samples=10**9,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(DataLoader(dataset, config.batch_size, sampler=sampler, num_workers=workers))

    return start


if __name__ == "__main__":
    main(tyro.cli(BenchDataConfig))
