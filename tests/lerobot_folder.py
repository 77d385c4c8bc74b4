"""Data sets as LeRobot writes them, and what other tools and accidents make of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

TOP, SIDE = "observation.images.top", "observation.image"
TASKS = ("put the green brick into the wooden box", "put the red brick into the wooden box")
LEVEL = 16
"""How much brighter each frame of `write_counted` is than the one before."""

Frame = dict[str, Any]


def camera(height: int, width: int, video: bool = False) -> dict[str, Any]:
    """The feature of a camera."""
    names = ["height", "width", "channels"]
    return {"dtype": "video" if video else "image", "shape": (height, width, 3), "names": names}


def vector(names: Sequence[str], dtype: str = "float32") -> dict[str, Any]:
    """The feature of some numbers."""
    return {"dtype": dtype, "shape": (len(names),), "names": [*names]}


def write_episodes(
    root: Path,
    features: Mapping[str, Any],
    episodes: Iterable[Iterable[Frame]],
    fps: int = 30,
    robot: str = "so101",
) -> Path:
    """A data set of these episodes; frames as LeRobot's `add_frame` takes them."""
    dataset = LeRobotDataset.create(
        f"local/{root.name}",
        fps=fps,
        features=dict(features),
        root=root,
        robot_type=robot,
        use_videos=any(feature["dtype"] == "video" for feature in features.values()),
        rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=1),
    )
    _add(dataset, episodes)
    return root


def append_episodes(root: Path, episodes: Iterable[Iterable[Frame]]) -> None:
    """More episodes, by LeRobot's `resume`."""
    encoder = RGBEncoderConfig(vcodec="h264", crf=1)
    _add(LeRobotDataset.resume(f"local/{root.name}", root=root, rgb_encoder=encoder), episodes)


def _add(dataset: LeRobotDataset, episodes: Iterable[Iterable[Frame]]) -> None:
    for episode in episodes:
        for frame in episode:
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()


def counted_features(size: int = 32, video: bool = True, dtype: str = "float32") -> dict[str, Any]:
    """Of a robot with two joints and two cameras."""
    image, numbers = camera(size, size, video), vector(["a", "b"], dtype)
    return {TOP: image, SIDE: image, "observation.state": numbers, "action": numbers}


def counted_episodes(
    lengths: Sequence[int], features: Mapping[str, Any], first: int = 0, offset: float = 0.0
) -> list[list[Frame]]:
    """Frame t of all is grey, its level 16 t; the state is [step, episode] + offset."""
    dtype = features["action"]["dtype"]
    episodes, level = [], first
    for episode, length in enumerate(lengths):
        episodes.append([])
        for step in range(length):
            grey = np.full(features[TOP]["shape"], LEVEL * level, np.uint8)
            frame = {TOP: grey, SIDE: 255 - grey, "task": TASKS[episode % 2]}
            frame["observation.state"] = (np.array([step, episode]) + offset).astype(dtype)
            frame["action"] = (np.array([step + 0.5, -step]) + offset).astype(dtype)
            episodes[-1].append(frame)
            level += 1
    return episodes


def write_counted(
    root: Path,
    lengths: Sequence[int] = (4, 3, 2),
    size: int = 32,
    video: bool = True,
    dtype: str = "float32",
    offset: float = 0.0,
) -> Path:
    """A data set of `counted_episodes`."""
    features = counted_features(size, video, dtype)
    return write_episodes(root, features, counted_episodes(lengths, features, offset=offset))


def edit_tables(root: Path, pattern: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite the tables that fit; types and metadata are those of the changed table."""
    files = sorted(root.glob(pattern))
    assert files, f"no {pattern} in {root}"
    for file in files:
        pq.write_table(change(pq.read_table(file)), file)


def edit_column(
    root: Path, key: str, change: Callable[[list[Any]], Any], pattern: str = "data/*/*.parquet"
) -> None:
    """Rewrite one column of all tables, from its values as Python objects or to an arrow array."""

    def edit(table: pa.Table) -> pa.Table:
        column = change(table[key].to_pylist())
        if isinstance(column, list):
            column = pa.array(column, table.schema.field(key).type)
        return table.set_column(table.schema.get_field_index(key), key, column)

    edit_tables(root, pattern, edit)


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def move_behind_link(path: Path, elsewhere: Path) -> None:
    """Leave a link where a folder or file was."""
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())
