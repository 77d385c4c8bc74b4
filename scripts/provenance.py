"""Where a result came from: commit, versions, hardware, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

VERSIONS = ("torch", "transformers", "mujoco", "gymnasium-robotics", "numpy")


def describe_machine(device: str) -> dict[str, str]:
    """Commit, package versions and hardware, as label → text."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU used"
    return {
        "Commit": _commit(),
        "Versions": ", ".join(
            [
                f"Python {platform.python_version()}",
                *(f"{name} {version(name)}" for name in VERSIONS),
            ]
        ),
        "Hardware": f"{_processor()}, {os.cpu_count()} cores, {gpu}",
    }


def command_line(command: str, config: Any) -> str:
    """The shell line that repeats a run: `vla <command>` with every flag off its default.

    Args:
        command: subcommand.
        config: its flat dataclass, all of whose fields have defaults.
    """
    words = ["vla", command]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *map(str, values)]
    return shlex.join(words)


def _commit() -> str:
    def git(*arguments: str) -> str:
        root = Path(__file__).parents[1]
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = "with local changes" if git("status", "--porcelain", "-uno") else ""
        return f"{git('rev-parse', '--short', 'HEAD')} {changed}".strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
