"""A LeRobotDataset v3 folder, decoded once into memory-mapped arrays beside it.

Decoding images for every batch costs far more than a small policy's update; decoded, they cost a
copy. The cache holds derived data only and is built anew whenever the data set changes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from policies.imitation.images import TOLERANCE_S, open_images
from vla.contract import RobotSpec
from vla.data.dataset_contract import read_contract
from vla.data.dataset_info import point_keys
from vla.data.recorded_frames import RecordedFrames, list_files, read_frames

_ARRAYS = ("proprio", "action", "episode", "frame", "task", "points")
_SOURCES = ("data/*/*", "meta/*", "meta/episodes/*/*", "videos/*/*/*", "images/*/*/*")


@dataclass(frozen=True)
class Frames:
    """All frames of one data set, by episode and, within one, in time.

    Attributes:
        spec: the contract it was recorded under.
        images: by camera, uint8 [frames, h, w, 3], on disk.
        proprio: [frames, proprio.dim]; this and the next float32, or float64 where the data set
            stores more than float32 holds.
        action: [frames, action.dim].
        episode: int64 [frames], ascending; numbers may be left out.
        frame: int64 [frames], within the episode, ascending in each.
        instructions: one string a frame.
        points: by name, float32 [frames, 3], world, metres; NaN where one is not known.
    """

    spec: RobotSpec
    images: dict[str, np.ndarray]
    proprio: np.ndarray
    action: np.ndarray
    episode: np.ndarray
    frame: np.ndarray
    instructions: list[str]
    points: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.episode)


def open_frames(
    root: Path, cameras: Sequence[str] = (), tolerance_s: float = TOLERANCE_S
) -> Frames:
    """Open a data set through its cache; build the cache when there is none for its present state.

    Args:
        root: folder of the data set.
        cameras: names of those that are used; by default all, see `read_contract`.
        tolerance_s: how far a frame may be from the nearest image of its video.

    Raises:
        FileNotFoundError: no data set.
        ValueError: an older format, no statistics, or parts that are damaged, missing, contradict
            each other or hold no finite numbers.
        OSError: no room or no right to write the cache.
    """
    spec = read_contract(root, cameras)
    cache = root / ".cache" / _fingerprint(root, spec, tolerance_s)
    with contextlib.suppress(FileNotFoundError):  # none yet, or another process exchanges it
        return _load(cache, spec)
    # Asked again below: another process may have built it while this one waited.
    with _locked(root, cache.parent):
        if not cache.is_dir():
            _build(root, spec, cache, tolerance_s)
        return _load(cache, spec)


def _load(cache: Path, spec: RobotSpec) -> Frames:
    manifest = json.loads((cache / "manifest.json").read_text())
    texts = manifest["instructions"]
    # Numbers into memory, images only mapped: those are gigabytes.
    arrays = {name: np.load(cache / f"{name}.npy") for name in _ARRAYS}
    points = arrays.pop("points")  # [points, frames, 3]
    return Frames(
        spec=spec,
        images={
            camera.name: np.load(_images(cache, index), mmap_mode="r")
            for index, camera in enumerate(spec.cameras)
        },
        instructions=[texts[index] for index in arrays.pop("task")],
        points=dict(zip(manifest["points"], points, strict=True)),
        **arrays,
    )


def _fingerprint(root: Path, spec: RobotSpec, tolerance_s: float) -> str:
    """`<state of the data set>-<what is read of it>`.

    The first part changes whenever a file is added, replaced or rewritten, links included.
    """
    source = hashlib.sha256(b"frame cache 4")  # raise the number when the layout changes
    for path in (path for pattern in _SOURCES for path in list_files(root, pattern)):
        if path.is_file():
            # Size and time, not the content: hashing videos would take minutes at every start.
            stat = path.stat()
            line = f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n"
            source.update(line.encode())
    keys = [spec.features.camera(camera.name) for camera in spec.cameras]
    # Another choice of cameras is another cache beside the first, not in its place.
    read = hashlib.sha256(json.dumps([keys, tolerance_s]).encode())
    return f"{source.hexdigest()[:16]}-{read.hexdigest()[:8]}"


@contextlib.contextmanager
def _locked(root: Path, folder: Path) -> Iterator[None]:
    """Keep other processes from building caches there; explains what hinders writing."""
    try:
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            # Freed by the system when the process dies, so a crash leaves no stale lock.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free space there"
        elif str(error.filename).startswith(str(folder)):
            mend = "make a folder that may be written, with links to its data, meta and videos"
        else:
            raise
        raise OSError(
            error.errno,
            f"cannot decode {root} into {folder}: {error.strerror or error}; {mend}",
        ) from error


def _build(root: Path, spec: RobotSpec, cache: Path, tolerance_s: float) -> None:
    """Fill a folder that becomes the cache at once, when it is complete."""
    state = cache.name.partition("-")[0]
    for other in cache.parent.iterdir():
        # The lock is ours, so these are unfinished, or of an older state of the data set.
        if other.is_dir() and (other.suffix or not other.name.startswith(state)):
            shutil.rmtree(other)
    unfinished = cache.with_suffix(".tmp")
    unfinished.mkdir()
    try:
        _fill(unfinished, read_frames(root), spec, tolerance_s)
        # Atomic within one folder: a cache that has its name is complete.
        unfinished.rename(cache)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(folder: Path, frames: RecordedFrames, spec: RobotSpec, tolerance_s: float) -> None:
    texts = frames.instructions()
    # Each text once; a frame stores its index.
    numbers = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    points = point_keys(frames.info)
    positions = [frames.vectors(key, may_lack=True) for key in points.values()]
    arrays = {
        "proprio": frames.vectors(spec.features.proprio),
        "action": frames.vectors(spec.features.action),
        "episode": frames.episode,
        "frame": frames.frame,
        "task": np.array([numbers[text] for text in texts], np.int64),
        "points": np.array(positions, np.float32).reshape(len(points), len(frames), 3),
    }
    if not (frames.root / "meta" / "contract.json").is_file():
        # Derived limits; those of a recorded contract are the robot's, whatever an expert asked.
        frames.require_within(spec.features.proprio, spec.proprio)
        frames.require_within(spec.features.action, spec.action)
    keys = [spec.features.camera(camera.name) for camera in spec.cameras]
    # All of them are checked before the first is decoded, which may take hours.
    sources = [open_images(frames, key, tolerance_s) for key in keys]
    shapes = [(len(frames), camera.height, camera.width, 3) for camera in spec.cameras]
    _reserve(folder, shapes)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    with Progress(transient=True) as progress:
        for index, source in enumerate(sources):
            images = np.lib.format.open_memmap(_images(folder, index), "r+")
            label = f"decoding {frames.root.name} {spec.cameras[index].name}"
            bar, decoded = progress.add_task(label, total=len(frames)), 0
            for count in source.decode(images):
                progress.advance(bar, count)
                decoded += count
            if decoded != len(frames):
                raise RuntimeError(f"{keys[index]}: {decoded} of {len(frames)} images were decoded")
            images.flush()
    manifest = {"instructions": [*numbers], "points": [*points]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _reserve(folder: Path, shapes: Sequence[tuple[int, ...]]) -> None:
    """Make images of zeros that the disk holds: writing to a mapped file may end in SIGBUS."""
    need, free = sum(map(math.prod, shapes)), shutil.disk_usage(folder).free
    try:
        for path, shape in ((_images(folder, index), shape) for index, shape in enumerate(shapes)):
            np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        reason = f"needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free ({error.strerror})"
        raise OSError(error.errno, reason) from error


def _images(cache: Path, camera: int) -> Path:
    return cache / f"images_{camera}.npy"  # numbered: a camera's name may be no file's
