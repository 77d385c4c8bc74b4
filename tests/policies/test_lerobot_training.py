"""LeRobot's training on decoded images: the same samples, losses and checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_folder import write_folder
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy
from lerobot.policies.factory import make_policy_config
from lerobot.scripts import lerobot_train
from lerobot.scripts.lerobot_train import update_policy
from lerobot.transforms import ImageTransforms, ImageTransformsConfig
from lerobot_commands import TINY_ACT, TINY_DIFFUSION, training_flags
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from policies.lerobot.decoded_dataset import DecodedDataset
from policies.lerobot.training import decoded_datasets, make_optimised_policy
from scripts import cli
from scripts.policy_loading import read_policy

WINDOWS = {
    "action": [step / 25 for step in range(-1, 5)],
    "observation.state": [-1 / 25, 0.0],
    "observation.images.front": [-1 / 25, 0.0],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three made-up episodes of FetchReach."""
    root = tmp_path_factory.mktemp("data") / "FetchReach"
    write_folder(root, [8, 6, 7], image_size=40)
    return root


def both(root: Path, **options: Any) -> tuple[LeRobotDataset, DecodedDataset]:
    """The same data set, read by LeRobot and decoded."""
    theirs = LeRobotDataset("local/data", root=root, return_uint8=True, **options)
    return theirs, DecodedDataset(theirs)


def require_equal(ours: Any, theirs: Any) -> None:
    """Bit by bit, where LeRobot has turned bytes into 0..1."""
    if isinstance(ours, torch.Tensor) and ours.dtype == torch.uint8 != theirs.dtype:
        ours = ours.float() / 255
    if not isinstance(ours, torch.Tensor):
        assert ours == theirs
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"episodes": [0, 2], "delta_timestamps": WINDOWS}])
def test_every_sample_is_lerobots(data: Path, options: dict[str, Any]) -> None:
    """Every feature of every frame, with windows across the ends and with episodes left out."""
    theirs, ours = both(data, **options)
    assert len(ours) == len(theirs) == ours.num_frames
    for index in range(len(theirs)):
        expected, found = theirs[index], ours[index]
        assert found.keys() == expected.keys()
        for key in expected:
            require_equal(found[key], expected[key])


def test_a_batch_is_what_lerobot_collates(data: Path) -> None:
    """Through torch's DataLoader, in the same order."""
    for theirs, ours in zip(*(DataLoader(d, batch_size=4) for d in both(data)), strict=True):
        assert type(ours) is dict
        assert ours.keys() == theirs.keys()
        for key in theirs:
            require_equal(ours[key], theirs[key])


def test_images_are_changed_one_by_one(data: Path) -> None:
    """LeRobot's augmentation is applied to every image."""
    change = ImageTransforms(ImageTransformsConfig(enable=True))
    _, plain = both(data)
    _, changed = both(data, image_transforms=change)
    torch.manual_seed(0)
    found = changed.batch([0, 1])["observation.images.front"]
    assert found.shape == (2, 3, 40, 40)
    assert not torch.equal(found, plain.batch([0, 1])["observation.images.front"])


def test_what_cannot_be_decoded_is_refused(data: Path, tmp_path: Path) -> None:
    """A stream, and images of which the contract knows nothing."""
    config = TrainPipelineConfig(DatasetConfig("local/data", root=str(data), streaming=True))
    with pytest.raises(ValueError, match="streamed"):
        decoded_datasets(config)
    theirs = LeRobotDataset("local/data", root=data)
    theirs.meta.info.features["observation.images.new"] = {
        "dtype": "image",
        "shape": (40, 40, 3),
        "names": None,
    }
    with pytest.raises(ValueError, match=r"images.new.*, meta/contract\.json"):
        DecodedDataset(theirs)


@pytest.mark.parametrize("policy", [TINY_ACT, TINY_DIFFUSION], ids=["act", "diffusion"])
def test_it_trains_as_lerobot_does(
    policy: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three updates from one seed: the same losses, files and weights, which we load too."""
    losses: dict[str, list[float]] = {}
    folders = []
    for name in ("theirs", "ours"):
        out = tmp_path / name
        flags = training_flags(data, out, *policy, "--policy.optimizer_lr=1e-3", steps=3)
        losses[name] = _train(name, flags, monkeypatch)
        folders.append(out / "checkpoints" / "last" / "pretrained_model")
    assert len(losses["theirs"]) == 3
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-5)
    theirs, ours = folders
    assert {f.name for f in ours.iterdir()} == {f.name for f in theirs.iterdir()}
    expected = load_file(theirs / "model.safetensors")
    apart = [
        (weight - expected[name]).abs().flatten()
        for name, weight in load_file(ours / "model.safetensors").items()
    ]
    # Three updates move a weight by about 3e-3, whose gradient is not mere rounding.
    assert len(apart) == len(expected)
    assert torch.cat(apart).mean() < 1e-5
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    assert read_policy(f"ours={tmp_path / 'ours'}", "cpu", "FetchReach").make is not None


@pytest.mark.parametrize("pre_norm", [False, True])
def test_what_act_leaves_out_changes_nothing(pre_norm: bool, data: Path) -> None:
    """The same loss and gradients, of every parameter."""
    config = make_policy_config("act", push_to_hub=False, device="cpu", pre_norm=pre_norm)
    config.dropout, config.pretrained_backbone_weights = 0.0, None
    config.dim_model, config.dim_feedforward = 64, 128
    meta = LeRobotDatasetMetadata("local/data", root=data)
    torch.manual_seed(0)
    # In float64: in float32 the rounding of another order alone exceeds any useful tolerance.
    theirs = make_policy(config, meta).double().train()
    ours = make_optimised_policy(config, meta).double().train()
    ours.load_state_dict(theirs.state_dict())
    features = config.input_features | config.output_features
    double = torch.float64
    batch = {n: torch.rand(2, *feature.shape, dtype=double) for n, feature in features.items()}
    batch["action"] = torch.rand(2, config.chunk_size, *features["action"].shape, dtype=double)
    batch["action_is_pad"] = torch.arange(config.chunk_size).expand(2, -1) > 60
    losses = []
    for policy in (theirs, ours):
        torch.manual_seed(1)  # of the latent's sample
        loss, _ = policy.forward(batch)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        found = expected[name].grad
        torch.testing.assert_close(parameter.grad, found, rtol=1e-6, atol=1e-12, msg=name)


def test_it_goes_on_as_lerobot_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a checkpoint of two updates, with LeRobot's own flags: the next losses are the same."""
    out = tmp_path / "begun"
    begun = training_flags(data, out, *TINY_ACT, "--policy.optimizer_lr=1e-3")
    assert len(_train("ours", begun, monkeypatch)) == 2
    losses: dict[str, list[float]] = {}
    for name in ("theirs", "ours"):
        copy = shutil.copytree(out, tmp_path / name, symlinks=True)
        told = copy / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        told.write_text(told.read_text().replace(str(out), str(copy)))
        flags = [f"--config_path={told}", "--resume=true", "--steps=4"]
        losses[name] = _train(name, flags, monkeypatch)
        assert sorted(p.name for p in (copy / "checkpoints").iterdir())[-2:] == ["000004", "last"]
    assert len(losses["theirs"]) == 2
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-5)


def _train(whose: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By our command or by LeRobot's; the loss of each update."""
    losses: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(lerobot_train, "init_logging", lambda **_: None)  # it clears pytest's
        patch.setattr(lerobot_train, "update_policy", _noting(losses))
        patch.setattr("sys.argv", ["lerobot-train", *flags] if whose == "theirs" else [])
        if whose == "theirs":
            lerobot_train.train()
        else:
            assert cli.main(["lerobot-train", *flags]) == 0
    return losses


def _noting(losses: list[float]) -> Callable[..., Any]:
    """LeRobot's update, after which its loss is in the list."""

    def update(metrics: Any, *args: Any, **options: Any) -> Any:
        told = update_policy(metrics, *args, **options)
        losses.append(metrics.loss.val)
        return told

    return update
