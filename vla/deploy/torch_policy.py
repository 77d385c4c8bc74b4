"""Checkpoints through torch as a robot's policy: ours, and LeRobot's.

Registered in the entry-point group `vla_runtime.policies`, so that the control loop and the server,
which know no torch, take a checkpoint where this distribution is installed.
"""

from __future__ import annotations

from pathlib import Path

from vla_runtime.contract import RobotPolicy, RobotSpec

from vla.checkpoint.folder import latest_complete
from vla.deploy.reference import Reference
from vla.lerobot_plugin.foreign import is_lerobot_checkpoint, load_lerobot_policy
from vla.policy import load_policy


def load(folder: Path, robot: RobotSpec | None) -> RobotPolicy | None:
    """The policy of a checkpoint, on the CPU; None for a folder of another kind.

    Args:
        folder: of the checkpoint; a run stands for its best one.
        robot: contract of the robot that it is to control; None where that is not known, and then
            it has to be ours, and for one robot.

    Raises:
        CheckpointError: damaged, or of another format.
        ContractMismatchError: it is for other robots.
        ForeignCheckpointError: a LeRobot policy lacks weights or statistics.
        ValueError: a LeRobot policy without a robot.
    """
    place = find_checkpoint(folder)
    if is_lerobot_checkpoint(place):
        return _lerobot(place, robot)
    if not (place / "manifest.json").is_file():
        return None
    return Reference(load_policy(place, embodiment=robot))


def find_checkpoint(folder: Path) -> Path:
    """A checkpoint itself, or of a run its best one, else its latest."""
    if (folder / "manifest.json").is_file() or is_lerobot_checkpoint(folder):
        return folder
    if (last := folder / "checkpoints" / "last" / "pretrained_model").is_dir():  # of lerobot-train
        return last
    best = folder / "best"
    return best if best.is_dir() else latest_complete(folder) or folder


def _lerobot(folder: Path, robot: RobotSpec | None) -> RobotPolicy:
    # Imports what `vla export` needs, which our own checkpoints do not.
    from vla.deploy.lerobot_export import LeRobotReference

    if robot is None:
        raise ValueError(
            f"{folder} is a LeRobot policy, which knows shapes but no units, limits or rate: serve "
            "it with those of the robot (--contract FILE), write it with `vla export`, which adds "
            "them, or run it on a robot with `vla run`"
        )
    return LeRobotReference(load_lerobot_policy(folder, robot))
