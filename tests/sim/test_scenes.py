"""Scenes: what the pictures hold is where the files say, and old scenes are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import scenes as scenes_module
from sim.scenes import Scenes, ScenesConfig, make_scenes
from sim.tasks.registry import make_task

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScenesConfig, Scenes]:
    """Forty frames of FetchPush."""
    config = ScenesConfig(("FetchPush",), 35, tmp_path_factory.mktemp("scenes"))
    return config, make_scenes(config)[0]


def test_the_red_pixels_are_at_the_target(drawn: tuple[ScenesConfig, Scenes]) -> None:
    """Picture coordinates, pictures and phrases belong together."""
    _, scenes = drawn
    target = scenes.phrases.index("target")
    away = []
    for images, pictures in zip(scenes.images, scenes.pictures, strict=True):
        for camera in range(2):
            r, g, b = np.moveaxis(images[camera].astype(int), -1, 0)
            red = np.argwhere((r > 2 * g) & (r > 2 * b) & (r > 40))
            if len(red) > 12:
                x, y = (pictures[target, camera] + 1) * 48
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
    with pytest.raises(ValueError, match=f"another {named}: remove that folder"):
        make_scenes(replace(config, **change))


def test_refuses_scenes_that_another_camera_drew(
    drawn: tuple[ScenesConfig, Scenes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wider angle from the same place is another camera."""
    config, _ = drawn
    task = make_task("FetchPush", config.image_size)
    task.model.cam_fovy += 1.0
    monkeypatch.setattr(scenes_module, "make_task", lambda name, size: task)
    with pytest.raises(ValueError, match="another cameras: remove that folder"):
        make_scenes(config)


def test_without_scenes_says_how_to_make_them(tmp_path: Path) -> None:
    """The command is named."""
    with pytest.raises(FileNotFoundError, match="vla ground"):
        Scenes.open(tmp_path)


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
        assert np.isfinite(scenes.pictures[:, :, :2]).all()  # the fixed cameras see everything
