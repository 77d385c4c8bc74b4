"""`vla ground`: which scenes it draws, and a whole run at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
from planar_reach import PlanarReach

from policies.grounding import vqa_sampler
from policies.grounding.grounder import GroundingConfig
from scripts import ground
from scripts.ground import GroundConfig, prompts_of, resolve
from sim.tasks.registry import TASKS, groundable_names
from vla.contract import ContractMismatchError
from vla.model.embedded import EmbeddedConfig
from vla.policy import load_policy


@pytest.fixture
def _with_another_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with a task had been installed."""
    monkeypatch.setitem(TASKS, "PlanarReach", PlanarReach)


@pytest.mark.usefixtures("_with_another_robot")
def test_by_default_all_tasks_of_one_robot_are_drawn() -> None:
    """As many frames of each as it asks for; a task of another robot stays out of them."""
    config = resolve(GroundConfig())
    assert set(config.tasks) == set(groundable_names()) - {"PlanarReach"}
    frames = dict(zip(config.tasks, config.frames, strict=True))
    assert frames["FetchPickAndPlace"] == 20_000
    assert sum(config.frames) == 47_500
    assert resolve(GroundConfig(tasks=("PlanarReach",))).frames == (20,)


@pytest.mark.usefixtures("_with_another_robot")
def test_tasks_of_two_robots_are_refused() -> None:
    """One model cannot share their scenes; the message has the differences."""
    with pytest.raises(ContractMismatchError, match=r"task FetchPush differs .* PlanarReach"):
        resolve(GroundConfig(tasks=("FetchPush", "PlanarReach")))


def test_unknown_tasks_and_counts_are_refused() -> None:
    """Before anything is drawn."""
    with pytest.raises(ValueError, match="valid names"):
        resolve(GroundConfig(tasks=("FetchPull",)))
    with pytest.raises(ValueError, match="one frame count a task"):
        resolve(GroundConfig(tasks=("FetchPush", "FetchReach"), frames=(10,)))


def test_a_target_that_may_move_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy would average it over the episode, as if it stood still."""
    monkeypatch.setattr(TASKS["Tabletop"], "static_points", ("target",))
    with pytest.raises(ValueError, match=r"blue zone.*lift goal of the red block"):
        prompts_of("Tabletop", "train")


@pytest.mark.render
def test_a_run_at_toy_size_leaves_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn, trained for two updates, saved, and loaded again."""
    monkeypatch.setattr(vqa_sampler, "_MEASURED", 8)  # most of the time otherwise
    config = GroundConfig(
        ("FetchReach",),
        (20,),
        scenes=tmp_path / "scenes",
        image_size=24,
        embedded=EmbeddedConfig(width=32, vision_layers=1, text_layers=1, heads=2, patch_size=12),
        out=tmp_path / "run",
        training=GroundingConfig(updates=2, batch=2, questions=2, heldout=0.5),
    )
    assert ground.main(config) == 0
    assert "FetchReach/target_median_cm" in capsys.readouterr().out
    policy = load_policy(tmp_path / "run" / "grounded")
    assert [camera.name for camera in policy.spec.cameras] == ["front", "side", "wrist"]
