"""`vla export` of a checkpoint of LeRobot's own policies, whose contract is that of a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_runtime.atomic_folder import digest
from vla_runtime.contract import RobotPolicy, RobotSpec

from scripts.export_trials import Trials
from sim.tasks.registry import make_task
from vla.data.dataset_contract import read_contract
from vla.deploy.lerobot_export import LeRobotReference, export_lerobot_policy
from vla.deploy.parity import compare_decisions
from vla.lerobot_plugin.foreign import Description, load_lerobot_policy


def export_lerobot(folder: Path, out: Path, trials: Trials) -> dict[str, Any]:
    """Export it, compared with LeRobot's own `select_action`.

    Args:
        folder: of the checkpoint.
        out: a new folder.
        trials: with the contract that `lerobot_contract` gives.

    Raises:
        ContractMismatchError: it is for other cameras, or for other sizes of state or action.
        ExportError: it cannot be exported, or does not compute the same.
        ForeignCheckpointError: a weight or a statistic is missing.
    """
    foreign = load_lerobot_policy(folder, trials.spec)
    # It may look at fewer cameras than the robot has.
    trials, reference = replace(trials, spec=foreign.spec), LeRobotReference(foreign)
    observations, origin = trials.observe()

    def check(exported: RobotPolicy) -> dict[str, Any]:
        return {
            "observations": origin,
            "open_loop": compare_decisions(reference, exported, observations),
            "closed_loop": trials.shadow(reference, exported),
        }

    source = {"weights": digest(folder / "model.safetensors"), "contract": trials.spec.robot}
    return export_lerobot_policy(foreign, out, source, check)


def lerobot_contract(folder: Path, task: str | None, data: Path | None) -> RobotSpec:
    """What the numbers of a LeRobot policy mean: of the data set, else of the task.

    Raises:
        ValueError: neither is named.
    """
    if data is not None:
        return read_contract(data)
    if task is None:
        raise ValueError(
            f"{folder} is a LeRobot policy, which knows shapes but no units, limits or rate: name "
            "the data set that it was trained on (--data) or a simulated task (--task)"
        )
    sizes = [height for height, _ in Description.read(folder).images.values()]
    return make_task(task, sizes[0]).spec if sizes else make_task(task).spec
