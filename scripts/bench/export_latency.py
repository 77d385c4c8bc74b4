"""Time of a decision: an exported policy against torch, and against LeRobot, with equal weights.

From an observation's bytes and numbers to a chunk in physical units, on one thread, taken in turns
on the same random observations. Beside wall time the processor's own time is measured, since other
programs on a shared machine lengthen the former alone. Run it as
`python -m scripts.bench.export_latency --checkpoint runs/clone/best --exported exported/clone`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from vla_runtime.contract import Observation, RobotPolicy
from vla_runtime.exported.policy import ExportedPolicy

from vla.deploy.parity import random_observations
from vla.deploy.reference import Reference
from vla.policy import load_policy
from vla.settings import require_numbers

EXPORTED, TORCH, LEROBOT = "exported", "torch, eager", "LeRobot's select_action"
_WARM_UP = 5

Times = dict[str, dict[str, float]]
"""Contender → `cpu` and `wall` milliseconds of a decision: p50 and p99."""


@dataclass(frozen=True)
class BenchExportConfig:
    """What to measure.

    Attributes:
        checkpoint: folder of a checkpoint for one robot.
        exported: folder that `vla export` made of it.
        decisions: of each, in turns.
        lerobot: also the checkpoint as LeRobot's commands run it.
        out: JSON file with the table.
    """

    checkpoint: Path
    exported: Path
    decisions: int = 200
    lerobot: bool = True
    out: Path | None = None

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("decisions",))


def main(config: BenchExportConfig) -> Times:
    """Measure, print a Markdown table, and return it."""
    torch.set_num_threads(1)
    exported, policy = ExportedPolicy(config.exported), load_policy(config.checkpoint)
    contenders = {TORCH: _decider(Reference(policy)), EXPORTED: _decider(exported)}
    if config.lerobot:
        contenders[LEROBOT] = _lerobot(config.checkpoint)
    low, high = policy.spec.proprio.low, policy.spec.proprio.high
    seen = random_observations(policy.spec, low, high, 16)
    measured = measure(contenders, seen, config.decisions)
    for line in _table(measured):
        print(line)
    if config.out is not None:
        config.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def measure(
    contenders: dict[str, Callable[[Observation], object]], seen: list[Observation], decisions: int
) -> Times:
    """Decisions in turns; the first ones warm up and do not count."""
    taken = {name: np.empty((decisions, 2)) for name in contenders}  # processor's and wall time
    for turn in range(-_WARM_UP, decisions):
        observation = seen[turn % len(seen)]
        for name, decide in contenders.items():
            begun = time.process_time(), time.perf_counter()
            decide(observation)
            if turn >= 0:
                taken[name][turn] = time.process_time() - begun[0], time.perf_counter() - begun[1]
    return {
        name: {
            f"{kind} {label} [ms]": float(np.quantile(1e3 * seconds[:, column], share))
            for column, kind in enumerate(("CPU", "wall"))
            for label, share in (("p50", 0.5), ("p99", 0.99))
        }
        for name, seconds in taken.items()
    }


def _decider(policy: RobotPolicy) -> Callable[[Observation], object]:
    state = policy.initial_state()
    return lambda observation: policy.decide(observation, state)


def _lerobot(checkpoint: Path) -> Callable[[Observation], object]:
    # Here, since LeRobot's import takes seconds and the others do without it.
    from lerobot.policies import make_pre_post_processors

    from scripts.bench.lerobot_decisions import lerobot_decider
    from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig
    from vla.lerobot_plugin.modeling_vla import LeRobotVLAPolicy

    settings = LeRobotVLAConfig.from_pretrained(checkpoint)
    settings.device = "cpu"
    plugin = LeRobotVLAPolicy.from_pretrained(checkpoint, config=settings)
    around = make_pre_post_processors(settings, str(checkpoint))
    decider = lerobot_decider(LEROBOT, load_policy(checkpoint).spec, plugin, *around)

    def decide(observation: Observation) -> object:
        decider.begin()  # empties the queue of actions, or most decisions would take one from it
        images = {name: image[None] for name, image in observation.images.items()}
        return decider.decide((images, observation.proprio[None]))

    return decide


def _table(measured: Times) -> list[str]:
    columns = [*next(iter(measured.values()))]
    reference = measured[TORCH][columns[0]]
    lines = [
        f"| decision | {' | '.join(columns)} | CPU p50 / torch |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for name, figures in measured.items():
        values = " | ".join(f"{figures[column]:.2f}" for column in columns)
        lines.append(f"| {name} | {values} | {figures[columns[0]] / reference:.2f} |")
    return lines


if __name__ == "__main__":
    main(tyro.cli(BenchExportConfig))
