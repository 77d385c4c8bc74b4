"""The benchmark of grounding: its starts differ in what it says and in nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts import pretrain
from scripts.bench import grounding
from scripts.bench.grounding import BenchGroundingConfig, Results, cloning, samples, table
from vla.checkpoint.initialisation import GROUNDED

CONFIG = BenchGroundingConfig(out=Path("runs"))


@pytest.mark.parametrize("batch", [32, 64, 128])
def test_all_starts_train_on_equally_many_samples(batch: int) -> None:
    """Frozen and trained alike, and as often chosen from."""
    config = replace(CONFIG, batch=batch)
    made = [cloning(config, "flow", start, 2, Path("run")) for start in CONFIG.starts]
    assert len({samples(settings) for settings in made}) == 1
    assert len({s.training.updates / s.training.evaluate_every for s in made}) == 1
    assert {(s.head, s.training.seed, s.task) for s in made} == {("flow", 2, "FetchPush")}


def test_only_the_grounded_start_keeps_its_perception() -> None:
    """The others learn to see, with the same rate and augmentation."""
    frozen, *trained = (cloning(CONFIG, "l1", start, 0, Path("run")) for start in CONFIG.starts)
    assert (frozen.start, frozen.training.perception) == (GROUNDED, "frozen")
    assert [s.start for s in trained] == ["scratch", Path("runs/untrained/grounded")]
    first, second = (settings.training for settings in trained)
    assert first == second
    assert first.perception == "trained"


def test_what_was_cloned_and_played_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second command of the same plays nothing, and writes the same table."""
    played: list[str] = []

    def clone(config: pretrain.PretrainConfig) -> int:
        return 0

    def read(text: str, device: str, task: str) -> str:
        played.append(text)
        raise FileNotFoundError(text)

    monkeypatch.setattr(pretrain, "main", clone)
    monkeypatch.setattr(grounding, "read_policy", read)
    config = replace(CONFIG, starts=("grounded",), heads=("l1",), seeds=(0,), out=tmp_path)
    with pytest.raises(FileNotFoundError, match="grounded-s0/best"):
        grounding.main(config)
    run = tmp_path / "l1" / "grounded-s0"
    run.mkdir(parents=True)
    asked = '{"samples": 256000, "states": "development", "episodes": 200}'
    outcomes = "[" + ", ".join(["true", "false"] * 100) + "]"
    text = f'{{"asked": {asked}, "at_end": {outcomes}, "ever": {outcomes}}}'
    (run / "development-200.json").write_text(text)
    assert grounding.main(config) == 0
    assert len(played) == 1
    assert "| l1 | grounded | 50.0% | 50.0% [43, 57] |  |" in (tmp_path / "results.md").read_text()


def test_the_table_pairs_each_start_with_the_first() -> None:
    """All seeds together; a difference of what was solved on the same states."""
    config = replace(CONFIG, starts=("grounded", "scratch"), heads=("l1",), seeds=(0, 1))
    half: list[bool] = [True, False] * 50
    results: Results = {
        ("l1", "grounded", 0): [True] * 100,
        ("l1", "grounded", 1): half,
        ("l1", "scratch", 0): half,
        ("l1", "scratch", 1): [False] * 100,
    }
    lines = table(config, results).splitlines()
    assert lines[2] == "| l1 | grounded | 100.0, 50.0% | 75.0% [69, 80] |  |"
    assert lines[3].startswith("| l1 | scratch | 50.0, 0.0% | 25.0% [20, 31] | +50.0 [+4")
