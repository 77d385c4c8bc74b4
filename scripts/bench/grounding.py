"""What grounding contributes: cloning from the grounded start and from an untrained one.

    python -m scripts.bench.grounding --grounded runs/ground/grounded

With the grounded start perception is frozen; without it perception is trained with the head, from
the demonstrations alone. First the same task from few and from more demonstrations, then the
tabletop without two pairs of colours: success on trained instructions, on held-out phrasings, and
on those pairs. The start must not have learned the pairs either: `vla ground --keep-pairs-apart`.
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

_STARTS = ("grounded", "ungrounded")


@dataclass(frozen=True)
class BenchGroundingConfig:
    """What is cloned, and for how long.

    Attributes:
        grounded: made by `vla ground --keep-pairs-apart`.
        task: a preset's name; its demonstrations lie in `data/<task>`.
        demonstrations: how many; every count is cloned from both starts.
        updates: optimizer steps where perception is trained; frozen, the preset's.
        batch: samples an update where perception is trained.
        tabletop: clone the tabletop, too.
        episodes: held-out initial states.
        seed: of the cloning.
        out: run folders and results.json.
    """

    grounded: Path
    task: str = "FetchPush"
    demonstrations: tuple[int, ...] = (10, 50)
    updates: int = 3000
    batch: int = 64
    tabletop: bool = True
    episodes: int = 200
    seed: int = 0
    out: Path = Path("runs/grounding")


def main(config: BenchGroundingConfig) -> int:
    """Clone and evaluate; what has been done before is not done again."""
    results: dict[str, dict[str, float]] = {}
    # A finished cloning resumes at its end, so repeating the command clones only what is missing.
    for count in config.demonstrations:
        for start in _STARTS:
            folder = config.out / f"{config.task}-{count}-{start}"
            _clone(config, config.task, start, folder, episodes=count)
            results[f"{count} demonstrations, {start}"] = _success(config, config.task, folder)
    if config.tabletop:
        # `PretrainConfig.without` takes pairs joined by "+".
        pairs = tuple("+".join(pair) for pair in Tabletop.unseen_pairs)
        for start in _STARTS:
            folder = config.out / f"Tabletop-{start}"
            _clone(config, "Tabletop", start, folder, without=pairs)
            results[f"tabletop, {start}"] = _success(config, "Tabletop", folder)
            results[f"tabletop, {start}, held-out phrasing"] = _success(
                config, "Tabletop", folder, phrasing="heldout"
            )
            # Half as many: only one state in twelve asks for such a pair.
            for pair in Tabletop.unseen_pairs:
                results[f"tabletop, {start}, {' to '.join(pair)}, never told together"] = _success(
                    config, "Tabletop", folder, only=pair, episodes=config.episodes // 2
                )
    (config.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, found in results.items():
        value, low, high = (100 * found[key] for key in ("value", "low", "high"))
        print(f"{value:5.1f}% [{low:.0f}, {high:.0f}]  {name}")
    return 0


def _clone(
    config: BenchGroundingConfig, task: str, start: str, folder: Path, **changes: Any
) -> None:
    # The presets' settings throughout: what differs between the starts is stated below.
    settings = replace(preset(task).pretrain, start=config.grounded, out=folder, **changes)
    training = replace(settings.training, seed=config.seed)
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
        training = replace(
            training,
            # Perception starts untrained too, so it takes more updates than a head alone.
            perception="trained",
            perception_learning_rate=5e-4,
            updates=config.updates,
            evaluate_every=1000,
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
