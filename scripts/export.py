"""`vla export`: write a checkpoint as graphs that a robot runs without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from vla_runtime.exported.policy import ExportedPolicy

from scripts.export_lerobot import export_lerobot, lerobot_contract
from scripts.export_trials import Trials
from vla.checkpoint.folder import fingerprint
from vla.contract import RobotSpec
from vla.deploy.export import export_policy
from vla.deploy.parity import (
    compare_decisions,
    compare_inpainting,
    compare_prompts,
    compare_tokens,
)
from vla.deploy.reference import Reference
from vla.deploy.torch_policy import find_checkpoint
from vla.lerobot_plugin.foreign import is_lerobot_checkpoint
from vla.policy import VLAPolicy, load_policy
from vla.settings import require_numbers


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and on what it is compared before it counts.

    Attributes:
        checkpoint: folder of a checkpoint, or of a run, which stands for its best one.
        out: a new folder.
        embodiment: which robot, where the checkpoint controls several.
        data: a data set of the robot, whose frames the exported policy is compared on; by default
            the simulated task's observations, or random ones.
        task: the simulated task in which the exported policy shadows the checkpoint; by default
            none, as for a robot that is not simulated here.
        observations: on which decisions are compared open loop.
        shadow_episodes: played in closed loop.
    """

    checkpoint: tyro.conf.Positional[Path]
    out: Path
    embodiment: str | None = None
    data: Path | None = None
    task: str | None = None
    observations: int = 64
    shadow_episodes: int = 20

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("observations", "shadow_episodes"))
        if self.out.exists():
            raise ValueError(f"{self.out} exists: name a new folder")


def main(config: ExportConfig) -> int:
    """Export, compare, and say where the folder is and how far decisions are apart."""
    folder = find_checkpoint(config.checkpoint)
    if is_lerobot_checkpoint(folder):
        contract = lerobot_contract(folder, config.task, config.data)
        found = export_lerobot(folder, config.out, trials(config, contract))
    else:
        policy = load_policy(folder, embodiment=config.embodiment)
        if not policy.ledger.taught_to_act:
            print("warning: its action head was never trained: a robot would move at random")
        name = policy.embodiments.choose(config.embodiment)
        comparison = _Comparison(config, policy)
        source = {"checkpoint": fingerprint(folder), "embodiment": name}
        found = export_policy(policy, config.out, source, comparison.run)
    for what, result in found.items():
        print(f"{what}: {_in_words(result)}")
    print(f"exported: {config.out}")
    return 0


def trials(config: ExportConfig, spec: RobotSpec) -> Trials:
    """What the export of a policy for this robot is compared on."""
    counts = config.observations, config.shadow_episodes
    return Trials(config.checkpoint, spec, config.data, config.task, *counts)


class _Comparison:
    """Everything that an export is compared on; made before it, so that what is missing is said.

    Args:
        config: what was asked for.
        policy: is exported.

    Raises:
        ContractMismatchError: the data set or the task is of another robot.
    """

    def __init__(self, config: ExportConfig, policy: VLAPolicy):
        self._policy, self._trials = policy, trials(config, policy.spec)
        statistics = policy.processor.statistics
        recorded = statistics.proprio if statistics else None
        bounds = (recorded.min, recorded.max) if recorded else None
        self._observations, self._origin = self._trials.observe(bounds)

    def run(self, exported: ExportedPolicy) -> dict[str, Any]:
        """Compare, for policy.json.

        Raises:
            ParityError: decisions or tokens differ.
        """
        reference, seen = Reference(self._policy), self._observations
        words = dict.fromkeys(observation.instruction for observation in seen)
        found: dict[str, Any] = {
            "observations": self._origin,
            "equal_instructions": compare_prompts(self._policy, exported, words),
            "open_loop": compare_decisions(reference, exported, seen),
        }
        if tokens := compare_tokens(reference, exported, seen):
            found["equal_action_tokens"] = tokens
        if exported.can_inpaint:
            found["inpainting"] = compare_inpainting(reference, exported, seen)
        return {**found, "closed_loop": self._trials.shadow(reference, exported)}


def _in_words(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)
    largest = max(result["largest_difference"].values())
    return f"{result['decisions']} decisions, at most {largest:.2g} apart"
