"""From a source's text to a policy: a server, an exported folder, or what else can be loaded."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from vla_runtime.contract import RobotPolicy, RobotSpec
from vla_runtime.exported.folder import is_exported, is_lerobot
from vla_runtime.exported.lerobot import ExportedLeRobotPolicy
from vla_runtime.exported.policy import ExportedPolicy

LOADERS = "vla_runtime.policies"
"""Entry points of this group take a folder and the robot's contract, which may be None, and give a
`RobotPolicy`, or None for another kind of folder."""


def load_policy(source: str, robot: RobotSpec | None = None) -> RobotPolicy:
    """The policy that a source names.

    Args:
        source: ws:// or wss:// address of a server, or folder of an exported policy; where more is
            installed, also of a checkpoint.
        robot: contract of the robot that it is to control, where that is known: it chooses among
            the robots of a checkpoint, and gives a LeRobot policy its units. Whether the policy
            fits it is for the caller to check.

    Raises:
        ConnectionError: no server there, or it refuses the token.
        FileNotFoundError: there is no such folder.
        ValueError: nothing that is installed here can load it; says what can be done.
        ExportedFolderError: the exported policy is damaged or of another format.
    """
    if source.startswith(("ws://", "wss://")):
        # Imported here: a server that serves a folder needs no client.
        from vla_runtime.client import RemotePolicy

        return RemotePolicy(source)
    if "://" in source:
        raise ValueError(f"{source} is no policy server: those are addressed as ws://HOST:PORT")
    folder = Path(source)
    if not source or not folder.is_dir():  # an empty path would be the present folder
        raise FileNotFoundError(f"there is no policy {source!r}: no such folder")
    if is_exported(folder):
        return ExportedLeRobotPolicy(folder) if is_lerobot(folder) else ExportedPolicy(folder)
    # The full environment registers loaders that need torch; a robot's need not have them.
    for entry in entry_points(group=LOADERS):
        if (policy := entry.load()(folder, robot)) is not None:
            return policy
    raise ValueError(
        f"{source} is no exported policy: write one with `vla export CHECKPOINT --out FOLDER` "
        "where the checkpoint was trained"
    )
