"""A LeRobotDataset v3 folder, decoded once into memory-mapped arrays beside it.

Decoding pictures for every batch costs far more than a small policy's update; decoded, they cost a
copy. The cache holds derived data only and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from policies.imitation.images import decode_pictures
from vla.contract import RobotSpec
from vla.data.dataset_contract import read_contract

_PRIVILEGED = "privileged.state"
_VECTORS = ("proprio", "action", "privileged")


@dataclass(frozen=True)
class Frames:
    """All frames of one data set, in its order.

    Attributes:
        spec: the contract it was recorded under.
        privileged_names: one name per privileged dimension.
        images: by camera, uint8 [frames, h, w, 3], on disk.
        proprio: float32 [frames, proprio.dim].
        action: float32 [frames, action.dim].
        privileged: float32 [frames, privileged].
        episode: int64 [frames], ascending.
        instructions: one string a frame.
    """

    spec: RobotSpec
    privileged_names: tuple[str, ...]
    images: dict[str, np.ndarray]
    proprio: np.ndarray
    action: np.ndarray
    privileged: np.ndarray
    episode: np.ndarray
    instructions: list[str]

    def __len__(self) -> int:
        return len(self.episode)


def open_frames(root: Path) -> Frames:
    """Open a data set through its cache; build the cache when there is none for its present state.

    Raises:
        FileNotFoundError: no data set.
        ValueError: an older format, no statistics, or parts that are damaged, missing or contradict
            each other.
        OSError: no room or no right to write the cache.
    """
    spec = read_contract(root)
    cache = root / ".cache" / _fingerprint(root)
    if not cache.is_dir():
        with _building(root, cache) as unfinished:
            if unfinished is not None:
                _build(root, spec, unfinished)
    manifest = json.loads((cache / "manifest.json").read_text())
    arrays = {name: np.load(cache / f"{name}.npy") for name in (*_VECTORS, "episode", "task")}
    return Frames(
        spec=spec,
        privileged_names=tuple(manifest["privileged_names"]),
        images={
            camera.name: np.load(_pictures(cache, index), mmap_mode="r")
            for index, camera in enumerate(spec.cameras)
        },
        instructions=[manifest["instructions"][index] for index in arrays.pop("task")],
        **arrays,
    )


def _fingerprint(root: Path) -> str:
    """Changes whenever a file of the data set is added, replaced or rewritten."""
    digest = hashlib.sha256(b"frame cache 2")  # raise the number when the layout changes
    for part in ("data", "meta", "videos"):
        for path in sorted((root / part).rglob("*")):
            if path.is_file():
                stat = path.stat()
                line = f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n"
                digest.update(line.encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _building(root: Path, cache: Path) -> Iterator[Path | None]:
    """A folder to fill, which becomes the cache at once; None when another process has built it."""
    try:
        cache.parent.mkdir(exist_ok=True)
        with (cache.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if cache.is_dir():
                yield None
                return
            # The lock is ours, so whatever else lies here is unfinished or of an older state.
            for stale in cache.parent.iterdir():
                if stale.is_dir():
                    shutil.rmtree(stale)
            unfinished = cache.with_suffix(".tmp")
            unfinished.mkdir()
            try:
                yield unfinished
                unfinished.rename(cache)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot decode {root} into {cache.parent}: {error.strerror or error}. "
            "Free space, or copy the data set to a folder that may be written",
        ) from error


def _build(root: Path, spec: RobotSpec, folder: Path) -> None:
    info = json.loads((root / "meta" / "info.json").read_text())
    shapes = [(info["total_frames"], c.height, c.width, 3) for c in spec.cameras]
    need, free = sum(map(math.prod, shapes)), shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
    table = _read_table(root, info["total_frames"])
    columns = {"proprio": spec.features.proprio, "action": spec.features.action}
    arrays = {name: _matrix(table[column]) for name, column in columns.items()}
    arrays |= {name: table[f"{name}_index"].to_numpy() for name in ("episode", "task")}
    privileged_names: list[str] = []
    if _PRIVILEGED in info["features"]:  # only our own recordings know the simulator's state
        privileged_names = info["features"][_PRIVILEGED]["names"]
        arrays["privileged"] = _matrix(table[_PRIVILEGED])
    else:
        arrays["privileged"] = np.zeros((len(table), 0), np.float32)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    with Progress(transient=True) as progress:
        for index, (camera, shape) in enumerate(zip(spec.cameras, shapes, strict=True)):
            path = _pictures(folder, index)
            images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            bar = progress.add_task(f"decoding {root.name} {camera.name}", total=len(table))
            key = spec.features.camera(camera.name)
            for count in decode_pictures(root, info, key, table, images):
                progress.advance(bar, count)
            images.flush()
    tasks = pq.read_table(root / "meta" / "tasks.parquet").sort_by("task_index")
    manifest = {
        "privileged_names": privileged_names,
        "instructions": tasks[_text_column(tasks)].to_pylist(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _pictures(cache: Path, camera: int) -> Path:
    return cache / f"images_{camera}.npy"  # numbered: a camera's name may be no file's


def _text_column(tasks: pa.Table) -> str:
    """LeRobot's writer names it "task", an unnamed pandas index "__index_level_0__"."""
    return next(name for name in tasks.column_names if name != "task_index")


def _read_table(root: Path, frames: int) -> pa.Table:
    files = sorted((root / "data").rglob("*.parquet"))
    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"data set {root} holds a damaged file: {error}. Delete the folder and record or copy "
            "it again"
        ) from error
    if not np.array_equal(table["index"].to_numpy(), np.arange(frames)):
        raise ValueError(
            f"data set {root} lists {frames} frames but holds {len(table)}: it was interrupted. "
            "Run the same `vla collect` again, which mends it, or copy it again"
        )
    return table


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    values: Any = column.combine_chunks()
    if hasattr(values, "flatten"):  # a list a frame; of a vector of one number LeRobot keeps that
        values = values.flatten()
    return values.to_numpy().reshape(len(column), -1).astype(np.float32)
