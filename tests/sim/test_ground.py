"""`vla ground`: which scenes it draws, and a whole run at toy size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planar_reach import PlanarReach
from tiny_models import make

from policies.grounding import vqa_sampler
from policies.grounding.grounder import GroundingConfig
from policies.grounding.grounding_set import Prompt
from scripts import ground
from scripts.ground import OPENINGS, GroundConfig, prompts_of, resolve, spoken
from sim.tasks.registry import TASKS, groundable_names
from vla.contract import ContractMismatchError
from vla.model.embedded import EmbeddedConfig
from vla.policy import load_policy
from vla.processing.language_tower import LanguageTower


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
    # It goes on with a language tower in the place of its words; what it has seen stays.
    tower = make("text_tower", tmp_path)
    further = replace(
        config,
        start=tmp_path / "run" / "grounded",
        language=str(tower),
        out=tmp_path / "further",
        training=replace(config.training, learning_rate=0.0),
    )
    assert ground.main(further) == 0
    told = load_policy(tmp_path / "further" / "grounded")
    assert isinstance(told.processor.language, LanguageTower)
    patches = "backbone.language_model.model.vision_model.embeddings.patch_embedding.weight"
    before, after = (p.model.state_dict()[patches] for p in (policy, told))
    torch.testing.assert_close(after, before)
    assert told.ledger.amounts["grounding_frames"] == 40


def test_prompts_are_trained_in_all_forms() -> None:
    """Openings in any case; other orders, polite forms and errors unless they are left out."""
    prompt = Prompt("push the red block to the blue zone", "red block", "blue zone")
    plain = spoken(prompt, reword=False)
    assert [said.text for said in plain] == [opening + prompt.text for opening in OPENINGS]
    texts = {said.text for said in spoken(prompt, reword=True)}
    assert {said.text for said in plain} < texts
    assert "to the blue zone push the red block" in texts
    assert all(
        (said.object, said.target) == ("red block", "blue zone")
        for said in spoken(prompt, reword=True)
    )


def test_a_foreign_model_has_words_of_its_own() -> None:
    """So it takes neither a tower nor a start of the embedded model."""
    for more in ({"language": "all-MiniLM-L6-v2"}, {"start": Path("x")}):
        with pytest.raises(ValueError, match="brings its own words and weights"):
            GroundConfig(vlm="some/model", **more)
