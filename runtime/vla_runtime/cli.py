"""The `vla-runtime` command, for machines without the rest of this repository."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130

# Command → its line of help, where its flags are, and where the function is that takes them.
COMMANDS = {
    "run": (
        "run a policy on a robot, behind the safety gate, and record what happens",
        "vla_runtime.run_config:RunConfig",
        "vla_runtime.run:main",
    ),
    "serve": (
        "serve a policy to robots over websockets",
        "vla_runtime.server.config:ServeConfig",
        "vla_runtime.server.service:serve",
    ),
    "dataset": (
        "add the logs of runs to their LeRobotDataset, where LeRobot is installed",
        "vla_runtime.cli:DatasetConfig",
        "vla_runtime.cli:add_to_dataset",
    ),
}


@dataclass(frozen=True)
class DatasetConfig:
    """Flags of `vla-runtime dataset`.

    Attributes:
        folder: that `vla run --record` has written to.
    """

    folder: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is its own, or 2 after an error of the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: vla-runtime COMMAND [flags]\n\ncommands:")
        print(*(f"  {name:<8} {line}" for name, (line, _, _) in COMMANDS.items()), sep="\n")
        return 0
    name, *flags = words
    if name not in COMMANDS:
        print(f"error: no command {name!r}; valid: {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE_EXIT
    line, flags_place, function_place = COMMANDS[name]
    try:
        config = tyro.cli(
            _find(flags_place), prog=f"vla-runtime {name}", description=line, args=flags
        )
        return _find(function_place)(config) or 0
    except Exception as error:
        if not _is_for_people(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return USAGE_EXIT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT


def add_to_dataset(config: DatasetConfig) -> None:
    """Add the logs that a folder keeps to its data set.

    Raises:
        ValueError: the folder is no recording of runs.
    """
    from vla_runtime.run_recording import add_logs, open_recording

    if not (config.folder / ".recording").is_dir():
        raise ValueError(f"{config.folder} is no folder that `vla run --record` has written to")
    with open_recording(config.folder, None):
        for key, value in add_logs(config.folder).items():
            print(f"{key}: {value}")


def _find(place: str) -> Callable[..., Any]:
    # Imported when asked for: no command waits for another's packages.
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _is_for_people(error: Exception) -> bool:
    """A bad value, a missing file or package, or an error of ours, whose message says it all."""
    known = isinstance(error, (ValueError, OSError, ModuleNotFoundError))
    return known or type(error).__module__.partition(".")[0] == "vla_runtime"


if __name__ == "__main__":
    sys.exit(main())
