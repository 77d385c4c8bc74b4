"""Behaviour cloning: exact resume, what is measured on held-out episodes, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import files
from lerobot_folder import edit_column
from PIL import Image
from point_env import PointVecEnv
from two_robots import record, tiny_policy

from policies.checkpoints import DivergedError, ResumeError
from policies.imitation.bc import Cloner
from policies.imitation.config import CloningConfig
from policies.imitation.dataset import DemoDataset
from policies.imitation.demonstrations import Demonstrations
from policies.run_folder import RunFolder
from scripts import cli, pretrain
from scripts.pretrain import PretrainConfig
from vla.model.cloning_loss import drop_proprio
from vla.model.features import Features
from vla.model.heads.base import HeadConfig
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.policy import load_policy

POINT = PointVecEnv.spec
LENGTHS = (5, 4, 6, 3)
RANDOM_HEADS = {
    "dropout": GaussianHeadConfig(16, dropout=0.5),
    "flow": FlowHeadConfig(ExpertConfig(16, 1, 2), steps=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recorded episodes."""
    return record(tmp_path_factory.mktemp("recorded") / "point", POINT, LENGTHS)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to start from."""
    return tiny_policy(POINT).save(tmp_path_factory.mktemp("start") / "point")


def make_cloner(folder: Path, out: Path, head: HeadConfig | None = None, **changes: Any) -> Cloner:
    """A run of a few small updates, measured every other one."""
    data = Demonstrations([folder], 3, 0.25)
    policy = tiny_policy(POINT)
    torch.manual_seed(0)
    policy.model.replace_actor(data.chunks()["point"], head or RANDOM_HEADS["dropout"])
    config = replace(CloningConfig(updates=4, batch=4, evaluate_every=2), **changes)
    return Cloner(policy, data, config, RunFolder(out, config))


class KilledError(Exception):
    """What ends a process at an unlucky moment."""


@pytest.mark.parametrize("head", RANDOM_HEADS)
def test_an_interrupted_run_ends_with_the_same_weights(
    head: str, folder: Path, tmp_path: Path
) -> None:
    """With dropout and a head that draws noise, measured on held-out episodes on the way."""

    def kill(step: int, values: dict[str, float]) -> None:
        raise KilledError

    env = PointVecEnv(2, episode_length=3)
    whole = make_cloner(folder, tmp_path / "whole", RANDOM_HEADS[head])
    whole.run(env, [0, 1])
    with pytest.raises(KilledError):
        make_cloner(folder, tmp_path / "cut", RANDOM_HEADS[head]).run(env, [0, 1], kill)
    resumed = make_cloner(folder, tmp_path / "cut", RANDOM_HEADS[head])
    resumed.run(env, [0, 1])
    theirs = resumed.model.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in whole.model.state_dict().items())
    logs = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]
    assert logs[0]["ledger/demonstration_episodes"] == len(LENGTHS)
    assert logs[0]["ledger/demonstration_frames"] == sum(LENGTHS)
    assert logs[0]["ledger/selection_steps"] == 2 * 2 * 3


@pytest.mark.parametrize("head", RANDOM_HEADS)
def test_measuring_draws_nothing_from_the_training(head: str, folder: Path, tmp_path: Path) -> None:
    """The held-out loss is the same whenever it is measured, without dropout."""
    cloner = make_cloner(folder, tmp_path, RANDOM_HEADS[head])
    cloner.model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = cloner.heldout_losses()["loss/heldout"]
    assert torch.equal(torch.get_rng_state(), before)
    cloner.model.train()
    torch.rand(7)
    assert cloner.heldout_losses()["loss/heldout"] == first
    if head == "dropout":
        with torch.no_grad():
            features, actions, is_pad = cloner._frozen("heldout")
            expected = cloner.model.eval().actor.loss(features, actions, is_pad)
        assert first == pytest.approx(float(expected))


def test_a_longer_run_takes_the_rates_of_the_longer_run(folder: Path, tmp_path: Path) -> None:
    """Not those of a cosine that was at its end already."""
    make_cloner(folder, tmp_path, updates=2).run(None, [])
    rates: list[float] = []
    longer = make_cloner(folder, tmp_path, updates=8)
    update = longer._update

    def watched() -> float:
        loss = update()
        rates.append(longer._optimizer.param_groups[0]["lr"])
        return loss

    longer._update = watched
    longer.run(None, [])
    straight = make_cloner(folder, tmp_path / "straight", updates=8)
    expected = []
    for straight.step in range(8):
        straight._update()
        expected.append(straight._optimizer.param_groups[0]["lr"])
    assert rates == expected[2:]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(ResumeError, match="updates: 8 are done in the run, 4 now"):
        make_cloner(folder, tmp_path, updates=4).run(None, [])


def test_other_demonstrations_of_equal_size_are_refused(folder: Path, tmp_path: Path) -> None:
    """Images that were recorded anew, or folders in another order."""
    make_cloner(folder, tmp_path / "run", updates=2).run(None, [])
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(other / ".cache", ignore_errors=True)
    black = io.BytesIO()
    [camera] = POINT.cameras
    Image.new("RGB", (camera.width, camera.height)).save(black, "PNG")

    def darken(cells: list[Any]) -> list[Any]:
        return [cell | {"bytes": black.getvalue()} for cell in cells]

    edit_column(other, POINT.features.camera(camera.name), darken)
    before = files(tmp_path / "run")
    with pytest.raises(ResumeError, match=r"written.*\n  demonstrations\.content\.point: "):
        make_cloner(other, tmp_path / "run", updates=2).run(None, [])
    assert files(tmp_path / "run") == before


def config_of(recorded: Path, begun: Path, out: Path, **changes: Any) -> PretrainConfig:
    """`vla pretrain` at toy size, where held-out episodes choose."""
    training = CloningConfig(updates=2, batch=4, evaluate_every=1)
    return PretrainConfig(
        **{"task": None, "data": (recorded,), "start": begun, "out": out, "chunk_length": 3}
        | {"training": replace(training, **changes.pop("training", {}))}
        | changes
    )


def test_a_rate_that_throws_the_weights_out_stops_the_command(
    folder: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an exit code, the step and the last good checkpoint; what was saved is finite."""
    out = tmp_path / "run"
    flags = ["--data", str(folder), "--start", str(start), "--out", str(out), "--chunk-length", "3"]
    flags += ["--task", "None", "--updates", "40", "--batch", "4", "--evaluate-every", "1"]
    assert cli.main(["pretrain", *flags, "--learning-rate", "1e30"]) == 2
    assert "error: training diverged at step " in (error := capsys.readouterr().err)
    assert "last good checkpoint" in error
    for checkpoint in [*out.glob("step_*"), *out.glob("best")]:
        weights = load_policy(checkpoint).model.state_dict().values()
        assert all(weight.isfinite().all() for weight in weights)


def test_a_diverged_run_names_its_last_checkpoint(folder: Path, tmp_path: Path) -> None:
    """And `best` stays what it was."""
    make_cloner(folder, tmp_path, updates=2).run(None, [])
    before = files(tmp_path / "best")
    cloner = make_cloner(folder, tmp_path, updates=4)
    features, actions, is_pad = cloner._frozen("train")
    cloner._frozen_features["train"] = features, actions * float("nan"), is_pad
    with pytest.raises(DivergedError, match=r"at step 3: the loss is nan.*step_000002"):
        cloner.run(None, [])
    assert files(tmp_path / "best") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "gaussian:hidden=8"}, "policy.vla.head.hidden: 256 in the run, 8 now"),
        ({"head": "l1"}, "policy.vla.head.type: gaussian in the run, l1 now"),
        ({"chunk_length": 2}, "policy.vla.chunk_length: 3 in the run, 2 now"),
        ({"training": {"learning_rate": 1e-4}}, "training.learning_rate: 0.001 in the run, 0.0001"),
        ({"episodes": 3}, "origin.episodes: None in the run, 3 now"),
        ({"start": "other"}, "origin.start: [0-9a-f]+ in the run, [0-9a-f]+ now"),
        ({"data": "grown"}, r"policy.embodiments.point.statistics.action.(min|max|mean)"),
        ({"data": "grown"}, "demonstrations.frames.point.train: [0-9]+ in the run, [0-9]+ now"),
    ],
)
def test_another_run_is_refused_and_nothing_is_written(
    changes: dict[str, Any], message: str, folder: Path, start: Path, tmp_path: Path
) -> None:
    """Other data, another head, chunk or start: the folder stays as it was, byte by byte."""
    out = tmp_path / "run"
    pretrain.main(config_of(folder, start, out))
    before = files(out)
    if changes.get("data"):
        grown = record(tmp_path / "grown", POINT, (*LENGTHS, 5))
        changes = {"data": (grown,)}
    if changes.get("start"):
        policy = tiny_policy(POINT)
        with torch.no_grad():
            next(policy.model.parameters()).add_(1.0)
        changes = {"start": policy.save(tmp_path / "other")}
    with pytest.raises(ResumeError, match=rf"(?s)nothing was written.*{message}"):
        pretrain.main(config_of(folder, start, out, **changes))
    assert files(out) == before
    pretrain.main(config_of(folder, start, out, training={"updates": 3}))


@pytest.mark.parametrize(
    ("count", "episodes", "without", "heldout"),
    [
        (1, None, (), 0),
        (2, None, (), 1),
        (4, None, (), 1),
        (6, 2, (), 1),
        (6, 1, (), 0),
        (6, None, (), 1),
    ],
)
def test_at_least_one_of_two_episodes_is_held_out(
    count: int, episodes: int | None, without: Sequence[str], heldout: int, tmp_path: Path
) -> None:
    """Of those that are used at all; a single one is trained on."""
    root = record(tmp_path / "data", POINT, [4] * count)
    for seed in range(3):
        data = DemoDataset(root, 2, seed=seed, episodes=episodes, without=without)
        assert len(data.episodes("heldout")) == heldout
        assert len(data.episodes("train")) == min(count, episodes or count) - heldout


def test_a_single_episode_leaves_the_last_checkpoint_and_says_so(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing can be measured, nothing is said to have been."""
    root = record(tmp_path / "data", POINT, [6])
    pretrain.main(config_of(root, start, tmp_path / "run", training={"updates": 3}))
    assert "the last checkpoint, since a single episode" in capsys.readouterr().out
    best = load_policy(tmp_path / "run" / "best").model.state_dict()
    last = load_policy(tmp_path / "run" / "step_000003").model.state_dict()
    assert all(torch.equal(best[name], last[name]) for name in best)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all("loss/heldout" not in json.loads(line) for line in lines)


@pytest.mark.parametrize("perception", ["frozen", "trained"])
def test_dropped_proprioception_is_not_learned_from(
    perception: str, folder: Path, tmp_path: Path
) -> None:
    """Dropped in every sample it gets no gradient; a half is another run than none or all."""
    losses = set()
    for share in (0.0, 0.5, 1.0):
        changes = {"perception": perception, "proprio_dropout": share, "feature_noise": 0.0}
        cloner = make_cloner(folder, tmp_path / str(share), **changes)
        losses.add(cloner._update()["loss/train"])
        head = cloner.model.actor.head
        first = next(layer for layer in head.modules() if isinstance(layer, torch.nn.Linear))
        assert first.weight.grad is not None
        read = first.weight.grad[:, -cloner.model.dims.proprio :]  # proprioception is read last
        assert bool(read.any()) == (share < 1)
        # Runs from before the setting existed are resumed where it changes nothing.
        assert ("proprio_dropout" in cloner._settings(None)["training"]) == (share > 0)
    assert len(losses) == 3


def test_dropped_proprioception_is_of_some_rows_and_nothing_else() -> None:
    """Whole rows, as many as asked for; points and missing dimensions stay as they are."""
    features = Features.of_vector(torch.rand(1000, 3) + 1, 2)
    dropped = drop_proprio(features, 0.3, torch.Generator().manual_seed(0))
    is_kept = (dropped.proprio == features.proprio).all(1)
    assert ((dropped.proprio == 0).all(1) | is_kept).all()
    assert 650 < int(is_kept.sum()) < 750
    others = replace(dropped, proprio=features.proprio)
    assert all(map(torch.equal, others._columns(), features._columns()))


@pytest.mark.parametrize("name", ["updates", "batch", "evaluate_every"])
def test_settings_that_cannot_work_are_refused(name: str) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CloningConfig(**{name: 0})
    with pytest.raises(ValueError, match="proprio_dropout must be at least 0 and at most 1, got 2"):
        CloningConfig(proprio_dropout=2)
    with pytest.raises(ValueError, match="selection_episodes must be at least 1, got 0"):
        PretrainConfig(selection_episodes=0)


def test_augmentation_out_of_range_is_refused_with_trained_perception_too() -> None:
    """Not at the first update, after the data were decoded."""
    with pytest.raises(ValueError, match="shift, light and colour"):
        CloningConfig(perception="trained", image_light=1.5)
