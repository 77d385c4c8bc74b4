"""The comparison of cloning: its table by hand, the plain network, and a toy run to the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d
from two_robots import ARM, WORDS, measure, observe

from scripts.bench import cloning
from scripts.bench.act_start import calibrate
from scripts.bench.cloning import BenchCloningConfig, table
from scripts.bench.plain_cnn import PlainCNN
from vla.contract import CameraSpec
from vla.processing.embodiments import Embodiment


@pytest.mark.parametrize(
    "methods",
    [
        ("td4=10",),
        ("ours",),
        ("ours=ten",),
        ("ours=1", "ours=2"),
        ("ours:bogus=1",),
        ("ours:=1",),
        ("cnn:flow=1",),
        ("lerobot=1",),
    ],
)
def test_methods_that_make_no_comparison_are_refused(methods: tuple[str, ...]) -> None:
    """Unknown, without a budget, or twice."""
    with pytest.raises(
        ValueError, match=r"valid: ours\[:HEAD\]=UPDATES, .*lerobot:TYPE|each method once"
    ):
        BenchCloningConfig(("FetchReach",), methods)


def test_a_head_belongs_to_the_method() -> None:
    """Two heads are two methods."""
    config = BenchCloningConfig(("FetchReach",), ("ours=1", "ours:flow=1", "grounded:l1=2"))
    assert config.budgets == [("ours", 1), ("ours:flow", 1), ("grounded:l1", 2)]


def test_the_table_by_hand(tmp_path: Path) -> None:
    """Two tasks of four states: rates, and differences on the same states."""
    config = BenchCloningConfig(("A", "B"), ("ours=1", "cnn=2"), episodes=4, out=tmp_path)
    for name, seconds in (("ours-1", 600.0), ("cnn-2", 1200.0)):
        (tmp_path / name / "s0").mkdir(parents=True)
        (tmp_path / name / "s0" / "cpu_s.json").write_text(json.dumps(seconds))
    won, lost = [True] * 4, [False] * 4
    results = {
        ("ours", 0): {"A": {"at_end": won, "ever": won}, "B": {"at_end": lost, "ever": won}},
        ("cnn", 0): {"A": {"at_end": lost, "ever": won}, "B": {"at_end": lost, "ever": lost}},
    }
    rows = {line.split(" | ")[0]: line.split(" | ") for line in table(config, results).splitlines()}
    assert rows["| processor minutes of training"][1:3] == ["10", "20"]
    assert rows["| A, at end"][1].startswith("100.0% [")
    assert rows["| A, at end"][3].startswith("cnn +100.0 [")
    assert rows["| B, ever"][3].startswith("cnn +100.0 [")
    assert rows["| all, at end"][1:3] == ["50.0% [22, 78]", "0.0% [0, 32]"]


def test_cameras_of_the_plain_network_may_have_other_sizes() -> None:
    """Each is read whole."""
    robot = replace(ARM, cameras=(CameraSpec("front", 36, 52), CameraSpec("wrist", 44, 36)))
    policy = PlainCNN(Embodiment(robot, measure(robot)), WORDS, 5)
    assert policy(observe(robot, 2)).shape == (2, 5, robot.action.dim)


def test_batch_norms_are_set_from_what_they_are_given() -> None:
    """The second one from what the first, once set, lets through."""
    torch.manual_seed(0)
    first, second = FrozenBatchNorm2d(3), FrozenBatchNorm2d(3)
    images = 5 + 2 * torch.randn(64, 3, 4, 4)
    calibrate(nn.Sequential(first, second), images)
    for norm, mean, variance in ((first, 5.0, 4.0), (second, 0.0, 1.0)):
        torch.testing.assert_close(norm.running_mean, torch.full((3,), mean), atol=0.2, rtol=0)
        torch.testing.assert_close(norm.running_var, torch.full((3,), variance), atol=0.3, rtol=0)


@pytest.mark.slow
@pytest.mark.render
def test_it_runs_to_the_end_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours and the plain network at toy size."""
    settings = BenchCloningConfig(
        ("FetchReach",), ("ours=2", "cnn=2"), demonstrations=2, episodes=2, out=tmp_path
    )
    assert cloning.main(settings) == 0
    first = (tmp_path / "results.md").read_text()
    assert "FetchReach, at end" in first
    outcomes = json.loads((tmp_path / "cnn-2/s0/FetchReach-development-2-5.json").read_text())
    assert np.array(outcomes["at_end"]).shape == (2,)

    # Played once more, by the same policies, which decide more often.
    assert cloning.main(replace(settings, execute_steps=2)) == 0
    assert "2 control steps a decision." in (tmp_path / "results.md").read_text()

    def refuse(*arguments: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr("scripts.outcomes.play", refuse)
    assert cloning.main(settings) == 0
    assert (tmp_path / "results.md").read_text() == first
