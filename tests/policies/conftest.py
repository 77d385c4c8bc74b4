"""Small data sets that several tests copy and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same frames as videos and as images in the tables."""
    # Here, so that the GPU tests of this folder run where LeRobot is not installed.
    from lerobot_folder import write_counted

    root = tmp_path_factory.mktemp("written")
    return {kind: write_counted(root / kind, video=kind == "video") for kind in ("video", "image")}


@pytest.fixture
def video(written: dict[str, Path], tmp_path: Path) -> Path:
    """A copy with videos."""
    return shutil.copytree(written["video"], tmp_path / "so101")


@pytest.fixture
def image(written: dict[str, Path], tmp_path: Path) -> Path:
    """A copy with images in the tables."""
    return shutil.copytree(written["image"], tmp_path / "so101")
