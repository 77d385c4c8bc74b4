"""What grounding contributes: cloning from the grounded start and from an untrained one.

    python -m scripts.bench.grounding --grounded runs/ground/grounded

With the grounded start perception is frozen; without it perception is trained with the head, from
the demonstrations alone. Both train on equally many samples, with every head and every seed. The
heads attend to all image tokens, so that the ungrounded start is not held back by points that
nothing taught it. `--tabletop` adds the tabletop without two pairs of colours: success on
instructions that were demonstrated, on held-out phrasings, and on those pairs. The start must not
have learned the pairs either: `vla ground --keep-pairs-apart`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from scripts import evaluate, ground, pretrain
from scripts.presets import preset
from sim.tasks.tabletop import Tabletop
from vla.settings import require_numbers

_STARTS = ("grounded", "ungrounded")


@dataclass(frozen=True)
class BenchGroundingConfig:
    """What is cloned, and how often.

    Attributes:
        grounded: made by `vla ground --keep-pairs-apart`.
        task: a preset's name; its demonstrations lie in `data/<task>`.
        demonstrations: how many; every count is cloned from both starts.
        heads: names in the registry.
        seeds: of the cloning; every one is run.
        batch: samples an update where perception is trained. There are as many more updates as it
            is smaller than the preset's, so that both starts train on equally many samples.
        tabletop: clone the tabletop, too.
        episodes: initial states of the development range.
        out: run folders and results.json.
    """

    grounded: Path
    task: str = "FetchPush"
    demonstrations: tuple[int, ...] = (50,)
    heads: tuple[str, ...] = ("l1", "flow")
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 32
    tabletop: bool = False
    episodes: int = 200
    out: Path = Path("runs/grounding")

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("demonstrations", "batch", "episodes"))


def main(config: BenchGroundingConfig) -> int:
    """Clone and evaluate; what has been done before is not done again."""
    results: dict[str, dict[str, float]] = {}
    # A finished cloning resumes at its end, so repeating the command clones only what is missing.
    for head in config.heads:
        for seed in config.seeds:
            for start in _STARTS:
                results |= _compare(config, head, seed, start)
    (config.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, found in results.items():
        value, low, high = (100 * found[key] for key in ("value", "low", "high"))
        print(f"{value:5.1f}% [{low:.0f}, {high:.0f}]  {name}")
    return 0


def _compare(
    config: BenchGroundingConfig, head: str, seed: int, start: str
) -> dict[str, dict[str, float]]:
    """All success rates of one head, seed and start, by what was asked."""
    results = {}
    label, run = f"{head}, {start}, seed {seed}", config.out / head / f"s{seed}"
    for count in config.demonstrations:
        folder = run / f"{config.task}-{count}-{start}"
        _clone(config, config.task, head, seed, start, folder, episodes=count)
        results[f"{count} demonstrations, {label}"] = _success(config, config.task, folder)
    if not config.tabletop:
        return results
    folder = run / f"Tabletop-{start}"
    # `PretrainConfig.without` takes pairs joined by "+".
    pairs = tuple("+".join(pair) for pair in Tabletop.unseen_pairs)
    _clone(config, "Tabletop", head, seed, start, folder, without=pairs)
    results[f"tabletop, {label}"] = _success(config, "Tabletop", folder)
    results[f"tabletop, {label}, held-out phrasing"] = _success(
        config, "Tabletop", folder, phrasing="heldout"
    )
    # Half as many: only one state in twelve asks for such a pair.
    for pair in Tabletop.unseen_pairs:
        results[f"tabletop, {label}, {' to '.join(pair)}, never together"] = _success(
            config, "Tabletop", folder, only=pair, episodes=config.episodes // 2
        )
    return results


def _clone(
    config: BenchGroundingConfig,
    task: str,
    head: str,
    seed: int,
    start: str,
    folder: Path,
    **changes: Any,
) -> None:
    settings = replace(
        preset(task).pretrain, start=config.grounded, out=folder, head=head, **changes
    )
    # The presets' settings throughout: what differs between the starts is stated below.
    training = replace(settings.training, seed=seed)
    if start == "ungrounded":
        unseen = config.out / "start"
        if not (unseen / "grounded").is_dir():
            # Scenes give the normalisation of proprioception and nothing else.
            ground.main(
                replace(
                    ground.GroundConfig(),
                    frames=(100,) * len(ground.resolve(ground.GroundConfig()).tasks),
                    scenes=config.out / "scenes",
                    out=unseen,
                    training=replace(ground.GroundConfig().training, updates=0),
                )
            )
        # Equal samples: smaller batches, and as many more updates.
        more = training.batch / config.batch
        training = replace(
            training,
            perception="trained",
            perception_learning_rate=5e-4,
            updates=round(training.updates * more),
            evaluate_every=round(training.evaluate_every * more),
            batch=config.batch,
        )
        settings = replace(settings, start=unseen / "grounded")
    pretrain.main(replace(settings, training=training))


def _success(
    config: BenchGroundingConfig, task: str, folder: Path, **changes: Any
) -> dict[str, float]:
    """Share of episodes that end in success, with its interval."""
    # A folder name for each variation of the evaluation.
    words = "".join(c for c in str([*changes.values()]) if c.isalnum())
    settings = evaluate.EvaluateConfig(
        task,
        (f"clone={folder}",),
        episodes=config.episodes,
        num_envs=50,
        films=0,
        out=folder / f"report{words}",
    )
    evaluate.main(replace(settings, **changes))
    report = json.loads((settings.out / "report.json").read_text())
    return report["policies"][0]["success_at_end"]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchGroundingConfig)))
