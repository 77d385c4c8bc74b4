"""Code blocks of the documents, and the parsers that their shell lines are put through."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tyro

from scripts import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = {"bash", "python", "text"}

# What stands for a choice of the reader's, and one choice.
PLACEHOLDERS = {"SEED": "0", "SAMPLER": "sde"}
# Programs that are not ours; their flags are their own affair.
OTHERS = {"git", "pip", "pre-commit", "pytest", "source", "uv"}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CONFIG = re.compile(r"main\(tyro\.cli\((\w+)\)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: document and line, for messages.
        language: the word after the fence.
        text: what stands between the fences.
    """

    place: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    """All of them."""
    for path in DOCUMENTS:
        text = path.read_text()
        for found in _BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(f"{path.relative_to(ROOT)}:{line}", found[1], found[2])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without comments and with lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield [re.sub("|".join(PLACEHOLDERS), lambda m: PLACEHOLDERS[m[0]], w) for w in words]


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parse a command with the parser of what it calls; nothing is run.

    Returns:
        What the parser made of the flags.

    Raises:
        AssertionError: an unknown command, flag or value, or a file that is not there.
    """
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable for the command alone
        words = words[1:]
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "vla" and rest[0] == "lerobot-train":
        return parse_lerobot(rest[0], rest[1:])
    if program == "vla":
        return parse_vla(rest, monkeypatch)
    if program.startswith("lerobot-"):
        return parse_lerobot(program, rest)
    if program == "bash":
        assert (ROOT / rest[0]).is_file(), f"no script {rest[0]}"
        if rest[0] == "scripts/demo.sh":
            return parse_vla(["demo", *rest[1:]], monkeypatch)
        return rest
    if program == "python" and rest[0] == "-m" and rest[1].startswith(("scripts.", "vla_runtime.")):
        return parse_module(rest[1], rest[2:])
    if program == "python" and rest[0] == "-c":
        return compile(rest[1], "python -c", "exec")
    assert program in OTHERS or rest[:1] == ["-m"], f"what is {program!r}?"
    return rest


def parse_vla(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config that `vla WORDS` would run, validated by its dataclass."""
    name = words[0]
    assert name in cli.COMMANDS, f"no command {name}"
    parsed: list[Any] = []
    module = importlib.import_module(f"scripts.{name.replace('-', '_')}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "main", lambda config: parsed.append(config))
        assert cli.main(words) == 0, words
    if name == "pretrain" and parsed[0].head is not None:
        module.read_head(parsed[0].head)
    return parsed[0]


def parse_module(name: str, flags: list[str]) -> Any:
    """The config that `python -m NAME FLAGS` would run."""
    module = importlib.import_module(name)
    [config] = _CONFIG.findall(Path(str(module.__file__)).read_text())
    return tyro.cli(getattr(module, config), args=flags)


def parse_lerobot(program: str, flags: list[str]) -> Any:
    """The config that LeRobot would run, with our plug-ins; files it names need not exist."""
    import draccus
    from lerobot.configs.eval import EvalPipelineConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.rollout.configs import RolloutConfig

    importlib.import_module("lerobot_policy_vla")
    config = {
        "lerobot-train": TrainPipelineConfig,
        "lerobot-eval": EvalPipelineConfig,
        "lerobot-rollout": RolloutConfig,
    }[program]
    # A checkpoint's own settings are read from its folder; here it is one of ours at its defaults.
    known = [flag for flag in flags if not flag.startswith(("--policy.path=", "--config_path="))]
    if len(known) < len(flags) and not any(flag.startswith("--policy.type=") for flag in known):
        known.append("--policy.type=vla")
    if not any(flag.startswith("--dataset.") for flag in known) and program == "lerobot-train":
        known.append("--dataset.repo_id=local/resumed")
    return draccus.parse(config, args=known)
