"""The built wheel in a fresh environment: what a robot installs loads a checkpoint and acts."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable
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


# The same with an exported policy and the runtime, and what that takes.
ACT_WITH_THE_RUNTIME = """
import sys, time
began = time.perf_counter()
import numpy as np
from vla_runtime.contract import Observation
from vla_runtime.loading import load_policy
imported_s = time.perf_counter() - began

policy = load_policy(sys.argv[1])
spec, state = policy.spec, policy.initial_state()
images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in spec.cameras}
seen = Observation(images, np.zeros(spec.proprio.dim, np.float32), "push the block", 0.0)
for _ in range(2):
    chunk, state = policy.decide(seen, state)
assert chunk.actions.shape == (policy.chunk_length, spec.action.dim)
import vla_runtime
print(vla_runtime.__file__)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
# Not `getrusage`, which also counts what the parent process held before this one began.
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 1024, imported_s)
"""


FLAGS = ("--policy", "exported", "--instruction", "push the block")


def build(project: Path, folder: Path) -> Path:
    """The wheel of this checkout's project, by the backend that its pyproject.toml names."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the main distribution."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what a robot installs."""
    return build(ROOT / "runtime", tmp_path_factory.mktemp("runtime"))


def requirements(*extras: str, project_folder: Path = ROOT) -> set[str]:
    """Every distribution that the core and these extras bring, dependencies of theirs included.

    The repository's own are left out: they are installed from their wheels.
    """
    project = tomllib.loads((project_folder / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        wanted += [Requirement(line) for line in project["optional-dependencies"][extra]]
    found: set[tuple[str, str]] = set()
    while wanted:
        asked = wanted.pop()
        if asked.name == "vla-runtime":
            wanted += [
                Requirement(r)
                for r in distribution("vla-runtime").requires or ()
                if "extra" not in r
            ]
            continue
        for extra in ("", *asked.extras):
            if (name := canonicalize_name(asked.name), extra) in found:
                continue
            found.add((name, extra))
            below = [Requirement(line) for line in distribution(name).requires or ()]
            wanted += [r for r in below if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def environment(folder: Path, packages_of: Iterable[str], *wheels: Path) -> Path:
    """A fresh environment with packages that are linked from this one, and wheels; its Python."""
    venv.create(folder, symlinks=True, with_pip=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in packages_of:
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    python = folder / "bin" / "python"
    install = run(python, "-m", "pip", "install", "--no-index", "--no-deps", *map(str, wheels))
    assert install.returncode == 0, install.stderr
    return python


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


def test_a_robot_needs_the_runtime_alone(
    runtime_wheel: Path, exported_grounded: Path, tmp_path: Path
) -> None:
    """An exported policy acts without torch, in 200 MB of disk and 150 MB of memory."""
    needed = requirements(project_folder=ROOT / "runtime")
    python = environment(tmp_path / "robot", needed, runtime_wheel)
    check = run(python, "-m", "pip", "check")
    assert check.returncode == 0, check.stdout

    acted = run(python, "-c", ACT_WITH_THE_RUNTIME, str(exported_grounded))
    assert acted.returncode == 0, acted.stderr
    place, loaded, measured = acted.stdout.splitlines()
    assert place.startswith(str(tmp_path)), "not from the checkout"
    assert not {"torch", "transformers", "vla", "sim", "lerobot"} & {*loaded.split()}
    memory_mb, imported_s = map(float, measured.split())
    files = [distribution(n).locate_file(f) for n in needed for f in distribution(n).files or ()]
    disk_mb = sum(Path(str(f)).stat().st_size for f in files if Path(str(f)).is_file()) / 2**20
    print(f"{disk_mb:.0f} MB of packages, {memory_mb:.0f} MB of memory, import {imported_s:.2f} s")
    assert disk_mb < 200
    assert memory_mb < 150

    refused = run(python, python.with_name("vla-runtime"), "run", "--robot", "none", *FLAGS)
    assert refused.returncode == 2
    assert "unknown robot 'none'" in refused.stderr


def test_a_machine_loads_a_checkpoint_and_acts(
    wheel: Path, runtime_wheel: Path, tmp_path: Path
) -> None:
    """With the core's packages alone: the shipped checkpoint acts, and `vla doctor` is content."""
    python = environment(tmp_path / "robot", requirements(), wheel, runtime_wheel)
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
    assert "lerobot_policy_vla[sim,train,lerobot,export]" in refused.stderr


@pytest.mark.slow
def test_simulating_and_training_need_no_lerobot(
    wheel: Path, runtime_wheel: Path, tmp_path: Path
) -> None:
    """The commands load with the extras `sim`, `train` and `export`, whatever they import."""
    needed = requirements("sim", "train", "export")
    python = environment(tmp_path / "trainer", needed, wheel, runtime_wheel)
    commands = ", ".join(f"scripts.{name}" for name in COMMANDS if name != "lerobot-train")
    imported = run(python, "-c", f"import {commands}")
    assert imported.returncode == 0, imported.stderr
