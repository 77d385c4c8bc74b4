"""The commands `vla run` and `vla-runtime`, and stopping a run with a key."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from vla_runtime import cli, loading
from vla_runtime.contract import RobotSpec
from vla_runtime.stop_request import interruptible

from scripts import cli as full_cli

ROOT = Path(__file__).parents[2]

# A run on a terminal, stopped by whatever arrives there.
ON_A_TERMINAL = """
import sys
from pathlib import Path
from loop_doubles import NumpyRobot, load
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.safety.gate import SafetyConfig
if __name__ == "__main__":
    safety = SafetyConfig(heartbeat_s=2.0, max_observation_age_s=5.0)
    flags = {"seconds": 100.0, "priority": 0, "out": Path(sys.argv[1]), "safety": safety}
    print("ENDED", run_robot(NumpyRobot(), RunConfig("double", "ramp", "go", **flags), load).ended)
"""


@pytest.mark.parametrize(("key", "reason"), [(b"q", "key q"), (b"x ", "space bar")])
def test_a_key_stops_the_run(tmp_path: Path, key: bytes, reason: str) -> None:
    """Without Enter; other keys do nothing, and the terminal is left as it was."""
    process, ours = _on_a_terminal(tmp_path)
    shown = _read_until(ours, b"to stop")
    assert b"key q, space bar, Ctrl-C" in shown
    os.write(ours, key)
    shown = _read_until(ours, b"ENDED")
    assert process.wait(timeout=60) == 0
    assert f"ENDED stopped by {reason}".encode() in shown
    os.close(ours)


def test_a_closed_terminal_stops_the_run(tmp_path: Path) -> None:
    """A lost ssh connection, say: the robot is halted, and the report written."""
    process, ours = _on_a_terminal(tmp_path)
    _read_until(ours, b"to stop")
    os.close(ours)
    process.wait(timeout=60)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["ended"] == "stopped by SIGHUP"


def _on_a_terminal(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A run on a terminal of its own, and the other end of that."""
    script = folder / "terminal.py"
    script.write_text(ON_A_TERMINAL)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "out")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        # The terminal's own session, as a shell has it: what runs there is in the foreground.
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    return process, ours


def _take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(terminal: int, word: bytes) -> bytes:
    """What the program shows, up to the end of the line with this word."""
    shown, until_s = b"", time.monotonic() + 120
    while word not in shown or not shown.endswith(b"\n"):
        assert time.monotonic() < until_s, shown
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the program has ended
                break
    return shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_robot_moves_ends_the_program(number: signal.Signals) -> None:
    """Also where SIGINT is ignored at the start, as in a script's background job."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_without_a_terminal_under_nohup_the_run_goes_on() -> None:
    """It ignores SIGHUP for the program, which leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """And each of them has flags that can be shown."""
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for name, (line, _, _) in cli.COMMANDS.items():
        assert f"{name:<8} {line}" in shown
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
        assert f"vla-runtime {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "no command 'rnu'; valid: run, serve, dataset"),
        (["run", "--robot", "nothing", "--policy", "p", "--instruction", "go"], "unknown robot"),
    ],
)
def test_user_errors_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, no traceback."""
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_both_commands_are_the_same_run() -> None:
    """`vla run` is `vla-runtime run`."""
    _, flags, function = cli.COMMANDS["run"]
    module = import_module("scripts.run")
    assert module.RunConfig is cli._find(flags)
    assert module.main is cli._find(function)
    assert full_cli.COMMANDS["run"] == cli.COMMANDS["run"][0]


def test_the_installed_command_is_this_one() -> None:
    """The console script of the runtime's distribution."""
    project = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["vla-runtime"].partition(":")
    assert getattr(import_module(module), name) is cli.main


def test_loaders_of_other_packages_get_folder_and_robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, until one takes the folder; none of them is a clear refusal."""
    asked: list[tuple[Path, RobotSpec | None]] = []

    def load(folder: Path, robot: RobotSpec | None) -> None:
        asked.append((folder, robot))

    monkeypatch.setattr(EntryPoint, "load", lambda self: load)
    monkeypatch.setattr(
        loading, "entry_points", lambda group: [EntryPoint("any", "a:b", group)] * 2
    )
    with pytest.raises(ValueError, match="write one with `vla export"):
        loading.load_policy(str(tmp_path))
    assert asked == [(tmp_path, None)] * 2


def test_an_address_is_asked_and_not_looked_up() -> None:
    """A server that is not there is named as such, instead of a missing folder."""
    with pytest.raises(ConnectionError, match=r"no policy server at ws://127\.0\.0\.1:9"):
        loading.load_policy("ws://127.0.0.1:9")
