"""The one `vla` command: picks a subcommand, parses its flags, reports user errors in one line."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

# Each command lives in scripts/<name>.py, as a frozen dataclass `<Name>Config` and `main(config)`,
# or, where another program's flags are taken over, as `main(flags)`.
COMMANDS = {
    "collect": "record expert demonstrations into a LeRobotDataset",
    "ground": "train the vision-language model to point at the objects that words name",
    "pretrain": "clone the demonstrations into a vision-language-action policy",
    "lerobot-train": "train LeRobot's policies as lerobot-train does, on decoded images",
    "refine": "improve a cloned policy by reinforcement learning: PPO, TRPO, GRPO and others",
    "dagger": "let the clone play, ask the expert what it should have done, and clone again",
    "compare": "play policies from equal states, and judge which episode is better",
    "reward": "fit a reward model to comparisons",
    "dpo": "improve a cloned policy by comparisons, without a reward model",
    "learners": "compare learners from the same clones, control steps and initial states",
    "plan": "run CEM or MPPI over exact dynamics on the same episodes",
    "evaluate": "compare policies on equal held-out episodes and write a report",
    "run": "run a policy on a robot, behind the safety gate, and record what happens",
    "demo": "do all of the above on a small scale and print where the report is",
    "export": "write a checkpoint as graphs that a robot runs without torch",
    "serve": "answer robots' observations with a policy's actions, over a websocket",
    "convert": "rewrite a checkpoint of an older format in today's",
    "doctor": "check versions, device, rendering and disk; or a task, or what a run logged",
}

# Errors that a person can cause and mend: a bad value, a missing file, a full disk, and whatever
# this project defines itself, since those messages are written to be read.
USER_ERRORS = (ValueError, OSError)
# What MuJoCo's import says, in a RuntimeError, of a MUJOCO_GL that it does not know.
WRONG_VARIABLE = "invalid value for environment variable"
OWN_PACKAGES = {"vla_runtime", "vla", "sim", "policies", "scripts"}

# Commands that take `--preset NAME`: a task's settings as in docs/results.md.
WITH_PRESETS = {"collect", "pretrain", "refine"}
WITH_FOREIGN_FLAGS = {"lerobot-train"}

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: words after `vla`; those of this process when None.

    Returns:
        The exit code: the subcommand's own, or 2 after a user error, which is printed as one
        `error: ...` without a traceback unless `--traceback` or VLA_TRACEBACK=1 asks for it.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows "?" instead of ending a finished evaluation.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in words or os.environ.get("VLA_TRACEBACK", "0") != "0"
    words = [word for word in words if word != "--traceback"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *flags = words
    if name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        return USAGE_EXIT
    # A job that is ended from outside closes its workers and keeps what it has, as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(name, flags)
    except Exception as error:
        if not _is_for_people(error):
            raise
        if show_traceback:
            traceback.print_exc()
        print(f"error: {_message(error)}", file=sys.stderr)
        return USAGE_EXIT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(name: str, flags: Sequence[str]) -> int:
    # Imported here, so that `vla --help` never waits for torch, and no command for another's parts.
    import tyro

    module = importlib.import_module(f"scripts.{name.replace('-', '_')}")
    if name in WITH_FOREIGN_FLAGS:
        return module.main(flags)
    description, default = COMMANDS[name], {}
    if name in WITH_PRESETS:
        description += " (--preset TASK starts from that task's settings in scripts/presets.py)"
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--preset")
        known, flags = parser.parse_known_args(flags)
        if known.preset is not None:
            presets = importlib.import_module("scripts.presets")
            default = {"default": getattr(presets.preset(known.preset), name)}
    config = tyro.cli(
        getattr(module, f"{name.capitalize()}Config"),
        prog=f"vla {name}",
        description=description,
        args=flags,
        **default,
    )
    return module.main(config) or 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())
    return (
        "usage: vla COMMAND [flags]\n\n"
        "From demonstrations to a compared policy: clone, refine, plan, report.\n\n"
        f"commands:\n{listed}\n\n"
        "vla COMMAND --help lists its flags; --traceback shows where an error came from."
    )


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"no command {name!r}{hint} Valid commands: {', '.join(COMMANDS)}"


def _is_for_people(error: Exception) -> bool:
    if isinstance(error, ModuleNotFoundError):  # of an extra; our own modules are never missing
        return (error.name or "").split(".")[0] not in {"", *OWN_PACKAGES}
    if isinstance(error, RuntimeError) and str(error).startswith(WRONG_VARIABLE):
        return True
    return isinstance(error, USER_ERRORS) or type(error).__module__.split(".")[0] in OWN_PACKAGES


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the package {error.name!r} is missing: this command needs more than the core, "
            'pip install "lerobot_policy_vla[sim,train,lerobot,export]", or bash scripts/setup.sh'
        )
    if str(error).startswith(WRONG_VARIABLE):
        return f"{error}; unset it, or set it to egl or osmesa"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
