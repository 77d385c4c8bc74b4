"""Where a result came from: commit, versions, hardware, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from policies.run_folder import describe_machine


def machine_facts(device: str) -> dict[str, str]:
    """Commit, versions and hardware, as label → text for a report."""
    facts = describe_machine()
    versions = {"Python": facts["python"], **facts["versions"]}
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU used"
    return {
        "Commit": facts["git_commit"] or "unknown: no git, or no repository",
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "Hardware": f"{_processor() or facts['machine']}, {os.cpu_count()} cores, {gpu}",
    }


def command_line(command: str, config: Any) -> str:
    """The shell line that repeats a run: `vla <command>` with every flag off its default.

    Args:
        command: subcommand.
        config: its dataclass, all of whose fields have defaults.
    """
    return shlex.join(["vla", command, *_flags(config, "")])


def _flags(config: Any, prefix: str) -> list[str]:
    """Flags of a dataclass's fields that are off their defaults, nested ones with dots.

    Those of `training` have no prefix: `--seed`, not `--training.seed`.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = prefix + field.name.replace("_", "-")
        # `OmitArgPrefixes` removes the prefix of `training` from its flags, see the commands'
        # configurations.
        if dataclasses.is_dataclass(value):
            words += _flags(value, "" if field.name == "training" else f"{flag}.")
        # Fields with a default factory have MISSING here, so they are always written: longer, never
        # wrong.
        elif value == field.default:
            continue
        elif isinstance(value, bool):
            # tyro writes the negation into the last part: `--embedded.no-x`.
            words.append(f"--{flag}" if value else f"--{prefix}no-{field.name.replace('_', '-')}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *map(str, values)]
    return words


def _processor() -> str | None:
    """Model name of the processor, where Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    # `platform.processor()` is empty on most Linux distributions.
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, None)
