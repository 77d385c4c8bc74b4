"""The benchmark against LeRobot does on both sides what it says; speeds are not asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from demo_folder import write_folder

from scripts.bench import lerobot as bench_lerobot
from scripts.bench.lerobot import BenchLeRobotConfig, main, trainer

TINY = (
    "dim_model=32",
    "n_heads=2",
    "dim_feedforward=32",
    "n_encoder_layers=1",
    "n_vae_encoder_layers=1",
    "latent_dim=4",
    "chunk_size=5",
    "n_action_steps=5",
    "dropout=0.0",  # ours draws fewer numbers
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BenchLeRobotConfig:
    """Two made-up episodes and a small ACT."""
    root = tmp_path_factory.mktemp("data") / "FetchReach"
    write_folder(root, [8, 6], image_size=96)
    return BenchLeRobotConfig(
        root,
        batch_size=4,
        policy=TINY,
        rounds=2,
        decisions=2,
        compiled=False,
        out=root.parent / "bench.json",
    )


def test_both_trainers_make_the_same_updates(
    config: BenchLeRobotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal losses on the same samples, from the same seed."""
    from lerobot.scripts import lerobot_train

    losses: list[list[float]] = []
    update = lerobot_train.update_policy

    def noting(metrics: Any, *args: Any, **options: Any) -> Any:
        told = update(metrics, *args, **options)
        losses[-1].append(metrics.loss.val)
        return told

    monkeypatch.setattr(lerobot_train, "update_policy", noting)
    for ours in (False, True):
        torch.manual_seed(0)
        losses.append([])
        assert trainer(config, ours, False, 0).run(12) > 0
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_it_reports_every_measurement(
    config: BenchLeRobotConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Workers chosen for LeRobot, matched precisions, and commands that are LeRobot's."""

    def interleave(
        contenders: dict[str, tuple[Callable[..., Any], Any]], steps: int, rounds: int, warm: int
    ) -> dict[str, list[float]]:
        builds = {name: build for name, (build, _) in contenders.items()}
        assert all(isinstance(b, partial) and b.func is trainer for b in builds.values())
        # LeRobot is fastest with two workers, ours twice as fast.
        speed = {name: 2.0 + 2.0 * b.args[1] - (b.args[3] - 2) ** 2 for name, b in builds.items()}
        return {name: [speed[name]] * rounds for name in contenders}

    monkeypatch.setattr(bench_lerobot, "interleave", interleave)
    monkeypatch.setattr(bench_lerobot, "multiplies_bfloat16", lambda device: True)
    result = main(config)
    assert config.out
    assert json.loads(config.out.read_text())["samples_per_s"] == result["samples_per_s"]
    told = capsys.readouterr().out
    assert "2 workers for LeRobot" in told
    assert "| ours, bfloat16 | 4.00 | 4.00 | 4.00 | 2.00 (2.00 to 2.00) |" in told
    assert all(len(times) == 2 for rounds in result["decision_s"].values() for times in rounds)
    apart = result["largest_action_difference"]
    assert apart["ACT, ours"] < 1e-4
    assert apart["our model, ours"] < 1e-4
    assert 0 < apart["ACT, ours, bfloat16"] < 0.1
