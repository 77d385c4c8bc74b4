"""One training for two robots: every head, both kinds of perception, words, resume and choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from point_env import PointVecEnv
from two_robots import ARM, CART, SIZE, WORDS, observe, record, tiny_policy

from policies.checkpoints import Checkpoints
from policies.imitation import bc
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from policies.run_folder import RunFolder
from scripts import pretrain
from scripts.policy_loading import read_policy, require_comparable
from scripts.pretrain import PretrainConfig, main
from sim.tasks.registry import make_task
from vla.contract import CameraSpec, ContractMismatchError
from vla.data.paraphrases import Paraphrases
from vla.data.recorded_actions import read_chunks
from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig
from vla.lerobot_plugin.modeling_vla import LeRobotVLAPolicy
from vla.model.heads.registry import HEADS
from vla.policy import load_policy

POINT = replace(CART, robot="point")  # the robot of PointVecEnv
LENGTHS = (5, 4, 6, 3, 4, 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Recordings of a point and of an arm."""
    root = tmp_path_factory.mktemp("recorded")
    return record(root / "point", POINT, LENGTHS), record(root / "arm", ARM, LENGTHS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows the arm."""
    return tiny_policy(ARM).save(tmp_path_factory.mktemp("start") / "arm")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has seen both robots."""
    return tiny_policy(POINT, ARM).save(tmp_path_factory.mktemp("start") / "both")


@pytest.fixture
def phrasings(tmp_path: Path) -> Path:
    """Other words for one of the two instructions."""
    path = tmp_path / "words.json"
    path.write_text(json.dumps({WORDS[0]: ["to the left", "left", "left"]}))
    return path


def test_the_point_is_that_of_the_environment() -> None:
    """Recordings and environment share one contract."""
    assert not POINT.differences(PointVecEnv.spec)


def test_vectors_of_one_number_are_read(folders: tuple[Path, Path]) -> None:
    """LeRobot stores such a vector as a number."""
    chunks = read_chunks(folders[0], "action", 2)
    assert chunks.shape == (sum(LENGTHS), 2, 1)
    data = Demonstrations(folders[:1], 2, 0.0)
    assert torch.equal(data.chunks()["point"], chunks)


@pytest.mark.parametrize("head", HEADS)
def test_two_robots_train_one_model(
    head: str, folders: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    """Each then acts in its own units, found by its data's contract."""
    config = PretrainConfig(
        task=None,
        data=folders,
        weights=(1, 2),
        start=alone,
        head=head,
        chunk_length=3,
        out=tmp_path / head,
        training=CloningConfig(
            updates=2, batch=6, evaluate_every=2, perception="trained", image_light=0.1
        ),
    )
    assert main(config) == 0
    for spec in (POINT, ARM):
        policy = load_policy(tmp_path / head / "best", embodiment=spec)
        assert policy.spec == spec
        statistics = policy.processor.statistics
        assert statistics is not None
        assert len(statistics.action.mean) == spec.action.dim
        chunk = policy.act(observe(spec))
        assert chunk.shape == (3, 3, spec.action.dim)
        assert (chunk >= torch.tensor(spec.action.low) - 1e-3).all()
        assert (chunk <= torch.tensor(spec.action.high) + 1e-3).all()
    lines = (tmp_path / head / "metrics.jsonl").read_text().splitlines()
    assert {"loss/heldout", "loss/heldout/point", "loss/heldout/arm"} <= set(json.loads(lines[-1]))


@pytest.mark.parametrize("perception", ["frozen", "trained"])
def test_cameras_of_different_sizes_train(
    perception: Literal["frozen", "trained"], tmp_path: Path
) -> None:
    """Each image is kept as it was recorded and scaled to what the model sees."""
    cameras = (CameraSpec("front", SIZE, SIZE), CameraSpec("wrist", 8, 20))
    spec = replace(ARM, cameras=cameras)
    root = record(tmp_path / "data", spec, LENGTHS)
    config = PretrainConfig(
        task=None,
        data=(root,),
        start=tiny_policy(ARM).save(tmp_path / "start"),
        chunk_length=3,
        out=tmp_path / "run",
        training=CloningConfig(
            updates=2,
            batch=6,
            evaluate_every=2,
            perception=perception,
            image_shift=0.1 * (perception == "trained"),
        ),
    )
    assert main(config) == 0
    shapes = [
        p.shape
        for p in Demonstrations((root,), 2, 0.0).robots["arm"].batch(np.arange(4)).images.values()
    ]
    assert shapes == [(4, SIZE, SIZE, 3), (4, 8, 20, 3)]
    policy = load_policy(tmp_path / "run" / "best")
    assert policy.spec == spec
    assert policy.act(observe(spec)).isfinite().all()


class CutError(Exception):
    """Stands for a kill between two updates."""


@pytest.mark.parametrize("perception", ["frozen", "trained"])
def test_a_cut_training_ends_in_the_same_weights(
    perception: str,
    folders: tuple[Path, Path],
    together: Path,
    phrasings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two robots, weights and paraphrases, bit for bit."""
    training = CloningConfig(
        updates=4,
        batch=6,
        evaluate_every=2,
        perception=perception,  # pyright: ignore[reportArgumentType]
        phrasings=2,
    )
    config = PretrainConfig(
        task=None,
        data=folders,
        weights=(3, 1),
        start=together,
        chunk_length=3,
        paraphrases=phrasings,
        out=tmp_path / "whole",
        training=training,
    )
    main(config)
    cut = replace(config, out=tmp_path / "cut")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_then_stop(Checkpoints.save))
        with pytest.raises(CutError):
            main(cut)
    assert not (tmp_path / "cut" / "step_000004").exists()
    main(cut)
    one, two = (
        load_policy(tmp_path / name / "step_000004", embodiment="arm").model.state_dict()
        for name in ("whole", "cut")
    )
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def save_then_stop(save: Callable[..., Path]) -> Callable[..., Path]:
    """Save a checkpoint with its state, then be cut."""

    def cut(checkpoints: Checkpoints, step: int, trainer: dict[str, Any]) -> Path:
        save(checkpoints, step, trainer)
        raise CutError

    return cut


def test_the_robot_of_the_environment_chooses(
    folders: tuple[Path, Path], together: Path, tmp_path: Path
) -> None:
    """A checkpoint is tried as the robot that the environment simulates."""
    data, config = Demonstrations(folders, 3), CloningConfig(updates=1, batch=4)
    policy = load_policy(together, embodiment="arm")
    cloner = pretrain.Cloner(policy, data, config, RunFolder(tmp_path, config))
    cloner.run(PointVecEnv(4), [1, 2, 3, 4])
    assert cloner.policy.spec == POINT
    values = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert cloner.checkpoints.best_score == values["success/end"] >= 0
    other = PointVecEnv(4)
    other.spec = replace(POINT, control_rate_hz=99.0)
    with pytest.raises(ContractMismatchError, match=r"(?s)fits none.*point: control_rate_hz: 10"):
        cloner.run(other, [1])


def test_samples_come_by_weight_through_all_robots(folders: tuple[Path, Path]) -> None:
    """And by frame without weights; the same ones for the same generator."""
    for weights, share in (((1, 3), 0.75), ((), 0.5)):
        data = Demonstrations(folders, 2, 0.0, weights=weights)
        assert [*data.robots] == ["point", "arm"]
        first, again = (data.sample(torch.Generator().manual_seed(1), 2000) for _ in range(2))
        counts = {name: len(batch) for name, batch in first.items()}
        assert sum(counts.values()) == 2000
        assert counts["arm"] / 2000 == pytest.approx(share, abs=0.04)
        assert all(torch.equal(first[n].actions, again[n].actions) for n in first)
        assert first["point"].actions.shape[1:] == (2, 1)
        shapes = {name: images.shape[1:] for name, images in first["arm"].images.items()}
        assert shapes == {"front": (12, 12, 3), "wrist": (12, 12, 3)}


def test_folders_are_grouped_by_robot(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Contradictions within one are refused, with what mends it; names tell two apart."""
    slow = record(tmp_path / "slow", replace(ARM, control_rate_hz=5.0), (3,))
    with pytest.raises(
        ContractMismatchError, match=r"(?s)control_rate_hz: 30.0 != 5.0.*--embodiments.*'arm' now"
    ):
        Demonstrations([folders[1], slow], 2)
    data = Demonstrations([folders[1], slow, folders[1]], 2, names=["fast", "slow", "fast"])
    assert {name: len(robot) for name, robot in data.robots.items()} == {
        "fast": 2 * sum(LENGTHS),
        "slow": 3,
    }
    assert data.embodiments()["slow"].spec.control_rate_hz == 5.0
    for wrong, what in (({"names": ["a"]}, "embodiment"), ({"weights": [1, 2, 3]}, "weight")):
        with pytest.raises(ValueError, match=f"one {what} a folder, got"):
            Demonstrations(folders, 2, **wrong)  # pyright: ignore[reportArgumentType]


def test_frozen_perception_wants_cameras_that_it_knows(
    folders: tuple[Path, Path], alone: Path
) -> None:
    """The robot that it does not is named."""
    config = PretrainConfig(task=None, data=folders, start=alone)
    with pytest.raises(
        ContractMismatchError, match=r"of point have the cameras \['top'\].*--perception trained"
    ):
        main(config)


def test_every_phrasing_is_drawn(folders: tuple[Path, Path], phrasings: Path) -> None:
    """Equally often, the recorded one too; other instructions stay as they are."""
    data = Demonstrations(folders, 2, paraphrases=phrasings)
    assert data.instructions == [WORDS[0], "to the left", "left", WORDS[1]]
    batches = data.sample(torch.Generator().manual_seed(0), 4000).values()
    said = [text for batch in batches for text in batch.instructions]
    counts = [said.count(text) for text in (WORDS[0], "to the left", "left")]
    assert min(counts) > 0.85 * max(counts)
    assert set(said) == {*data.instructions}
    plain = Demonstrations(folders, 2)
    drawn = plain.draw(torch.Generator().manual_seed(3), 5)
    generator = torch.Generator().manual_seed(3)
    plain.sample(generator, 5)  # no paraphrases: nothing else is drawn from the generator
    expected = torch.Generator().manual_seed(3)
    plain.draw(expected, 5)
    assert torch.equal(generator.get_state(), expected.get_state())
    assert len(drawn) == 5


def test_frozen_frames_are_encoded_in_several_phrasings(
    folders: tuple[Path, Path], together: Path, phrasings: Path, tmp_path: Path
) -> None:
    """As many features a frame as configured, in words that differ."""
    data = Demonstrations(folders, 3, 0.0, paraphrases=phrasings)
    config = CloningConfig(updates=1, batch=4, phrasings=3)
    policy = load_policy(together, embodiment="point")
    cloner = pretrain.Cloner(policy, data, config, RunFolder(tmp_path, config))
    features, _, _ = cloner._frozen("train")
    assert len(features) == 3 * 2 * sum(LENGTHS)
    copies = features.readout.unflatten(0, (3, -1))
    varied = (copies != copies[0]).any(dim=(0, 2))
    recorded = [t for d in data.robots.values() for t in d.batch(d.rows()).instructions]
    assert varied[[i for i, text in enumerate(recorded) if text == WORDS[0]]].float().mean() > 0.7
    assert not varied[[i for i, text in enumerate(recorded) if text != WORDS[0]]].any()
    cloner._sample()


def test_frozen_frames_are_held_within_their_episode(
    folders: tuple[Path, Path], together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first decision sees nothing of the one before, wherever batches of frames end."""
    data = Demonstrations(folders, 3, 0.0, without=(WORDS[1],))
    config = CloningConfig(updates=1, batch=4)
    runs = []
    for name, size in (("large", 64), ("small", 2)):
        monkeypatch.setattr(bc, "_ENCODE_BATCH", size)
        policy = load_policy(together, embodiment="point")
        cloner = pretrain.Cloner(policy, data, config, RunFolder(tmp_path / name, config))
        runs.append(cloner._frozen("train")[0])
    for column in ("readout", "points", "proprio"):
        torch.testing.assert_close(*(getattr(run, column) for run in runs))
    first = 0
    cloner.policy.model.eval()  # as frames are encoded: training may reduce precision
    for robot, part in data.robots.items():
        starts = np.array([rows[0] for rows in part.episodes()])
        with torch.no_grad():
            alone, _, _ = cloner._encode(robot, part.batch(starts))
        for row, rows in enumerate(part.episodes()):
            torch.testing.assert_close(runs[0].points[first], alone.points[row])
            first += len(rows)
    assert first == len(runs[0]) < 2 * sum(LENGTHS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "are no JSON"),
        ("\udcff", "are no JSON"),
        ('["left"]', "must be"),
        ('{"go to the left": "left"}', "must be"),
        ('{"go to the left": []}', "must be"),
        ('{"go to the lef": ["left"]}', r"'go to the lef', which was never.*nearest: \['go to the"),
    ],
)
def test_wrong_paraphrases_are_named(text: str, message: str, tmp_path: Path) -> None:
    """What is wrong, and what was recorded."""
    path = tmp_path / "words.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        Paraphrases.read(path, WORDS)
    with pytest.raises(ValueError, match="phrasings must be at least 1"):
        CloningConfig(phrasings=0)


def test_lerobot_takes_one_robot_of_several(folders: tuple[Path, Path], together: Path) -> None:
    """The named one, or the one of its data set; else it says which there are."""
    config = PreTrainedConfig.from_pretrained(together)
    assert isinstance(config, LeRobotVLAConfig)
    config.device = "cpu"
    with pytest.raises(ValueError, match="contract of one: point, arm"):
        LeRobotVLAPolicy.from_pretrained(together, config=config)
    for robot, root in zip((POINT, ARM), folders, strict=True):
        meta = LeRobotDatasetMetadata("local/x", root=root)
        policy = LeRobotVLAPolicy.from_pretrained(together, config=config, dataset_meta=meta)
        assert policy.policy.spec == robot
    config.embodiment = "arm"
    policy = LeRobotVLAPolicy.from_pretrained(together, config=config)
    seen = observe(ARM)
    batch = {
        **{f"observation.images.{n}": i.permute(0, 3, 1, 2) for n, i in seen.images.items()},
        "observation.state": seen.proprio,
        "task": seen.instructions,
        "action": torch.full((3, 3, 3), 150.0),
        "action_is_pad": torch.zeros(3, 3, dtype=torch.bool),
    }
    assert policy.select_action(batch).shape == (3, 3)
    assert policy.forward(batch)[0].isfinite()


def test_evaluation_finds_the_robot_of_the_task(tmp_path: Path) -> None:
    """By what the task offers, or by name; another robot is refused."""
    fetch = make_task("FetchReach", 32).spec
    folder = tiny_policy(ARM, fetch).save(tmp_path / "both")
    candidate = read_policy(f"ours={folder}@receding:2", "cpu", "FetchReach")
    assert candidate.spec == fetch
    require_comparable([candidate], "FetchReach", "ours")
    named = read_policy(f"ours={folder}#arm", "cpu", "FetchReach")
    with pytest.raises(ContractMismatchError, match="arm"):
        require_comparable([named], "FetchReach", "ours")
    with pytest.raises(ValueError, match="no embodiment 'leg'; valid: arm, fetch"):
        read_policy(f"{folder}#leg", "cpu", "FetchReach")
