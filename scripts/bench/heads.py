"""Every action head on the same data, backbone and budget, compared in one report.

    python -m scripts.bench.heads --task FetchPush

clones the task's demonstrations with each head, with the task's preset otherwise, and evaluates all
clones on the same held-out initial states: success with intervals, and seconds a decision.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from scripts import evaluate, pretrain
from scripts.presets import preset
from vla.model.heads.registry import HEADS
from vla.settings import require_numbers


@dataclass(frozen=True)
class BenchHeadsConfig:
    """What is cloned, and for how long.

    Attributes:
        task: a preset's name; its demonstrations lie in `data/<task>`.
        heads: names in the registry.
        chunk_length: control steps a chunk.
        updates: optimizer steps of each head.
        episodes: held-out initial states.
        seed: of the cloning.
        out: run folders and the report.
    """

    task: str = "FetchPush"
    heads: tuple[str, ...] = tuple(HEADS)
    chunk_length: int = 5
    updates: int = 1000
    episodes: int = 200
    seed: int = 0
    out: Path = Path("runs/heads")

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("chunk_length", "updates", "episodes"))


def main(config: BenchHeadsConfig) -> int:
    """Clone with each, then compare; a head that has been cloned is not cloned again."""
    settings = preset(config.task).pretrain
    # Batch size, rates and noise are the preset's for every head; only the length and the seed are
    # set here.
    training = replace(settings.training, updates=config.updates, seed=config.seed)
    for head in config.heads:
        run = replace(
            settings,
            head=head,
            chunk_length=config.chunk_length,
            out=config.out / head,
            training=training,
        )
        print(f"{head}:", flush=True)
        # One seed, one budget: what differs between the runs is the head alone.
        pretrain.main(run)
    # A run folder stands for its best checkpoint.
    policies = tuple(f"{head}={config.out / head}" for head in config.heads)
    return evaluate.main(
        evaluate.EvaluateConfig(
            config.task, policies, episodes=config.episodes, num_envs=50, out=config.out / "report"
        )
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchHeadsConfig)))
