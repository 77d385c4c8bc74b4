"""The built wheel in a fresh environment: what a robot installs loads a checkpoint and acts."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.cli import COMMANDS

ROOT = Path(__file__).parents[1]

# Acts twice with the shipped checkpoint, then tells which packages came along.
ACT = """
import sys
import numpy as np
import torch
from vla.checkpoint.initialisation import GROUNDED
from vla.contract import Observation
from vla.policy import load_policy
from vla.processing.processor import collate

policy = load_policy(GROUNDED)
policy.reset(range(2))
spec = policy.spec
images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in spec.cameras}
seen = Observation(images, np.zeros(spec.proprio.dim, np.float32), "push the block", 0.0)
for _ in range(2):
    chunk = policy.act(collate([seen, seen], spec))
assert chunk.shape == (2, policy.chunk_length, spec.action.dim) and torch.isfinite(chunk).all()
import vla
print(vla.__file__)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    [made] = folder.glob("*.whl")
    return made


def requirements(*extras: str) -> set[str]:
    """Every distribution that the core and these extras bring, dependencies of theirs included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        wanted += [Requirement(line) for line in project["optional-dependencies"][extra]]
    found: set[tuple[str, str]] = set()
    while wanted:
        asked = wanted.pop()
        for extra in ("", *asked.extras):
            if (name := canonicalize_name(asked.name), extra) in found:
                continue
            found.add((name, extra))
            below = [Requirement(line) for line in distribution(name).requires or ()]
            wanted += [r for r in below if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def environment(folder: Path, *extras: str, with_pip: bool = False) -> Path:
    """A fresh environment with only these packages, linked from this one; its Python."""
    venv.create(folder, symlinks=True, with_pip=with_pip)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in requirements(*extras):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder / "bin" / "python"


def run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python away from the checkout, and without its settings."""
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, *words], cwd=python.parents[2], env=quiet, capture_output=True, text=True
    )


def test_the_wheel_holds_what_the_packages_read(wheel: Path) -> None:
    """Weights, tokenizer, stylesheet and plug-in; neither tests nor documents."""
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "vla/weights/grounded/model.safetensors",
        "vla/weights/grounded/tokenizer/tokenizer.json",
        "policies/evaluation/report/page.css",
        "lerobot_policy_vla.py",
    ):
        assert needed in names
    roots = {name.partition("/")[0] for name in names}
    expected = {"vla", "sim", "policies", "scripts", "lerobot_policy_vla.py"}
    assert {root for root in roots if not root.endswith(".dist-info")} == expected


def test_a_robot_installs_the_wheel_and_acts(wheel: Path, tmp_path: Path) -> None:
    """With the core's packages alone: the shipped checkpoint acts, and `vla doctor` is content."""
    python = environment(tmp_path / "robot", with_pip=True)
    install = run(python, "-m", "pip", "install", "--no-index", "--no-deps", str(wheel))
    assert install.returncode == 0, install.stderr
    check = run(python, "-m", "pip", "check")
    assert check.returncode == 0, check.stdout

    acted = run(python, "-c", ACT)
    assert acted.returncode == 0, acted.stderr
    place, loaded = acted.stdout.splitlines()
    assert place.startswith(str(tmp_path)), "not from the checkout"
    assert not {"mujoco", "tensorboard", "pyarrow", "lerobot", "sim", "policies"} & {
        *loaded.split()
    }

    doctor = run(python, python.with_name("vla"), "doctor", "--free-gb", "0")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert 'pip install "lerobot_policy_vla[sim]"' in doctor.stdout
    assert doctor.stdout.splitlines()[-1] == "ready"
    refused = run(python, python.with_name("vla"), "plan")
    assert refused.returncode == 2
    assert "is missing" in refused.stderr
    assert "lerobot_policy_vla[sim,train,lerobot]" in refused.stderr


def test_simulating_and_training_need_no_lerobot(wheel: Path, tmp_path: Path) -> None:
    """The commands load with the extras `sim`, `train` and `export`, whatever they import."""
    python = environment(tmp_path / "trainer", "sim", "train", "export")
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    commands = ", ".join(f"scripts.{name}" for name in COMMANDS if name != "lerobot-train")
    imported = run(python, "-c", f"import {commands}")
    assert imported.returncode == 0, imported.stderr
