"""Data sets that LeRobot recorded, with videos and without a contract of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import draccus
import numpy as np
import pytest
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from lerobot_folder import LEVEL, write_counted

from policies.imitation.config import CloningConfig
from policies.imitation.dataset import DemoDataset
from scripts.pretrain import PretrainConfig, main
from vla.contract import ContractMismatchError
from vla.data.video_integrity import require_intact_videos
from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig
from vla.lerobot_plugin.modeling_vla import LeRobotVLAPolicy
from vla.policy import load_policy

LENGTHS = (7, 5)
SIZE = 96


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, two episodes in one video file each; frame t is grey, its level t."""
    root = tmp_path_factory.mktemp("theirs") / "so101"
    return write_counted(root, LENGTHS, SIZE)


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """A copy without cache."""
    ignore = shutil.ignore_patterns(".cache")
    return shutil.copytree(recorded, tmp_path / "so101", ignore=ignore)


def test_videos_are_decoded_frame_by_frame(recorded: Path) -> None:
    """Every frame is the one of its time, in both episodes and both cameras."""
    data = DemoDataset(recorded, chunk_length=2, heldout_fraction=0.0)
    assert [camera.name for camera in data.spec.cameras] == ["top", "image"]
    assert len(data) == sum(LENGTHS)
    require_intact_videos(recorded)
    batch = data.batch(np.arange(len(data)))
    levels = np.stack([p.float().mean(dim=(1, 2, 3)) for p in batch.images.values()], axis=1)
    expected = LEVEL * np.arange(len(data))
    np.testing.assert_allclose(levels[:, 0], expected, atol=3)
    np.testing.assert_allclose(levels[:, 1], 255 - expected, atol=3)
    assert batch.proprio[:, 0].tolist() == [*range(7), *range(5)]
    assert batch.actions[6].tolist() == [[6.5, -6.0], [6.5, -6.0]]
    assert batch.instructions[0].startswith("put the green")
    assert data.instructions == [batch.instructions[0], batch.instructions[-1]]


@pytest.mark.parametrize("index", ["behind", "in front"])
def test_a_single_byte_that_lacks_is_found(copied: Path, index: str) -> None:
    """Wherever the file keeps its index; nothing is wrong with it before."""
    (video, _) = sorted((copied / "videos").rglob("*.mp4"))
    if index == "in front":
        _put_index_in_front(video)
    require_intact_videos(copied)
    whole = video.read_bytes()
    video.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"intact copies are needed: {video.relative_to(copied)}"):
        require_intact_videos(copied)
    video.write_bytes(whole + b"\0\0\0\3")
    with pytest.raises(ValueError, match="intact copies are needed"):
        require_intact_videos(copied)


def _put_index_in_front(video: Path) -> None:
    """As a server would that streams it."""
    with av.open(str(video)) as source:
        options = {"movflags": "faststart"}
        with av.open(str(video.with_suffix(".new.mp4")), "w", options=options) as copy:
            stream = copy.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    copy.mux(packet)
    video.with_suffix(".new.mp4").replace(video)
    assert video.read_bytes().index(b"moov") < video.read_bytes().index(b"mdat")


@pytest.mark.parametrize("damage", ["short", "missing", "other size"])
def test_a_video_that_lacks_frames_is_refused(copied: Path, damage: str) -> None:
    """The file and what is wrong with it, and no cache is left."""
    (video, _) = sorted((copied / "videos").rglob("*.mp4"))
    name = video.relative_to(copied)
    if damage == "short":
        whole = video.read_bytes()
        video.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing":
        video.unlink()
    else:
        info = copied / "meta" / "info.json"
        told = json.loads(info.read_text())
        for key in ("observation.images.top", "observation.image"):
            told["features"][key]["shape"] = [48, 48, 3]
        info.write_text(json.dumps(told))
    if damage == "short":
        with pytest.raises(ValueError, match=f"intact copies are needed: {name}"):
            require_intact_videos(copied)
    why = {
        "short": rf"{name} holds 1 images for 12 frames, it is cut short: .* 33\.3 ms",
        "missing": f"{name} cannot be read .*No such file",
        "other size": r"episode 0, frame 0 is \(96, 96, 3\), the contract says \(48, 48, 3\)",
    }
    with pytest.raises(ValueError, match=why[damage]):
        DemoDataset(copied, chunk_length=2)
    assert [path.name for path in (copied / ".cache").iterdir()] == ["lock"]


def test_a_robot_that_is_not_simulated_here_is_cloned(
    recorded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Other cameras, state, actions and words than ours, and held-out episodes that choose."""
    config = PretrainConfig(
        task=None,
        data=(recorded,),
        out=tmp_path / "clone",
        chunk_length=4,
        training=CloningConfig(
            updates=2,
            batch=4,
            evaluate_every=1,
            perception="trained",
            image_light=0.2,
        ),
    )
    assert main(config) == 0
    assert "held-out episodes" in capsys.readouterr().out
    policy = load_policy(tmp_path / "clone" / "best")
    data = DemoDataset(recorded, chunk_length=4)
    chunk = policy.act(data.batch(np.arange(3)).observation())
    assert chunk.shape == (3, 4, 2)
    assert policy.spec.robot == "so101"
    assert policy.spec.features.camera("image") == "observation.image"
    frozen = PretrainConfig(task=None, data=(recorded,), out=tmp_path / "frozen")
    with pytest.raises(ContractMismatchError, match=r"\['top', 'image'\].*--perception trained"):
        main(frozen)


def test_lerobot_trains_what_it_must(recorded: Path) -> None:
    """Without a flag: for other cameras than those of the start, perception too."""
    meta = LeRobotDatasetMetadata("local/so101", root=recorded)
    policy = make_policy(LeRobotVLAConfig(device="cpu"), ds_meta=meta)
    assert isinstance(policy, LeRobotVLAPolicy)
    assert policy.config.perception == "trained"
    assert len(policy.get_optim_params()) == 2
    assert [camera.name for camera in policy.policy.spec.cameras] == ["top", "image"]


def test_lerobot_leaves_a_camera_out(recorded: Path) -> None:
    """By the flag that the refusal of an infrared camera names."""
    config = draccus.parse(LeRobotVLAConfig, args=["--cameras=[image]", "--device=cpu"])
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/so101", root=recorded))
    assert isinstance(policy, LeRobotVLAPolicy)
    assert [camera.name for camera in policy.policy.spec.cameras] == ["image"]
