"""Set-up: complete pins, and scripts that do what is needed, once, and say what is missing."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9]+(\.[0-9a-z]+)*")

# Stands for uv: writes down its words and, asked for an environment, makes one out of scripts.
FAKE_UV = r"""#!/bin/sh
[ "$2" = --help ] && exit 0
echo "$1" "$2" >>"$LOG"
[ "$1" = "$FAIL" ] && exit 1
mkdir -p .venv/bin
printf '#!/bin/sh\ncase "$2" in *doctor*) echo "$TROUBLE" ;; esac\n' >.venv/bin/python
cp .venv/bin/python .venv/bin/vla
chmod +x .venv/bin/python .venv/bin/vla
"""


def pins() -> dict[str, str]:
    """Package name → pinned version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines)


def project_table() -> dict[str, Any]:
    """`[project]` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct_requirements() -> list[Requirement]:
    """What pyproject.toml asks of others, extras included; two may ask for the same."""
    listed = set(project_table()["dependencies"]).union(
        *project_table()["optional-dependencies"].values()
    )
    ours = {"vla-runtime"}  # this repository's other distribution has no pin
    return [asked for line in sorted(listed) if (asked := Requirement(line)).name not in ours]


def test_constraints_hold_plain_pins_only() -> None:
    """No address, no option, no local version (torch+cu…), no name twice."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if not PIN.fullmatch(line)]
    assert len(pins()) == len(lines)


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda asked: asked.name)
def test_every_direct_requirement_is_pinned_and_installed(requirement: Requirement) -> None:
    """The pin satisfies pyproject.toml and is what runs here."""
    pinned = pins()[requirement.name]
    assert requirement.specifier.contains(pinned)
    assert version(requirement.name).split("+")[0] == pinned


@dataclass
class Checkout:
    """A small copy of the project in which a fake uv stands for the real one."""

    path: Path

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of its scripts as an ordinary user who has nothing but the system's tools."""
        return subprocess.run(
            ["bash", script, *words],
            cwd=self.path,
            env={"PATH": f"{self.path}/bin:/usr/bin:/bin", "HOME": str(self.path)}
            | {"LOG": str(self.path / "log"), "FAIL": "", "TROUBLE": ""}
            | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def uv_calls(self) -> list[str]:
        """What uv was asked since the last time of asking."""
        log = self.path / "log"
        calls = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return calls


def write_script(path: Path, text: str) -> None:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A copy with the real scripts, a fake uv, and an `id` that says: not root."""
    (tmp_path / "runtime").mkdir()
    files = ("pyproject.toml", "runtime/pyproject.toml", "constraints.txt", ".python-version")
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("setup.sh", "demo.sh", "test.sh"):
        write_script(tmp_path / "scripts" / name, (ROOT / "scripts" / name).read_text())
    write_script(tmp_path / "bin" / "uv", FAKE_UV)
    write_script(tmp_path / "bin" / "id", "#!/bin/sh\necho 1000\n")
    write_script(tmp_path / "bin" / "df", "#!/bin/sh\necho head\necho disk 1 1 999999999\n")
    return Checkout(tmp_path)


def test_setup_is_idempotent(checkout: Checkout) -> None:
    """First everything, then nothing; changed pins only install again."""
    assert checkout.run("scripts/setup.sh").returncode == 0
    assert checkout.uv_calls() == ["venv --clear", "pip install", "pip install"]
    again = checkout.run("scripts/setup.sh")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.uv_calls() == []
    with (checkout.path / "constraints.txt").open("a") as pinned:
        pinned.write("another==1.0\n")
    assert checkout.run("scripts/setup.sh").returncode == 0
    assert checkout.uv_calls() == ["pip install", "pip install"]


def test_setup_installs_every_extra() -> None:
    """A checkout can do everything: simulate, train, meet LeRobot, and test itself."""
    [listed] = re.findall(r"^readonly EXTRAS=(.*)$", (ROOT / "scripts/setup.sh").read_text(), re.M)
    assert set(listed.split(",")) == set(project_table()["optional-dependencies"])


def test_the_peers_without_dependencies_are_installed() -> None:
    """What setup.sh pins beside constraints.txt is what runs here."""
    script = (ROOT / "scripts/setup.sh").read_text()
    [listed] = re.findall(r"^readonly WITHOUT_DEPENDENCIES=\((.*?)\)", script, re.M)
    for name, pinned in (word.split("==") for word in listed.split()):
        assert version(name) == pinned


def test_a_failed_install_is_repeated(checkout: Checkout) -> None:
    """A failure ends with a message and code 1, and the next run does not believe it is done."""
    failed = checkout.run("scripts/setup.sh", FAIL="pip")
    assert failed.returncode == 1
    assert "did not install" in failed.stderr
    checkout.uv_calls()
    assert checkout.run("scripts/setup.sh").returncode == 0
    assert checkout.uv_calls() == ["pip install", "pip install"]


def test_a_python_without_pip_is_passed_over(checkout: Checkout) -> None:
    """An activated environment stands first on PATH; the next python3 brings uv."""
    uv = checkout.path / "bin" / "uv"
    uv.unlink()
    write_script(checkout.path / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    brings_uv = f'mkdir -p "$7/bin" && cat >"$7/bin/uv" <<\'E\'\n{FAKE_UV}E\nchmod +x "$7/bin/uv"\n'
    write_script(checkout.path / "other" / "python3", f"#!/bin/sh\n{brings_uv}")
    path = f"{checkout.path}/bin:{checkout.path}/other:/usr/bin:/bin"
    assert checkout.run("scripts/setup.sh", PATH=path).returncode == 0
    assert checkout.uv_calls() == ["venv --clear", "pip install", "pip install"]


def test_no_python_and_no_way_to_fetch_one(checkout: Checkout) -> None:
    """Says which Python to install."""
    failed = checkout.run("scripts/setup.sh", FAIL="venv")
    assert failed.returncode == 1
    assert "install" in failed.stderr
    assert "python3.12" in failed.stderr


def test_a_full_disk_is_said_before_anything_is_made(checkout: Checkout) -> None:
    """Nothing half-installed on a disk that is too small."""
    write_script(checkout.path / "bin" / "df", "#!/bin/sh\necho head\necho disk 1 1 2097152\n")
    failed = checkout.run("scripts/setup.sh")
    assert failed.returncode == 1
    assert "2 GB free" in failed.stderr
    assert checkout.uv_calls() == []


def test_missing_gl_names_the_packages(checkout: Checkout) -> None:
    """Without root it says what to install; only VLA_ALLOW_NO_GL lets it pass."""
    failed = checkout.run("scripts/setup.sh", TROUBLE="no library")
    assert failed.returncode == 1
    assert "no library" in failed.stderr
    assert "apt-get install -y libegl1 libgl1-mesa-dri libosmesa6" in failed.stderr
    allowed = checkout.run("scripts/setup.sh", TROUBLE="no library", VLA_ALLOW_NO_GL="1")
    assert allowed.returncode == 0


def test_root_gets_gl_installed(checkout: Checkout) -> None:
    """Root with apt-get needs no second command."""
    write_script(checkout.path / "bin" / "id", "#!/bin/sh\necho 0\n")
    write_script(checkout.path / "bin" / "apt-get", '#!/bin/sh\necho apt "$1" >>"$LOG"\n')
    checkout.run("scripts/setup.sh", TROUBLE="no library")
    assert checkout.uv_calls()[-2:] == ["apt update", "apt install"]


def test_demo_sets_up_and_passes_its_words_on(checkout: Checkout) -> None:
    """`demo.sh --seed 1` is `vla demo --seed 1` after set-up."""
    checkout.run("scripts/setup.sh")
    write_script(checkout.path / ".venv" / "bin" / "vla", '#!/bin/sh\necho "$@"\n')
    assert checkout.run("scripts/demo.sh", "--seed", "1").stdout == "demo --seed 1\n"


def test_every_check_runs_and_any_failure_fails(checkout: Checkout) -> None:
    """test.sh goes on after a failed linter, ends with pytest, and keeps the failure's code."""
    checkout.run("scripts/setup.sh")
    for tool in ("ruff", "pyright", "lint-imports", "pytest"):
        write_script(checkout.path / ".venv" / "bin" / tool, f'#!/bin/sh\necho ran {tool} "$@"\n')
    good = checkout.run("scripts/test.sh", "-k", "spec")
    assert good.returncode == 0
    assert good.stdout.splitlines()[-1].startswith("ran pytest --numprocesses 2 ")
    assert good.stdout.splitlines()[-1].endswith("-m not slow and not gpu -k spec")
    assert {"ran ruff check .", "ran ruff format --check ."} < set(good.stdout.splitlines())
    write_script(checkout.path / ".venv" / "bin" / "pyright", "#!/bin/sh\nexit 1\n")
    bad = checkout.run("scripts/test.sh")
    assert bad.returncode == 1
    assert "FAILED before the tests: [pyright]" in bad.stdout
    assert bad.stdout.splitlines()[-1].startswith("ran pytest")


def test_ci_is_the_test_script() -> None:
    """One line, executable, as the scripts are."""
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")
    ]
    assert len(commands) == 1
    assert "scripts/test.sh" in commands[0]
    for path in (".ci/run", "scripts/setup.sh", "scripts/test.sh", "scripts/demo.sh"):
        assert (ROOT / path).stat().st_mode & stat.S_IXUSR
