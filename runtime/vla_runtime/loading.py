"""From a source's text to a policy: an exported folder, or whatever else is installed to load."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from vla_runtime.contract import RobotPolicy
from vla_runtime.exported.folder import is_exported, is_lerobot
from vla_runtime.exported.lerobot import ExportedLeRobotPolicy
from vla_runtime.exported.policy import ExportedPolicy

LOADERS = "vla_runtime.policies"
"""Entry points of this group take a folder and give a `RobotPolicy`, or None for another kind."""


def load_policy(source: str) -> RobotPolicy:
    """The policy that a source names.

    Args:
        source: folder of an exported policy; where more is installed, also of a checkpoint.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: nothing that is installed here can load it; says what can be done.
        ExportedFolderError: the exported policy is damaged or of another format.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no policy {source!r}: no such folder")
    if is_exported(folder):
        return ExportedLeRobotPolicy(folder) if is_lerobot(folder) else ExportedPolicy(folder)
    # The full environment registers loaders that need torch; a robot's need not have them.
    for entry in entry_points(group=LOADERS):
        if (policy := entry.load()(folder)) is not None:
            return policy
    raise ValueError(
        f"{source} is no exported policy: write one with `vla export CHECKPOINT --out FOLDER` "
        "where the checkpoint was trained"
    )
