"""`vla export`: write a checkpoint as graphs that a robot runs without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from vla_runtime.exported.policy import ExportedPolicy

from policies.imitation.dataset import DemoDataset
from scripts.export_lerobot import export_lerobot
from scripts.initial_states import choose_seeds
from scripts.policy_loading import Candidate, make_env, require_comparable
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.contract import Observation, VectorSpec
from vla.deploy.export import export_policy
from vla.deploy.parity import (
    compare_decisions,
    compare_inpainting,
    compare_prompts,
    compare_tokens,
    random_observations,
    shadow,
    single,
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
        places = config.out, config.task, config.data
        found = export_lerobot(folder, *places, config.observations, config.shadow_episodes)
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


class _Comparison:
    """Everything that an export is compared on; made before it, so that what is missing is said.

    Args:
        config: what was asked for.
        policy: is exported.

    Raises:
        ContractMismatchError: the data set or the task is of another robot.
    """

    def __init__(self, config: ExportConfig, policy: VLAPolicy):
        self._config, self._policy = config, policy
        self._candidate = Candidate("checkpoint", str(config.checkpoint), spec=policy.spec)
        if config.task is not None:
            require_comparable([self._candidate], config.task, "checkpoint")
        self._observations, self._origin = self._observe()

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
        found["closed_loop"] = "not played: no simulated task was named"
        if self._config.task is not None:
            with self._env() as env:
                seeds = self._seeds(self._config.shadow_episodes)
                found["closed_loop"] = shadow(reference, exported, env, seeds)
        return found

    def _observe(self) -> tuple[list[Observation], str]:
        """Observations, and where they are from."""
        config, policy, count = self._config, self._policy, self._config.observations
        if config.data is not None:
            return _recorded(config.data, policy, count), "frames of the data set given by --data"
        if config.task is not None:
            with self._env() as env:
                return _initial(env, self._seeds(count)), f"initial states of {config.task}"
        statistics = policy.processor.statistics
        bounds = statistics.proprio if statistics else None
        low, high = (bounds.min, bounds.max) if bounds else _finite(policy.spec.proprio)
        words = "random images, proprioception within what was recorded"
        return random_observations(policy.spec, low, high, count), words

    def _env(self) -> CpuVecEnv:
        assert self._config.task is not None
        return make_env(self._candidate, self._config.task, 1, 1, "train")

    def _seeds(self, count: int) -> Sequence[int]:
        assert self._config.task is not None
        return choose_seeds(self._config.task, "development", count)


def _recorded(root: Path, policy: VLAPolicy, count: int) -> list[Observation]:
    cameras = [camera.name for camera in policy.spec.cameras]
    data = DemoDataset(root, policy.chunk_length, heldout_fraction=0.0, cameras=cameras)
    policy.spec.require_match(data.spec, "the checkpoint", f"data set {root}")
    rows = np.random.default_rng(0).choice(len(data), min(count, len(data)), replace=False)
    batch = data.batch(np.sort(rows)).observation()
    return [single(batch, row) for row in range(len(batch))]


def _initial(env: CpuVecEnv, seeds: Sequence[int]) -> list[Observation]:
    found = []
    for seed in seeds:
        env.reset([0], [seed])
        found.append(single(env.observe()[0]))
    return found


def _finite(vector: VectorSpec) -> tuple[list[float], list[float]]:
    """Limits, with -1 and 1 where there are none."""
    sides = ((vector.low, -1.0), (vector.high, 1.0))
    low, high = ([v if np.isfinite(v) else alone for v in side] for side, alone in sides)
    return low, high


def _in_words(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)
    largest = max(result["largest_difference"].values())
    return f"{result['decisions']} decisions, at most {largest:.2g} apart"
