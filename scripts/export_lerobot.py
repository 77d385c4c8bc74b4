"""`vla export` of a checkpoint of LeRobot's own policies, whose contract is that of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from vla_runtime.atomic_folder import digest
from vla_runtime.contract import RobotPolicy, RobotSpec, VectorSpec

from scripts.initial_states import choose_seeds
from scripts.policy_loading import Candidate, make_env
from sim.tasks.registry import make_task
from vla.data.dataset_contract import read_contract
from vla.deploy.lerobot_export import LeRobotReference, export_lerobot_policy
from vla.deploy.parity import compare_decisions, random_observations, shadow
from vla.lerobot_plugin.foreign import Description, load_lerobot_policy


def export_lerobot(
    folder: Path,
    out: Path,
    task: str | None,
    data: Path | None,
    observations: int,
    episodes: int,
) -> dict[str, Any]:
    """Export it, compared with LeRobot's own `select_action`; args as `ExportConfig`.

    Raises:
        ContractMismatchError: it is for other cameras, or for other sizes of state or action.
        ExportError: it cannot be exported, or does not compute the same.
        ForeignCheckpointError: a weight or a statistic is missing.
        ValueError: neither a task nor a data set says what its numbers mean.
    """
    foreign = load_lerobot_policy(folder, _contract(folder, task, data))
    spec, reference = foreign.spec, LeRobotReference(foreign)
    seen = random_observations(spec, *_bounds(spec.proprio), observations)

    def check(exported: RobotPolicy) -> dict[str, Any]:
        found = {"open_loop": compare_decisions(reference, exported, seen)}
        if task is not None:
            seeds = choose_seeds(task, "development", episodes)
            candidate = Candidate("checkpoint", str(folder), spec=spec)
            with make_env(candidate, task, 1, 1, "train") as env:
                found["closed_loop"] = shadow(reference, exported, env, seeds)
        return found

    source = {"weights": digest(folder / "model.safetensors"), "contract": spec.robot}
    return export_lerobot_policy(foreign, out, source, check)


def _contract(folder: Path, task: str | None, data: Path | None) -> RobotSpec:
    if data is not None:
        return read_contract(data)
    if task is None:
        raise ValueError(
            f"{folder} is a LeRobot policy, which knows shapes but no units, limits or rate: name "
            "the data set that it was trained on (--data) or a simulated task (--task)"
        )
    sizes = [height for height, _ in Description.read(folder).images.values()]
    return make_task(task, sizes[0]).spec if sizes else make_task(task).spec


def _bounds(vector: VectorSpec) -> tuple[list[float], list[float]]:
    """Limits, with -1 and 1 where there are none."""
    sides = ((vector.low, -1.0), (vector.high, 1.0))
    low, high = ([v if np.isfinite(v) else alone for v in side] for side, alone in sides)
    return low, high
