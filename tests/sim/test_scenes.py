"""Scenes: what the images show is where the files say; incomplete and other scenes are refused."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import scenes as scenes_module
from sim.scene_episodes import Projector
from sim.scenes import Scenes, ScenesConfig, make_scenes
from sim.tasks.registry import TaskChoice, make_task

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScenesConfig, Scenes]:
    """Forty frames of FetchPush."""
    config = ScenesConfig(("FetchPush",), 35, tmp_path_factory.mktemp("scenes"))
    return config, make_scenes(config)[0]


def test_the_red_pixels_are_at_the_target(drawn: tuple[ScenesConfig, Scenes]) -> None:
    """Image coordinates, images and phrases belong together."""
    _, scenes = drawn
    target = scenes.phrases.index("target")
    away = []
    for images, points in zip(scenes.images, scenes.image_points, strict=True):
        for camera in range(2):
            r, g, b = np.moveaxis(images[camera].astype(int), -1, 0)
            red = np.argwhere((r > 2 * g) & (r > 2 * b) & (r > 40))
            if len(red) > 12:
                x, y = (points[target, camera] + 1) * 48
                away.append(np.abs(red.mean(0) + 0.5 - (y, x)).max())
    assert len(scenes.images) == 40
    assert len(away) > 40
    assert np.median(away) < 0.7


def test_equal_seeds_equal_frames(drawn: tuple[ScenesConfig, Scenes], tmp_path: Path) -> None:
    """Whatever the number of workers."""
    config, scenes = drawn
    again = make_scenes(replace(config, root=tmp_path, workers=1))[0]
    np.testing.assert_array_equal(again.images, scenes.images)
    np.testing.assert_array_equal(again.points, scenes.points)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"image_size": 48}, "image_size"),
        ({"frames_per_task": 50}, "frames"),
    ],
)
def test_refuses_scenes_that_were_drawn_in_another_way(
    drawn: tuple[ScenesConfig, Scenes], change: dict[str, int], named: str
) -> None:
    """A folder is never reused for what it does not hold."""
    config, _ = drawn
    with pytest.raises(ValueError, match=f"another {named}: name another folder"):
        make_scenes(replace(config, **change))


def test_refuses_scenes_that_another_camera_drew(
    drawn: tuple[ScenesConfig, Scenes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wider angle from the same place is another camera."""
    config, _ = drawn
    task = make_task("FetchPush", config.image_size)
    task.model.cam_fovy += 1.0
    monkeypatch.setattr(TaskChoice, "make", lambda choice, size: task)
    with pytest.raises(ValueError, match="another cameras: name another folder"):
        make_scenes(config)


def test_without_scenes_says_how_to_make_them(tmp_path: Path) -> None:
    """The command is named."""
    with pytest.raises(FileNotFoundError, match="vla ground"):
        Scenes.open(tmp_path)


def copy_of(scenes_root: Path, folder: Path) -> Path:
    """A copy of the drawn scenes, for a test to spoil."""
    shutil.copytree(scenes_root / "FetchPush", folder / "FetchPush")
    return folder / "FetchPush"


def test_what_an_interrupted_drawing_lacks_is_refused_then_drawn(
    drawn: tuple[ScenesConfig, Scenes], tmp_path: Path
) -> None:
    """Black frames must not be trained on; the frames that are there are not drawn again."""
    config, scenes = drawn
    folder = copy_of(config.root, tmp_path)
    for key, blank in (("images", 0), ("points", np.nan), ("proprio", np.nan)):
        array = np.load(folder / f"{key}.npy", "r+")
        array[13:40] = blank
        array.flush()
    kept = np.load(folder / "images.npy", "r+")
    kept[0] = 7  # a frame of an episode that is complete
    kept.flush()
    with pytest.raises(ValueError, match="lack 30 of 40 frames"):
        Scenes.open(folder)
    again = make_scenes(replace(config, root=tmp_path))[0]
    np.testing.assert_array_equal(again.images[1:], scenes.images[1:])
    np.testing.assert_array_equal(again.points, scenes.points)
    assert (again.images[0] == 7).all()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("images.npy", "cut", "images.npy cannot be read"),
        ("proprio.npy", "cut", "proprio.npy cannot be read"),
        ("image_points.npy", "other", r"image_points.npy has shape \(2, 2\), scenes.json says"),
        ("points.npy", "gone", "points.npy cannot be read .*No such file"),
        ("scenes.json", "cut", "scenes.json is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_removed(
    drawn: tuple[ScenesConfig, Scenes], tmp_path: Path, name: str, damage: str, message: str
) -> None:
    """As a copy that was interrupted leaves it."""
    config, _ = drawn
    path = copy_of(config.root, tmp_path) / name
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        np.save(path, np.zeros((2, 2), np.float32))
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{message}.*name another folder"):
        make_scenes(replace(config, root=tmp_path))


def test_a_disk_that_is_too_full_is_refused_before_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both numbers; to write to a mapped file would end the process. Then it goes on."""
    config = ScenesConfig(("FetchReach",), 10, tmp_path, image_size=48, workers=1)

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scenes_module.os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"images.npy needs 0 MB, \d+ MB are free.*--scenes"):
            make_scenes(config)
    assert len(make_scenes(config)[0].images) == 10


def test_wrong_settings_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    """Numbers below one, and more episodes than a seed has."""
    for change in ({"workers": 0}, {"frames_per_task": 0}, {"image_size": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            ScenesConfig(**({"tasks": (), "frames_per_task": 10, "root": tmp_path} | change))
    with pytest.raises(ValueError, match="grounding range gives 20000"):
        ScenesConfig(("FetchPush",), 200_001, tmp_path)


def test_a_point_behind_a_camera_is_not_in_view() -> None:
    """Its projection is NaN, which no comparison finds to be outside."""
    task = make_task("FetchPush", 48)
    data = task.make_data()
    episode = task.reset(data, 0)
    projector = Projector(task, ("gripper", "target"))
    assert projector.frame(data, episode).all_in_view
    episode.goal[:] = data.cam_xpos[task.model.camera("front").id] + (1.0, 0.0, 0.0)
    assert not projector.frame(data, episode).all_in_view


def test_targets_move_within_an_episode(drawn: tuple[ScenesConfig, Scenes], tmp_path: Path) -> None:
    """Most frames show one of their own, on the table in FetchPush and above it elsewhere."""
    _, push = drawn
    picking = make_scenes(ScenesConfig(("FetchPickAndPlace",), 60, tmp_path, image_size=48))[0]
    for scenes, in_the_air in ((push, False), (picking, True)):
        target = scenes.points[:, scenes.phrases.index("target")]
        assert len(np.unique(target, axis=0)) > 0.5 * len(target)
        height = target[:, 2] - make_task(scenes.task).table_height_m
        assert height.min() > -1e-6
        assert (height.max() > 0.1) == in_the_air
        assert np.isfinite(scenes.image_points[:, :, :2]).all()  # the fixed cameras see everything
