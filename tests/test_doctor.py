"""`vla doctor`: every known trouble is recognised and comes with its fix."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts import doctor
from scripts.doctor import Check, DoctorConfig

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
    assert 0.0 < probe.picture_ms < 1000.0


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that cannot work gives a reason and a command, not a crash."""
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    check = doctor.check_rendering()
    assert "nonsense" in check.finding
    assert "unset MUJOCO_GL" in check.fix
    assert "libegl1" in check.fix
