"""The rules of the source tree that no linter checks, and the import rules once more."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("vla_runtime", "vla", "sim", "policies", "scripts")
MAY_IMPORT = {
    "vla_runtime": {"vla_runtime"},
    "vla": {"vla_runtime", "vla"},
    "sim": {"vla_runtime", "vla", "sim"},
    "policies": {"vla_runtime", "vla", "policies"},
    "scripts": set(PACKAGES),
}
# Where a file lies → the extras of its distribution whose packages it may import beside the core's.
EXTRAS = {
    "runtime/": (),
    "runtime/vla_runtime/dataset_files.py": ("record",),
    "runtime/vla_runtime/run_recording.py": ("record",),
    "runtime/vla_runtime/robots/config_emulated_camera.py": ("lerobot",),
    "runtime/vla_runtime/robots/emulated_camera.py": ("lerobot",),
    "runtime/vla_runtime/robots/lerobot": ("lerobot",),
    "runtime/vla_runtime/robots/mujoco": ("mujoco",),
    "runtime/vla_runtime/robots/so101": ("mujoco",),
    "runtime/vla_runtime/safety/workspace.py": ("mujoco",),
    "vla/": (),
    "vla/data/": ("train",),
    "vla/deploy/": ("export",),
    "vla/lerobot_plugin/": ("lerobot",),
    "sim/": ("sim",),
    "sim/lerobot_plugin/": ("sim", "lerobot"),
    "sim/tasks/metaworld": ("sim", "metaworld"),
    "sim/recording_store.py": ("sim", "lerobot"),
    "policies/": ("train",),
    "policies/imitation/images.py": ("train", "lerobot"),
    "policies/lerobot/": ("train", "lerobot"),
    "scripts/": ("sim", "train", "lerobot", "export"),
    "scripts/bench/": ("sim", "train", "lerobot", "export", "dev"),
    "scripts/draw": ("sim", "dev"),
    "tests/": ("sim", "metaworld", "train", "lerobot", "export", "dev"),
}
NEEDED_WITHOUT_AN_IMPORT = {
    "num2words": "the processor of SmolVLM",
    "onnxscript": "the ONNX exporter of torch",
    "pillow": "image processors of transformers",
    "torchvision": "image processors of transformers",
    "gymnasium-robotics": "sim reads the XML and meshes that it ships",
    "scipy": "the package metaworld",
    "accelerate": "lerobot-train",
    "datasets": "LeRobot's data sets, which vla_runtime.dataset_files writes",
    "diffusers": "the diffusion policy of LeRobot",
    "vla-runtime": "the same repository",
}
# Installed by scripts/setup.sh beside an extra, without the old packages that they ask for.
WITHOUT_DEPENDENCIES = {"dev": {"openpi-client"}, "metaworld": {"metaworld"}}
LONGEST_FILE_LINES = 450
LONGEST_INIT_LINES = 40
DRAWER_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
UNSAFE_LOADERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

# Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|root|Users|home/\w+)" + r"/\w")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|anaconda|crates|download\.pytorch)" + r"\.(?:org|com|io)\b"
)


@cache
def tracked_files() -> tuple[Path, ...]:
    """Text files that git tracks."""
    # A checkout that another user owns, as in a container, is fine to list.
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192])


def python_files(*packages: str) -> list[Path]:
    """Every Python file below these packages."""
    folders = [ROOT / ("runtime/" + p if p == "vla_runtime" else p) for p in packages]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imported_roots(source: str) -> set[str]:
    """First names of everything that a source imports, also inside functions."""
    roots = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    return roots


def unsafe_loads(source: str) -> Iterator[str]:
    """Calls that let a file execute code; torch.load and numpy.load refuse pickles by default."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        for word, safe in (("weights_only", "True"), ("allow_pickle", "False")):
            if keywords.get(word, safe) != safe:
                yield f"line {node.lineno}: {word}={keywords[word]}"


def broken(offenders: Mapping[str, object]) -> str:
    """One offender a line, for the assertion's message."""
    return "\n".join(f"{place}: {what}" for place, what in offenders.items())


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    """Scripts see all, sim and policies see vla but not each other, vla sees itself alone."""
    forbidden = set(PACKAGES) - MAY_IMPORT[package]
    offenders = {
        str(path.relative_to(ROOT)): f"imports {sorted(wrong)}"
        for path in python_files(package)
        if (wrong := imported_roots(path.read_text()) & forbidden)
    }
    assert not offenders, broken(offenders)


def test_the_contract_is_a_numpy_only_leaf() -> None:
    """Importing it in a fresh process loads no third-party package but numpy."""
    program = (
        "import sys; before = set(sys.modules); import vla.contract; "
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(loaded - sys.stdlib_module_names))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["numpy", "vla", "vla_runtime"]


@cache
def import_providers() -> Mapping[str, list[str]]:
    """Importable name → the distributions that install it; a second of reading metadata."""
    return packages_distributions()


def declared(*extras: str, distribution: str = "") -> set[str]:
    """Distributions that a pyproject.toml names in the core and in these extras.

    Args:
        extras: of that file.
        distribution: folder of the file; "" is the main one, "runtime" the robot's.
    """
    file = ROOT / distribution / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def distribution_of(path: Path) -> str:
    """Folder of the pyproject.toml that a file is installed by; see `declared`."""
    return "runtime" if path.is_relative_to(ROOT / "runtime") else ""


def extras_for(path: Path) -> tuple[str, ...]:
    """Extras whose packages a file may import: those of the longest matching place."""
    name = path.relative_to(ROOT).as_posix()
    return EXTRAS[max((place for place in EXTRAS if name.startswith(place)), key=len)]


def third_party(source: str) -> dict[str, set[str]]:
    """Importable name → the distributions that install it, for everything not ours or Python's."""
    neighbours = {path.stem for path in python_files("tests")}
    known = sys.stdlib_module_names | set(PACKAGES) | {"tests", ""} | neighbours
    found = import_providers()
    return {
        name: {canonicalize_name(owner) for owner in found.get(name, ())}
        for name in imported_roots(source) - known
    }


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_every_import_is_declared(package: str) -> None:
    """What a file imports stands in the core or in an extra that the file may ask for."""
    offenders = {}
    for path in python_files(package):
        extras = extras_for(path)
        for name, owners in third_party(path.read_text()).items():
            allowed = declared(*extras, distribution=distribution_of(path))
            allowed |= set().union(*(WITHOUT_DEPENDENCIES.get(extra, ()) for extra in extras))
            if not owners & allowed:
                place = f"{path.relative_to(ROOT)} imports {name}"
                offenders[place] = f"not in the core of pyproject.toml, nor in {list(extras)}"
    assert not offenders, broken(offenders)


@pytest.mark.parametrize("extra", ["", "sim", "metaworld", "train", "lerobot", "export"])
def test_every_declared_package_is_needed(extra: str) -> None:
    """It is imported by a file that may ask for it, or named here with the reason."""
    used = set(NEEDED_WITHOUT_AN_IMPORT)
    for path in python_files("vla", "sim", "policies", "scripts"):
        if not extra or extra in extras_for(path):
            used |= set().union(*third_party(path.read_text()).values())
    needless = (declared(extra) - declared() if extra else declared()) - used
    assert not needless


def test_the_longest_place_decides_about_extras() -> None:
    """The readers above are not vacuous."""
    assert extras_for(ROOT / "vla/policy.py") == ()
    assert extras_for(ROOT / "vla/lerobot_plugin/foreign.py") == ("lerobot",)
    assert "mujoco" not in declared()
    assert "mujoco" in declared("sim")


def test_no_file_is_a_drawer() -> None:
    """A name says what is inside; utils, common and helpers do not."""
    assert not [path for path in python_files(*PACKAGES, "tests") if path.name in DRAWER_NAMES]


def test_files_stay_readable_in_one_sitting() -> None:
    """No source or test file beyond the longest allowed."""
    offenders = {
        str(path.relative_to(ROOT)): f"{lines} lines, {LONGEST_FILE_LINES} allowed"
        for path in python_files(*PACKAGES, "tests")
        if (lines := len(path.read_text().splitlines())) > LONGEST_FILE_LINES
    }
    assert not offenders, broken(offenders)


def test_package_files_hold_no_code() -> None:
    """`__init__.py` is a docstring and at most imports, so that importing a part stays cheap."""
    offenders = {}
    for path in python_files(*PACKAGES, "tests"):
        if path.name != "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        if any(isinstance(node, definitions) for node in tree.body):
            offenders[str(path.relative_to(ROOT))] = "defines functions or classes"
        elif len(path.read_text().splitlines()) > LONGEST_INIT_LINES:
            offenders[str(path.relative_to(ROOT))] = f"more than {LONGEST_INIT_LINES} lines"
    assert not offenders, broken(offenders)


def test_nothing_that_is_loaded_can_execute_code() -> None:
    """No pickle in any form: a checkpoint or data set from elsewhere stays data."""
    offenders = {}
    for path in python_files(*PACKAGES, "tests"):
        source = path.read_text()
        found = [f"imports {name}" for name in sorted(imported_roots(source) & UNSAFE_LOADERS)]
        if found := found + list(unsafe_loads(source)):
            offenders[str(path.relative_to(ROOT))] = found
    assert not offenders, broken(offenders)


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["path", "registry"])
def test_tracked_files_name_no_machine(pattern: re.Pattern[str]) -> None:
    """Neither paths of one machine nor addresses of a package registry."""
    offenders = {
        f"{path.relative_to(ROOT)}:{number}": line.strip()[:100]
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    }
    assert not offenders, broken(offenders)


def test_one_word_for_images() -> None:
    """The field's word; the change log alone tells of earlier ones."""
    other_word = re.compile("pict" + "ure", re.IGNORECASE)
    texts = [path for path in tracked_files() if path.name != "CHANGELOG.md"]
    assert not [str(path) for path in texts if other_word.search(path.read_text(errors="replace"))]


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (MACHINE_PATH, "see /root" + "/runs/a", True),
        (MACHINE_PATH, "--out /home/me" + "/runs", True),
        (MACHINE_PATH, "/usr/lib/libEGL.so and runs/work" + "/a", False),
        (REGISTRY_HOST, "https://pypi" + ".org/simple", True),
        (REGISTRY_HOST, "https://github.com/pypi", False),
    ],
)
def test_the_patterns_find_what_they_should(
    pattern: re.Pattern[str], text: str, matches: bool
) -> None:
    """The two patterns above are not vacuous."""
    assert bool(pattern.search(text)) is matches


def test_the_readers_find_what_they_should() -> None:
    """Imports inside functions count, and so does every unsafe way of loading."""
    assert imported_roots("def f():\n    from sim.tasks import base\n") == {"sim"}
    assert list(unsafe_loads("torch.load(path, weights_only=False)"))
    assert list(unsafe_loads("np.load(path, allow_pickle=True)"))
    assert not list(unsafe_loads("torch.load(path); np.load(path, allow_pickle=False)"))
