"""`vla doctor`: every known trouble is recognised and comes with its fix."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts import doctor
from scripts.doctor import Check, DoctorConfig, RenderProbe
from sim import gl_environment

ROOT = Path(__file__).parents[1]

GOOD = {
    "mujoco": "3.11.0",
    "gymnasium-robotics": "1.4.2",
    "numpy": "2.2.6",
    "opencv-python-headless": "4.13.0.92",
}


def test_the_pinned_versions_are_good() -> None:
    """No complaint about versions that work together."""
    assert not list(doctor.check_combinations(GOOD))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mujoco": "3.12.0"}, "breaks gymnasium-robotics"),
        ({"mujoco": "4.0"}, "breaks gymnasium-robotics"),
        ({"numpy": "2.3.0"}, "not >= 2, < 2.3"),
        ({"numpy": "1.26.4"}, "not >= 2, < 2.3"),
        ({"opencv-python": "4.12.0"}, "overwrite each other"),
    ],
)
def test_a_bad_combination_is_named_with_its_fix(change: dict[str, str], word: str) -> None:
    """Exactly one essential complaint, with a command."""
    (check,) = doctor.check_combinations(GOOD | change)
    assert word in check.finding
    assert "setup.sh" in check.fix
    assert check.essential


def test_a_missing_extra_warns_and_a_missing_core_fails() -> None:
    """A robot without a simulator is ready; one without torch is not."""
    missing = doctor.check_package("mujoco", "sim", "")
    assert not missing.essential
    assert "lerobot_policy_vla[sim]" in missing.fix
    assert doctor.check_package("torch", "", "").essential
    assert not doctor.check_package("mujoco", "sim", "3.11.0").fix


def test_the_extras_are_those_of_the_project() -> None:
    """Each reported package is declared where the report says, so that its fix installs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in doctor.REPORTED_PACKAGES.items():
        lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
        assert package in {Requirement(line).name for line in lines}


def test_python() -> None:
    """3.12 alone."""
    assert not doctor.check_python((3, 12)).fix
    assert doctor.check_python((3, 13)).fix


def test_disk_looks_at_the_nearest_existing_parent(tmp_path: Path) -> None:
    """A run folder that does not exist yet is judged by the disk that will hold it."""
    check = doctor.check_disk(tmp_path / "runs" / "new", free_gb=0.0)
    assert str(tmp_path) in check.finding
    assert not check.fix
    assert "free " in doctor.check_disk(tmp_path, free_gb=1e9).fix


@pytest.mark.parametrize(
    ("checks", "code", "last"),
    [
        ([Check("disk", "9 GB")], 0, "ready"),
        ([Check("gpu", "old", fix="renew", essential=False)], 0, "ready"),
        ([Check("python", "3.9", fix="renew")], 1, "something essential is missing"),
    ],
)
def test_exit_code_follows_the_essential_checks(
    checks: list[Check],
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A warning is printed with its fix and does not fail; an essential trouble does."""
    monkeypatch.setattr(doctor, "diagnose", lambda config: iter(checks))
    assert doctor.main(DoctorConfig()) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    assert sum("fix: renew" in line for line in lines) == sum(bool(check.fix) for check in checks)


@pytest.mark.render
def test_rendering_works_here() -> None:
    """The probe draws with the backend that it names, in a measurable time."""
    probe = doctor.probe_rendering()
    assert probe.backend in {"egl", "osmesa", "glfw"}, probe.reason
    assert 0.0 < probe.image_ms < 1000.0


@pytest.mark.render
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MUJOCO_GL", "nonsense"),
        ("MUJOCO_GL", "glfw"),
        ("MUJOCO_EGL_DEVICE_ID", "7"),
        ("PYOPENGL_PLATFORM", "glx"),
        ("__EGL_VENDOR_LIBRARY_FILENAMES", "nowhere.json"),
    ],
)
def test_a_variable_that_keeps_images_from_being_drawn_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """No installation helps as long as it is set, so none is advised."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv(name, value)
    check = doctor.check_rendering()
    assert f"unset {name} (now {value!r})" in check.fix
    assert "apt-get" not in check.finding + check.fix
    assert "NoRendererError" not in check.finding


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no variable is the cause."""
    for variable in gl_environment.variables():
        monkeypatch.delenv(variable)
    reason = "found neither EGL nor OSMesa: " + gl_environment.advice()
    monkeypatch.setattr(doctor, "probe_rendering", lambda: RenderProbe("", reason=reason))
    check = doctor.check_rendering()
    assert check.finding == "found neither EGL nor OSMesa"
    assert "apt-get install -y libegl1" in check.fix


def test_a_library_that_is_asked_for_but_missing_is_no_fault_of_the_variable_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Containers set MUJOCO_GL=egl, and PYOPENGL_PLATFORM is what MuJoCo makes of it."""
    for variable in gl_environment.variables():
        monkeypatch.delenv(variable)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    assert "unset MUJOCO_GL (now 'egl'), or install" in gl_environment.advice()


def test_a_missing_package_is_not_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mujoco nothing is said of OpenGL."""
    probe = RenderProbe("", reason="ModuleNotFoundError: No module named 'mujoco'")
    monkeypatch.setattr(doctor, "probe_rendering", lambda: probe)
    assert "setup.sh" in doctor.check_rendering().fix


def test_a_machine_without_git_is_told_and_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything works without; results then lack their commit, so it is a warning."""
    assert not doctor.check_git().fix
    monkeypatch.setenv("PATH", "")
    check = doctor.check_git()
    assert "will not name their commit" in check.finding
    assert "git" in check.fix
    assert not check.essential


def test_folders_that_cannot_be_written_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where results go, for temporary files and for caches; a file is no folder for root either."""
    blocked = tmp_path / "file"
    blocked.touch()
    assert not doctor.check_writable("results", tmp_path / "runs" / "new").fix
    check = doctor.check_writable("results", blocked)
    assert "cannot be written" in check.finding
    assert check.fix
    assert "TMPDIR" in doctor.check_writable("temporary files", None).fix
    monkeypatch.setenv("HF_HOME", str(blocked))
    check = doctor.check_caches()
    assert "set HF_HOME" in check.fix
    assert not check.essential


def test_little_shared_memory_is_a_warning(tmp_path: Path) -> None:
    """Its size is said, and how a container gets more."""
    check = doctor.check_shared_memory(tmp_path, needed_mb=1e12)
    assert "--shm-size" in check.fix
    assert not check.essential
    assert not doctor.check_shared_memory(tmp_path, needed_mb=0).fix
    assert not doctor.check_shared_memory(tmp_path / "none").fix
