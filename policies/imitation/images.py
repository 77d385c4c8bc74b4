"""The pictures of one camera of a LeRobotDataset: PNGs in its tables, or frames of its videos."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

_AT_ONCE = 64
"""Frames a call of the video decoder; it holds them all, uncompressed."""
_TOLERANCE_S = 1e-4  # how far LeRobot itself lets a frame be from its time


def decode_pictures(
    root: Path, info: Mapping[str, Any], key: str, table: pa.Table, out: np.ndarray
) -> Iterator[int]:
    """Decode every frame of a camera.

    Args:
        root: folder of the data set.
        info: its `meta/info.json`.
        key: the feature that holds the pictures.
        table: the columns of all frames, in order.
        out: uint8 [frames, height, width, 3] that receives them.

    Yields:
        How many frames the last step decoded.

    Raises:
        ValueError: a picture or a video is missing, damaged, too short or of another size.
    """
    decode = _from_video if info["features"][key]["dtype"] == "video" else _from_table
    for rows, pictures in decode(root, info, key, table):
        if pictures.shape[1:] != out.shape[1:]:
            raise ValueError(
                f"data set {root}: {key} has pictures of {pictures.shape[1:]}, "
                f"its contract says {out.shape[1:]}"
            )
        out[rows] = pictures
        yield len(pictures)


def _from_table(
    root: Path, info: Mapping[str, Any], key: str, table: pa.Table
) -> Iterator[tuple[slice, np.ndarray]]:
    column = table[key]
    for row in range(len(column)):
        encoded = column[row]["bytes"]
        try:
            picture = Image.open(io.BytesIO(encoded.as_buffer())).convert("RGB")
        except (UnidentifiedImageError, OSError, AttributeError) as error:
            raise ValueError(
                f"data set {root}: frame {row} of {key} is damaged: {error}"
            ) from error
        yield slice(row, row + 1), np.asarray(picture)[None]


def _from_video(
    root: Path, info: Mapping[str, Any], key: str, table: pa.Table
) -> Iterator[tuple[slice, np.ndarray]]:
    # LeRobot takes seconds to import, and a data set without videos needs none of it.
    from lerobot.datasets.video_utils import decode_video_frames

    episode = table["episode_index"].to_numpy()
    time_s = table["timestamp"].to_numpy().astype(np.float64)
    for place in _places(root, key):
        path = root / info["video_path"].format(video_key=key, **place["file"])
        begin, end = np.searchsorted(episode, [place["episode"], place["episode"] + 1])
        for start in range(begin, end, _AT_ONCE):
            rows = slice(start, min(start + _AT_ONCE, end))
            try:
                frames = decode_video_frames(
                    path,
                    (place["from_s"] + time_s[rows]).tolist(),
                    _TOLERANCE_S,
                    backend="pyav",
                    return_uint8=True,
                )
            except (FFmpegError, ValueError, OSError) as error:
                raise ValueError(
                    f"data set {root}: {path.relative_to(root)} does not hold the pictures of "
                    f"episode {place['episode']}; it is missing, damaged or cut short, so copy it "
                    f"again: {str(error).splitlines()[0]}"
                ) from error
            yield rows, frames.permute(0, 2, 3, 1).numpy()


def _places(root: Path, key: str) -> list[dict[str, Any]]:
    """Where each episode's pictures lie: file, and seconds into it."""
    columns = {name: f"videos/{key}/{name}" for name in ("chunk_index", "file_index")}
    start = f"videos/{key}/from_timestamp"
    files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    wanted = ["episode_index", start, *columns.values()]
    rows = [row for file in files for row in pq.read_table(file, columns=wanted).to_pylist()]
    return [
        {
            "episode": row["episode_index"],
            "from_s": row[start],
            "file": {name: row[column] for name, column in columns.items()},
        }
        for row in rows
    ]
