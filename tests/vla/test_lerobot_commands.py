"""LeRobot's own commands on our data, policy, environment and robot, and our command on its policy.

Each direction runs once, for real, in the order in which a person would go.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from demo_folder import write_folder
from lerobot.scripts import lerobot_train
from lerobot_commands import TINY_ACT, roll_out, run_command, train, training_flags

from scripts import cli
from scripts.evaluate import EvaluateConfig, main
from vla.checkpoint.folder import load_checkpoint
from vla.policy import load_policy

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up episodes of FetchReach, as `vla collect` writes them."""
    root = tmp_path_factory.mktemp("data") / "FetchReach"
    write_folder(root, [8, 6], image_size=96)
    return root


@pytest.fixture(scope="module")
def ours(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lerobot-train --policy.type=vla` leaves."""
    out = tmp_path_factory.mktemp("outputs") / "vla"
    train(data, out, "--policy.type=vla")
    return out / "checkpoints" / "last" / "pretrained_model"


@pytest.fixture(scope="module")
def act(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `vla lerobot-train --policy.type=act` leaves of our data, as LeRobot's own does."""
    out = tmp_path_factory.mktemp("outputs") / "act"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_train, "init_logging", lambda **_: None)  # it clears pytest's
        patch.setattr("sys.argv", [])
        assert cli.main(["lerobot-train", *training_flags(data, out, *TINY_ACT)]) == 0
    return out


def test_what_lerobot_trained_is_a_checkpoint_of_ours(ours: Path) -> None:
    """Contract and statistics of the data, and an actor that has moved."""
    checkpoint = load_checkpoint(ours)
    assert checkpoint.spec.robot == "fetch"
    assert checkpoint.processor.statistics is not None
    assert json.loads((ours / "config.json").read_text())["type"] == "vla"
    policy = load_policy(ours)
    assert policy.model.config.chunk_length == 5
    assert all(torch.isfinite(weight).all() for weight in checkpoint.weights.values())


def test_lerobot_eval_plays_our_checkpoint_in_our_environment(ours: Path, tmp_path: Path) -> None:
    """Success and a film of each episode."""
    run_command(
        "lerobot-eval",
        f"--policy.path={ours}",
        "--env.type=vla_sim",
        "--env.task=FetchReach",
        "--eval.n_episodes=2",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path / 'eval'}",
    )
    told = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert told["overall"]["n_episodes"] == 2
    assert len(list((tmp_path / "eval").rglob("*.mp4"))) == 2


@pytest.mark.slow
def test_lerobot_rollout_moves_our_simulated_robot(ours: Path) -> None:
    """It connects, is commanded, and says how it ended."""
    assert 0 < roll_out(f"--policy.path={ours}") <= 26, "one a tick, and what the last tick began"


def test_our_evaluate_plays_what_lerobot_trained(ours: Path, act: Path, tmp_path: Path) -> None:
    """An ACT policy trained on our data and our own, side by side with the expert."""
    config = EvaluateConfig(
        task="FetchReach",
        policies=(f"act={act}", f"vla={ours}", "expert"),
        episodes=2,
        num_envs=2,
        num_workers=1,
        films=0,
        out=tmp_path,
    )
    assert main(config) == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert [policy["name"] for policy in told["policies"]] == ["act", "vla", "expert"]
    assert all(len(policy["episodes"]) == 2 for policy in told["policies"])
