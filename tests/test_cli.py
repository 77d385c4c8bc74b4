"""The `vla` command: lazy, forgiving about typing errors, one clear line for a user's error."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from scripts import cli
from vla.contract import ContractMismatchError


class OwnError(RuntimeError):
    """Stands for an error class that this project defines."""


OwnError.__module__ = "sim.somewhere"


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """A command's flags.

    Attributes:
        noise_m: a number, metres.
    """

    noise_m: float = 0.0


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int | None]], None]:
    """Make `vla collect` run a given function."""

    def install(main: Callable[..., int | None]) -> None:
        module = ModuleType("scripts.collect")
        module.__dict__.update(CollectConfig=CollectConfig, main=main)
        monkeypatch.setitem(sys.modules, "scripts.collect", module)

    return install


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line per command, on standard output, and success."""
    assert cli.main(words) == 0
    listed = capsys.readouterr().out.splitlines()
    for name, line in cli.COMMANDS.items():
        assert any(row.split() == [name, *line.split()] for row in listed)


def test_help_loads_nothing_heavy() -> None:
    """`vla --help` answers without torch, transformers, mujoco, numpy or tyro."""
    program = (
        "import sys; from scripts.cli import main; main(['--help']); "
        "assert not {'torch', 'transformers', 'mujoco', 'numpy', 'tyro'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize(("typed", "meant"), [("evalute", "evaluate"), ("colect", "collect")])
def test_unknown_command_names_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the fingers is answered with the word that was meant and with all valid ones."""
    assert cli.main([typed]) == 2
    message = capsys.readouterr().err
    assert f"did you mean '{meant}'?" in message
    assert ", ".join(cli.COMMANDS) in message


def test_far_off_command_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    """No guess where nothing is near."""
    assert cli.main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.usefixtures("capsys")
@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_flags_reach_the_command_and_its_code_comes_back(
    command: Callable[..., None], returned: int | None, code: int
) -> None:
    """Hyphenated flags fill the config; None counts as success."""
    received = []

    def main(config: CollectConfig) -> int | None:
        received.append(config)
        return returned

    command(main)
    assert cli.main(["collect", "--noise-m", "0.5"]) == code
    assert received == [CollectConfig(noise_m=0.5)]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such task"),
        FileNotFoundError(2, "No such file or directory", "runs/a"),
        ContractMismatchError("contracts differ:\n  proprio"),
        OSError(28, "No space left on device"),
        OwnError("no GL library"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_user_errors_are_one_message(
    error: Exception, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the message alone, nothing on standard output."""

    def main(config: CollectConfig) -> None:
        raise error

    command(main)
    assert cli.main(["collect"]) == 2
    assert capsys.readouterr() == ("", f"error: {error}\n")


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_traceback_on_request(
    by: str,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either way shows where the error came from, and the flag is not passed on."""

    def main(config: CollectConfig) -> None:
        raise ValueError("no such task")

    command(main)
    words = ["collect"]
    if by == "flag":
        words.append("--traceback")
    else:
        monkeypatch.setenv("VLA_TRACEBACK", "1")
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert printed.endswith("error: no such task\n")


def test_a_defect_keeps_its_traceback(command: Callable[..., None]) -> None:
    """An error that no user caused is not dressed up as one."""

    def main(config: CollectConfig) -> None:
        raise IndexError("a defect")

    command(main)
    with pytest.raises(IndexError, match="a defect"):
        cli.main(["collect"])


@pytest.mark.parametrize(("module", "is_ours"), [("mujoco", False), ("sim.gone", True)])
def test_a_missing_extra_is_named(
    module: str,
    is_ours: bool,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A robot's environment has no simulator; a missing module of ours is a defect."""

    def main(config: CollectConfig) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    command(main)
    if is_ours:
        with pytest.raises(ModuleNotFoundError):
            cli.main(["collect"])
    else:
        assert cli.main(["collect"]) == 2
        assert "'mujoco' is missing" in (message := capsys.readouterr().err)
        assert "lerobot_policy_vla[sim,train,lerobot,export]" in message


def test_interrupt_is_no_traceback(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends with the shell's code for it."""

    def main(config: CollectConfig) -> None:
        raise KeyboardInterrupt

    command(main)
    assert cli.main(["collect"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_job_that_is_ended_from_outside_is_an_interrupt(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """So that what Ctrl-C keeps is kept; afterwards the signal has its own meaning again."""
    before = signal.getsignal(signal.SIGTERM)

    def main(config: CollectConfig) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    command(main)
    assert cli.main(["collect"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_unknown_gl_library_is_one_line() -> None:
    """MuJoCo's import refuses it by a traceback."""
    run = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "plan"],
        env={**os.environ, "MUJOCO_GL": "bogus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: invalid value for environment variable MUJOCO_GL: bogus;")
    assert "egl or osmesa" in run.stderr


def test_a_terminal_that_lacks_a_sign_does_not_end_a_command(tmp_path: Path) -> None:
    """Printed is what it has."""
    program = (
        "import sys; from scripts import cli; cli._run = lambda *_: print('40 µs') or 0; "
        "sys.exit(cli.main(['collect']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "40 ?s\n"), run.stderr


@pytest.mark.parametrize("name", [n for n in cli.COMMANDS if n not in cli.WITH_FOREIGN_FLAGS])
def test_every_command_exists_and_explains_its_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frozen config, a main, and a help text that opens with the command's own line."""
    module = importlib.import_module(f"scripts.{name}")
    config = getattr(module, f"{name.capitalize()}Config")
    assert config.__dataclass_params__.frozen
    assert callable(module.main)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: vla {name}")
    assert cli.COMMANDS[name].split(",")[0] in printed


def test_flags_of_another_program_are_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vla lerobot-train --help` lists LeRobot's."""
    monkeypatch.setattr("sys.argv", [])
    with pytest.raises(SystemExit) as ended:
        cli.main(["lerobot-train", "--help"])
    assert ended.value.code == 0
    assert "--dataset.repo_id" in capsys.readouterr().out


def test_a_wrong_flag_is_refused(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser's own refusal names the flag and exits with 2."""
    command(lambda config: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["collect", "--noise-mm", "1"])
    assert ended.value.code == 2
    assert "noise-mm" in capsys.readouterr().err


def test_a_preset_gives_a_task_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags after it still win; an unknown one lists the valid ones."""
    from scripts.presets import preset
    from sim.tasks.registry import TASKS, example_names

    assert all(preset(name).refine.task == name for name in example_names())
    with pytest.raises(SystemExit):
        cli.main(["collect", "--preset", "FetchPush", "--help"])
    assert "(default: 0.5)" in capsys.readouterr().out
    assert cli.main(["refine", "--preset=FetchPull"]) == cli.USAGE_EXIT
    error = capsys.readouterr().err
    assert "unknown task 'FetchPull'" in error
    assert all(name in error for name in TASKS)


def test_the_demo_refuses_bad_settings_before_its_first_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the last stage, too: an hour of training would be lost on them."""
    from scripts import collect

    def begun(config: object) -> int:
        raise AssertionError("recording has begun")

    monkeypatch.setattr(collect, "main", begun)
    for wrong in (["--episodes", "0"], ["--demonstrations", "0"], ["--seed", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["demo", *wrong])
        captured = capsys.readouterr()
        assert f"{wrong[0].removeprefix('--')} must be" in captured.out + captured.err
    assert cli.main(["demo", "--task", "FetchFly"]) == cli.USAGE_EXIT
    assert "unknown task 'FetchFly'" in capsys.readouterr().err


def test_the_printed_command_line_repeats_the_run() -> None:
    """Flags of the training have no prefix, in both directions."""
    import tyro

    from policies.imitation.config import CloningConfig
    from scripts.pretrain import PretrainConfig
    from scripts.provenance import command_line

    config = PretrainConfig(
        "FetchReach", weights=(1.0, 2.0), training=CloningConfig(updates=7, seed=3)
    )
    words = command_line("pretrain", config).split()
    assert words[:2] == ["vla", "pretrain"]
    assert tyro.cli(PretrainConfig, args=words[2:]) == config


def test_a_head_is_described_in_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name, and settings off their defaults, down to those of the action expert."""
    from scripts.pretrain import read_head
    from vla.model.heads.expert import ExpertConfig
    from vla.model.heads.flow import FlowHeadConfig
    from vla.model.heads.l1 import L1HeadConfig

    assert read_head("l1") == L1HeadConfig()
    expected = FlowHeadConfig(ExpertConfig(width=64), steps=5)
    assert read_head("flow:expert.width=64,steps=5") == expected
    with pytest.raises(ValueError, match="no action head 'glow'; valid: gaussian, token"):
        read_head("glow:steps=5")
    with pytest.raises(SystemExit):
        read_head("flow:step=5")
    assert "--steps INT" in capsys.readouterr().err


def test_a_wrong_setting_advises_nothing_that_shows_other_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`name:help` shows the settings; `--help` after the choice would be the command's."""
    from policies.reinforcement.ppo import PPOConfig
    from scripts.choice import read_choice

    configs = {"ppo": PPOConfig}
    with pytest.raises(SystemExit):
        read_choice("algorithm", "--algorithm", "ppo:foo=3", configs)
    captured = capsys.readouterr()
    assert "--foo=3" in captured.out + captured.err
    assert "--help" not in captured.out + captured.err
    with pytest.raises(SystemExit, match="0"):
        read_choice("algorithm", "--algorithm", "ppo:help", configs)
    assert "--clip-range" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["doctor", "--free-gb", "nan"], ["refine", "--stop-at", "1.1"]])
def test_numbers_out_of_range_are_refused_in_the_words_of_the_setting(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No disk has NaN gigabytes free, and no success reaches a share above 1."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(flags)
    captured = capsys.readouterr()
    assert re.search(r"(free_gb|stop_at) must be at least 0", captured.out + captured.err)
