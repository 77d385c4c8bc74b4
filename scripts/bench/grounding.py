"""What grounding contributes: clones of a grounded start, and of starts that were not grounded.

    python -m scripts.bench.grounding

The grounded start's perception is frozen. Without grounding it is trained with the head, from the
demonstrations alone: `scratch` is the network that `vla pretrain --start scratch` makes, built to
learn that quickly; `untrained` is the grounded network itself with new weights. All train on
equally many samples. The heads attend to all image tokens, so that no start is held back by points
that nothing taught it. The best checkpoint, by the selection states, counts.

Repeating the command goes on: what is cloned and played is kept. Several can run side by side, each
with other heads or seeds; a last one with all of them prints the table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from vla_runtime.atomic_folder import write_atomically

from policies.evaluation.statistics import paired_difference, wilson_interval
from scripts import ground, pretrain
from scripts.evaluate import EvaluateConfig
from scripts.initial_states import States
from scripts.outcomes import play_once
from scripts.policy_loading import read_policy
from scripts.presets import preset
from scripts.results_table import in_points, percent
from vla.checkpoint.initialisation import GROUNDED
from vla.settings import require_numbers

Start = Literal["grounded", "scratch", "untrained"]
Results = dict[tuple[str, Start, int], list[bool]]
"""Success of every initial state, by head, start and seed."""


@dataclass(frozen=True)
class BenchGroundingConfig:
    """What is cloned, and how often.

    Attributes:
        starts: see above; the first is compared with the others.
        grounded: a checkpoint of `vla ground`; by default the one that ships.
        task: a preset's name; its demonstrations lie in `data/<task>`.
        heads: names in the registry.
        seeds: of the cloning; every one is run.
        batch: samples an update where perception is trained. There are as many more updates as it
            is smaller than the preset's, so that all starts train on equally many samples.
        image_shift: augmentation of `scratch` and `untrained`, see `CloningConfig`.
        states: initial states that are played.
        episodes: how many of them.
        out: run folders and results.md.
    """

    starts: tuple[Start, ...] = ("grounded", "scratch", "untrained")
    grounded: Path = GROUNDED
    task: str = "FetchPush"
    heads: tuple[str, ...] = ("l1", "flow")
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 64
    image_shift: float = 0.08
    states: States = "development"
    episodes: int = 200
    out: Path = Path("runs/grounding")

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("batch", "episodes"))

    @property
    def untrained(self) -> Path:
        """The network that grounding makes, before its first update."""
        return self.out / "untrained" / "grounded"


def main(config: BenchGroundingConfig) -> int:
    """Clone and play what is missing; print and write the table."""
    results: Results = {
        (head, start, seed): _outcomes(config, head, start, seed)
        for head in config.heads
        for seed in config.seeds
        for start in config.starts
    }
    text = table(config, results)
    write_atomically(config.out / "results.md", text)
    print(text)
    return 0


def _outcomes(config: BenchGroundingConfig, head: str, start: Start, seed: int) -> list[bool]:
    """Success at the end of every initial state."""
    run = config.out / head / f"{start}-s{seed}"
    file = run / f"{config.states}-{config.episodes}.json"
    name = f"{head}, {start}, seed {seed}"
    print(name, flush=True)
    settings = cloning(config, head, start, seed, run)
    if start == "untrained" and not config.untrained.is_dir():
        _make_untrained(config)
    # A finished cloning resumes at its end.
    pretrain.main(settings)
    playing = EvaluateConfig(
        config.task, (name,), episodes=config.episodes, states=config.states, films=0
    )
    candidate = partial(read_policy, f"{start}={run / 'best'}", "cpu", config.task)
    return play_once(file, {"samples": samples(settings)}, candidate, playing)["at_end"]


def cloning(
    config: BenchGroundingConfig, head: str, start: Start, seed: int, out: Path
) -> pretrain.PretrainConfig:
    """The preset's settings, but for the updates and for what differs between the starts."""
    settings = replace(preset(config.task).pretrain, head=head, out=out)
    # The preset's many updates are for moved scenes, which heads that attend do not have.
    training = replace(settings.training, updates=1000, evaluate_every=500, seed=seed)
    if start == "grounded":
        return replace(settings, start=config.grounded, training=training)
    # Equal samples: smaller batches, and as many more updates.
    more = training.batch / config.batch
    training = replace(
        training,
        batch=config.batch,
        updates=round(training.updates * more),
        evaluate_every=round(training.evaluate_every * more),
        perception="trained",
        perception_learning_rate=training.learning_rate,  # with which grounding teaches it, too
        image_shift=config.image_shift,
    )
    begin = "scratch" if start == "scratch" else config.untrained
    return replace(settings, start=begin, training=training)


def samples(settings: pretrain.PretrainConfig) -> int:
    """How many frames a cloning draws."""
    return settings.training.updates * settings.training.batch


def _make_untrained(config: BenchGroundingConfig) -> None:
    defaults = ground.GroundConfig()
    settings = replace(
        defaults,
        # Scenes give the normalisation of proprioception and nothing else.
        frames=(100,) * len(ground.resolve(defaults).tasks),
        scenes=config.out / "scenes",
        out=config.untrained.parent,
        training=replace(defaults.training, updates=0),
    )
    ground.main(settings)


def table(config: BenchGroundingConfig, results: Results) -> str:
    """Markdown: success at the end of each head and start, all seeds of it together."""
    seeds = ", ".join(map(str, config.seeds))
    lines = [
        f"| head | start | seeds {seeds} | together | {config.starts[0]} against it, points |",
        "|---|---|---|---|---|",
    ]
    for head in config.heads:
        first = _together(config, results, head, config.starts[0])
        for start in config.starts:
            every = [100 * np.mean(results[head, start, seed]) for seed in config.seeds]
            outcomes = _together(config, results, head, start)
            rate = percent(wilson_interval(int(outcomes.sum()), len(outcomes)))
            against = ""
            if start != config.starts[0]:
                against = in_points(paired_difference(first, outcomes).difference)
            each = ", ".join(f"{rate:.1f}" for rate in every)
            lines.append(f"| {head} | {start} | {each}% | {rate} | {against} |")
    return "\n".join([*lines, "", f"{config.episodes} {config.states} states a seed."]) + "\n"


def _together(
    config: BenchGroundingConfig,
    results: Results,
    head: str,
    start: Start,
) -> np.ndarray:
    """Outcomes of all seeds, bool [seeds * states]."""
    return np.array([x for seed in config.seeds for x in results[head, start, seed]], dtype=bool)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchGroundingConfig)))
