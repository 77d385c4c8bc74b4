"""Positions of things as an auxiliary loss of cloning: what is read, learned, measured, refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from two_robots import CART, SIZE, WORDS, observe, record, tiny_policy

from policies.checkpoints import ResumeError
from policies.imitation import dataset
from policies.imitation import demonstrations as demonstrations_module
from policies.imitation.bc import Cloner
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.frame_cache import Frames
from policies.imitation.points import heldout_errors, true_points
from policies.run_folder import RunFolder
from scripts.pretrain import PretrainConfig
from scripts.pretrain import main as pretrain
from vla.contract import CameraSpec
from vla.data.recorded_frames import read_frames
from vla.model.embedded import EmbeddedConfig
from vla.model.pointer import world_loss
from vla.model.points import PointsConfig, PointSpec
from vla.policy import load_policy
from vla.processing.processor import ProcessorConfig

SPEC = replace(CART, robot="seer", cameras=(CameraSpec("top", SIZE, SIZE),))
OTHER = replace(SPEC, robot="other")
LENGTH, EPISODES = 10, 8
CUP = PointsConfig((PointSpec("cup"),), center_m=(0.5, 0.0, 0.0), scale_m=0.5)


def made_up(spec: Any = SPEC, named: tuple[str, ...] = ("cup",)) -> Frames:
    """A bright quarter of every image is where the cup is; nothing else tells."""
    count, rng = LENGTH * EPISODES, np.random.default_rng(0)
    quarter = rng.integers(2, size=(count, 2))  # row and column
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    half = SIZE // 2
    for image, (row, column) in zip(images, quarter, strict=True):
        image[half * row : half * (row + 1), half * column : half * (column + 1)] = 255
    cup = np.column_stack([quarter, np.zeros(count)]).astype(np.float32)
    return Frames(
        spec=spec,
        images={"top": images},
        proprio=rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        action=rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        episode=np.repeat(np.arange(EPISODES), LENGTH),
        frame=np.tile(np.arange(LENGTH), EPISODES),
        instructions=[WORDS[0]] * count,
        points={name: cup.copy() for name in named},
    )


def demonstrations(monkeypatch: pytest.MonkeyPatch, *parts: Frames) -> Demonstrations:
    """In memory, one folder a robot."""
    folders = {Path(part.spec.robot): part for part in parts}
    monkeypatch.setattr(dataset, "open_frames", lambda root, *_, **__: folders[root])
    for module in (dataset, demonstrations_module):
        monkeypatch.setattr(module, "read_contract", lambda root, *_: folders[root].spec)
    return Demonstrations([*folders], 3, 0.25, names=[str(folder) for folder in folders])


def make_cloner(data: Demonstrations, out: Path, points: PointsConfig = CUP, **changes: Any):
    """A run of a few small updates."""
    specs = [robot.spec for robot in data.robots.values()]
    policy = tiny_policy(*specs, points=points)
    config = CloningConfig(updates=4, batch=6, evaluate_every=2, perception="trained")
    config = replace(config, **changes)
    return Cloner(policy, data, config, RunFolder(out, config))


def logged(run: Path) -> list[dict[str, float]]:
    """All entries."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(cloner: Cloner) -> list[torch.Tensor]:
    """All of the model's."""
    return list(cloner.model.state_dict().values())


def test_the_loss_by_hand() -> None:
    """Smooth L1 that turns at 0.05, over the known points alone, in the model's units."""
    guess = torch.tensor([[[0.1, 0.02, 0.0]], [[5.0, 5.0, 5.0]]], requires_grad=True)
    positions = torch.tensor([[0.5, 0.0, 0.0], [0.5, math.nan, 0.0]])
    truth = CUP.truth({"cup": positions}, 2)
    assert truth[0].tolist() == [[0.0, 0.0, 0.0]]
    loss = world_loss(guess, truth)
    assert float(loss.detach()) == pytest.approx((0.1 - 0.025 + 0.5 * 0.02**2 / 0.05) / 3)
    loss.backward()
    assert guess.grad is not None
    assert guess.grad[1].tolist() == [[0.0, 0.0, 0.0]]


def test_truth_is_in_the_units_and_the_frame_of_the_model() -> None:
    """A point that the data lack, or that is in another frame, is not known."""
    config = replace(CUP, specs=(PointSpec("mug"), PointSpec("cup"), PointSpec("hand", frame="b")))
    known = {name: torch.tensor([[1.0, 0.0, -0.5]]) for name in ("cup", "hand", "other")}
    truth = config.truth(known, 1)
    assert truth[0, 1].tolist() == [1.0, 0.0, -1.0]
    assert truth[0, [0, 2]].isnan().all()


def test_origin_and_unit_of_a_new_model() -> None:
    """The middle and half the extent of what is known, in any frame; one glitch changes neither."""
    line = np.linspace(0.0, 1.0, 1001)
    cup = np.column_stack([1 + line, 0.2 * line, np.zeros(1001)]).astype(np.float32)
    cup[7] = 1e4
    config = PointsConfig.measured({"cup": cup})
    assert config.center_m == pytest.approx((1.5, 0.1, 0.0), abs=0.01)
    assert config.scale_m == pytest.approx(0.5, abs=0.02)
    assert config.relative == ()
    assert PointsConfig.measured({"cup": cup[:1]}).scale_m == 0.01


def test_perception_learns_where_things_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the demonstrations' positions: the held-out error falls, without them it does not."""
    data = demonstrations(monkeypatch, made_up())
    settings = {"updates": 200, "batch": 32, "perception_learning_rate": 1e-2}
    make_cloner(data, tmp_path / "with", evaluate_every=40, **settings).run(None, [])
    first, *_, last = logged(tmp_path / "with")
    # One guess for all would be wrong by 70 cm.
    assert last["points/cup_median_cm"] < 20
    assert last["loss/points"] < 0.5 * first["loss/points"]
    settings |= {"updates": 20, "point_weight": 0.0}
    without = make_cloner(data, tmp_path / "without", **settings)
    without.run(None, [])
    assert not any("points" in key for key in logged(tmp_path / "without")[-1])
    with torch.no_grad():
        features, _, _ = without._frozen("heldout")
    assert heldout_errors(CUP, data, features)["points/cup_median_cm"] > 40


def test_the_head_loss_is_logged_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first update draws the same, so its head's loss is that without points."""
    data = demonstrations(monkeypatch, made_up())
    alone = make_cloner(data, tmp_path / "alone", point_weight=0.0)._update()
    cloner = make_cloner(data, tmp_path / "both")
    both = cloner._update()
    assert alone == {"loss/train": both["loss/train"]}
    assert both["loss/points"] > 0


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({"point_weight": 0.0}, CUP),
        ({"perception": "frozen"}, CUP),
        ({}, PointsConfig()),
        ({}, PointsConfig((PointSpec("mug"),))),
        ({}, PointsConfig((PointSpec("cup", frame="base"),))),
    ],
)
def test_all_is_as_without_points_where_they_are_not_learned(
    changes: dict[str, Any], points: PointsConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bit by bit, in weights and log; the settings too, so that older runs go on."""
    runs = []
    for name, named in (("with", ("cup",)), ("without", ())):
        data = demonstrations(monkeypatch, made_up(named=named))
        runs.append(make_cloner(data, tmp_path / name, points, **changes))
        runs[-1].run(None, [])
        assert "point_weight" not in runs[-1]._settings(None)["training"]
    assert all(map(torch.equal, *map(weights, runs)))
    assert logged(tmp_path / "with") == logged(tmp_path / "without")


def test_frames_without_a_known_point_are_not_supervised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some of them change the loss to that of the others; all of them are no points at all."""
    part = made_up()
    part.points["cup"][::2] = np.nan
    data = demonstrations(monkeypatch, part)
    batch = {"seer": data.robots["seer"].batch(np.arange(4))}
    truth = true_points(CUP, batch)
    assert truth is not None
    assert truth.isnan().all(-1)[:, 0].tolist() == [True, False, True, False]
    make_cloner(data, tmp_path / "some").run(None, [])
    assert all(math.isfinite(entry["loss/points"]) for entry in logged(tmp_path / "some"))
    part.points["cup"][:] = np.nan
    data = demonstrations(monkeypatch, part)
    never = make_cloner(data, tmp_path / "never")
    never.run(None, [])
    assert not any("points" in key for key in logged(tmp_path / "never")[-1])
    plain = make_cloner(demonstrations(monkeypatch, made_up(named=())), tmp_path / "plain")
    plain.run(None, [])
    assert all(map(torch.equal, weights(never), weights(plain)))
    with pytest.raises(ValueError, match=r"\['cup'\] is not known in any training frame"):
        data.points(("cup",))


def test_a_robot_without_positions_is_cloned_beside_one_that_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only frames of the one that has them are supervised, and measured."""
    data = demonstrations(monkeypatch, made_up(), made_up(OTHER, ()))
    batches = data.sample(torch.Generator().manual_seed(0), 12)
    truth = true_points(CUP, batches)
    assert truth is not None
    known = truth.isfinite().all(-1)[:, 0]
    assert known.sum() == len(batches["seer"])
    assert known[: len(batches["seer"])].all()
    make_cloner(data, tmp_path / "both").run(None, [])
    assert {"loss/points", "points/cup_median_cm"} <= logged(tmp_path / "both")[-1].keys()


class KilledError(Exception):
    """What ends a process at an unlucky moment."""


def test_an_interrupted_run_goes_on_exactly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the same weight and the same positions; others are refused."""

    def kill(step: int, values: Mapping[str, float]) -> None:
        raise KilledError

    data = demonstrations(monkeypatch, made_up())
    whole = make_cloner(data, tmp_path / "whole")
    whole.run(None, [])
    with pytest.raises(KilledError):
        make_cloner(data, tmp_path / "cut").run(None, [], kill)
    with pytest.raises(ResumeError, match=r"training.point_weight: 1.0 in the run, 0.5 now"):
        make_cloner(data, tmp_path / "cut", point_weight=0.5).run(None, [])
    moved = made_up()
    moved.points["cup"] += 0.01
    with pytest.raises(ResumeError, match=r"demonstrations.content.seer: "):
        make_cloner(demonstrations(monkeypatch, moved), tmp_path / "cut").run(None, [])
    resumed = make_cloner(data, tmp_path / "cut")
    resumed.run(None, [])
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert logged(tmp_path / "whole")[-1] == logged(tmp_path / "cut")[-1]


def test_a_new_model_knows_the_points_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command, from a folder's columns to a policy that says where the cup is."""
    root = record(tmp_path / "data", CART, points=("cup", "mug"))
    positions = read_frames(root).vectors("points.cup", may_lack=True)
    assert np.isnan(positions[0]).all()
    with pytest.raises(ValueError, match=r"points.cup is null or NaN at episode 0, frame 0"):
        read_frames(root).vectors("points.cup")
    config = PretrainConfig(
        None,
        (root,),
        start="scratch",
        points=("cup",),
        chunk_length=3,
        embedded=EmbeddedConfig(width=32, text_layers=1, heads=2, grid=2),
        conversions=ProcessorConfig(image_size_px=(48, 48)),
        out=tmp_path / "run",
        training=CloningConfig(updates=2, batch=8, evaluate_every=2),
    )
    assert pretrain(config) == 0
    policy = load_policy(tmp_path / "run" / "best")
    assert policy.model.config.points.names == ("cup",)
    assert policy.actor.head.attends
    assert policy.observe(observe(CART)).points.shape == (3, 1, 3)
    assert {"loss/points", "points/cup_median_cm"} <= logged(tmp_path / "run")[-1].keys()
    wrong = replace(config, points=("cap",), out=tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"no positions of \['cap'\]; they have: cup, mug\."):
        pretrain(wrong)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("begun", [{}, {"vlm": "somebody/model"}])
def test_points_are_asked_of_a_new_model_alone(begun: dict[str, Any]) -> None:
    """The message says what else there is."""
    with pytest.raises(ValueError, match=r"--start scratch; a checkpoint keeps .*--perception"):
        PretrainConfig("FetchPush", points=("cup",), **begun)
