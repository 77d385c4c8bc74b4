"""Images of scenes with the positions of what is in them: data for grounding words in images.

In two episodes of five the arm moves at random, see `Task.random_motion`; in the others it follows
the scripted expert, with noise. So the images cover what a policy may meet. No action is kept:
these are no demonstrations. An episode whose objects leave the fixed cameras' images begins anew.
In two frames of three the target is shown elsewhere, at times near the object: an episode has ten
frames, and one target each would be few.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vla_runtime.atomic_folder import write_atomically
from vla_runtime.main_guard import exit_without_main_guard

from sim.scene_episodes import FRAMES_PER_EPISODE, TARGET_MOVED, Projector, play
from sim.seeds import grounding_seeds
from sim.tasks.base import Task, TaskDeclarationError
from sim.tasks.registry import TaskChoice, find_task, short_name
from sim.worker_channel import WorkerChannel
from sim.worker_process import WorkerProcess
from vla.settings import require_numbers

_ANOTHER_FOLDER = "name another folder with --scenes"


@dataclass(frozen=True)
class ScenesConfig:
    """What to draw.

    Attributes:
        tasks: registry names.
        frames_per_task: rounded up to whole episodes of 10 frames.
        root: one folder a task is written below it.
        image_size: pixels a side.
        workers: processes.
        seed: of the motion and, see `sim.seeds.grounding_seeds`, of the initial states.

    Raises:
        ValueError: a number below 1, or more initial states than the seed has.
    """

    tasks: tuple[str, ...]
    frames_per_task: int
    root: Path
    image_size: int = 96
    workers: int = os.cpu_count() or 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("frames_per_task", "image_size", "workers"))
        grounding_seeds(self.seed, self.episodes)

    @property
    def episodes(self) -> int:
        """Episodes of each task."""
        # Rounded up.
        return -(-self.frames_per_task // FRAMES_PER_EPISODE)


@dataclass(frozen=True)
class Scenes:
    """Frames of one task, memory-mapped.

    Attributes:
        task: registry name.
        images: uint8 [n, cameras, h, w, 3].
        proprio: float32 [n, proprio].
        points: float32 [n, phrases, 3], world, metres; NaN where a phrase names nothing.
        image_points: float32 [n, phrases, cameras, 2], the points in the images: x to the right and
            y down, from -1 to 1; NaN outside of the image, hidden or not.
        phrases: the names of `points`, "gripper" first.
    """

    task: str
    images: np.ndarray
    proprio: np.ndarray
    points: np.ndarray
    image_points: np.ndarray
    phrases: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path | str) -> Scenes:
        """Open one task's folder.

        Raises:
            FileNotFoundError: no scenes are there.
            ValueError: files are damaged, or frames are missing; the message names them.
        """
        folder = Path(folder)
        about = _read_about(folder)
        if about is None:
            raise FileNotFoundError(f"no scenes in {folder}: make them with `vla ground`")
        arrays = _open_arrays(folder, about)
        if missing := _missing_episodes(arrays["proprio"]):
            raise ValueError(
                f"the scenes in {folder} lack {len(missing) * FRAMES_PER_EPISODE} of "
                f"{about['frames']} frames, since drawing them was interrupted: `vla ground` with "
                "the same settings draws what is missing"
            )
        return cls(task=about["task"], phrases=tuple(about["phrases"]), **arrays)


def make_scenes(config: ScenesConfig) -> list[Scenes]:
    """Draw what is missing below `config.root` and open everything; an equal seed, equal frames.

    Raises:
        OSError: the disk is too full.
        ValueError: a folder holds scenes that were drawn in another way, or damaged ones.
        WorkerError: a drawing process failed.
    """
    # A worker that imports an unguarded script would wait for its parent's lock, for ever.
    exit_without_main_guard()
    opened = []
    for name in config.tasks:
        folder = config.root / short_name(name)
        choice = find_task(name)
        task = choice.make(config.image_size)
        if not task.can_be_grounded():
            raise TaskDeclarationError(
                f"{name} cannot be grounded: define points in its class, with the positions that "
                "its instructions name"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            # Another process may be drawing them: then they are read once it is done. Freed by the
            # system when that process ends.
            fcntl.flock(lock, fcntl.LOCK_EX)
            _draw(config, choice, task, folder)
        # Opened anew, which checks that every frame is there.
        opened.append(Scenes.open(folder))
    return opened


def _draw(config: ScenesConfig, choice: TaskChoice, task: Task, folder: Path) -> None:
    about = _describe(config, task)
    drawn = _read_about(folder)
    if drawn is None:
        _make_arrays(folder, about)
    # Compared by what decides the pixels: frames of other cameras or seeds must not mix in one
    # file.
    elif differing := [key for key in about if drawn.get(key) != about[key]]:
        raise ValueError(
            f"the scenes in {folder} were drawn with another {', '.join(differing)}: "
            f"{_ANOTHER_FOLDER}"
        )
    _draw_missing(config, choice, about, folder)


def _describe(config: ScenesConfig, task: Task) -> dict[str, Any]:
    """What decides the frames and how they are kept; written beside them."""
    model, _ = task.physics(task.make_data())
    cameras = {camera.name: camera.pose(model) for camera in task.cameras}
    return {
        "task": task.name,
        "frames": config.episodes * FRAMES_PER_EPISODE,
        "image_size": config.image_size,
        "seed": config.seed,
        "targets moved": TARGET_MOVED,
        "cameras": cameras,
        "proprio": task.spec.proprio.dim,
        "phrases": _phrases(task),
    }


def _shapes(about: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Array name → shape, from what `_describe` said."""
    count, size = about["frames"], about["image_size"]
    cameras, phrases = len(about["cameras"]), len(about["phrases"])
    return {
        "images": (count, cameras, size, size, 3),
        "proprio": (count, about["proprio"]),
        "points": (count, phrases, 3),
        "image_points": (count, phrases, cameras, 2),
    }


def _phrases(task: Task) -> list[str]:
    data = task.make_data()
    names = task.points(data, task.reset(data, 0))
    # A fixed order first and the rest sorted: a column means the same in every run.
    return ["gripper", "target", "object", *sorted(set(names) - {"gripper", "target", "object"})]


# --- files


def _read_about(folder: Path) -> dict[str, Any] | None:
    """What `_describe` said when these scenes were begun; None where there are none."""
    path = folder / "scenes.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {_ANOTHER_FOLDER}") from error


def _make_arrays(folder: Path, about: dict[str, Any]) -> None:
    """Files for all frames, none of them drawn yet.

    Raises:
        OSError: the disk is too full for all of them.
    """
    for key, shape in _shapes(about).items():
        kind = np.uint8 if key == "images" else np.float32
        array = np.lib.format.open_memmap(folder / f"{key}.npy", "w+", kind, shape)
        # All space before the first frame: a full disk is refused here, not after an hour.
        _reserve(folder / f"{key}.npy")
        if key != "images":
            array[...] = np.nan  # of proprio: the mark of a frame that is still to be drawn
        array.flush()
    # Written last: without it the arrays may be incomplete and are made again.
    write_atomically(folder / "scenes.json", json.dumps(about))


def _reserve(path: Path) -> None:
    """Have the disk hold a whole file, since writing to one that is mapped ends in SIGBUS."""
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"{path} needs {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free "
            f"({error.strerror}): {_ANOTHER_FOLDER}",
        ) from error


def _open_arrays(folder: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by name, the images memory-mapped.

    Raises:
        ValueError: a file is missing, cut short or of another shape.
    """
    arrays = {}
    for key, shape in _shapes(about).items():
        path = folder / f"{key}.npy"
        try:
            # Images are far too large for memory; the other arrays are small and read often.
            arrays[key] = np.load(path, mmap_mode="r" if key == "images" else None)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read ({error}): {_ANOTHER_FOLDER}") from error
        if arrays[key].shape != shape:
            raise ValueError(
                f"{path} has shape {arrays[key].shape}, scenes.json says {shape}: {_ANOTHER_FOLDER}"
            )
    return arrays


def _missing_episodes(proprio: np.ndarray) -> list[int]:
    """Episodes of which not every frame was drawn; a frame's proprioception is written last."""
    # [frames, proprio] to [episodes, frames of an episode]
    drawn = np.isfinite(proprio).all(1).reshape(-1, FRAMES_PER_EPISODE).all(1)
    return np.flatnonzero(~drawn).tolist()


# --- drawing


def _draw_missing(
    config: ScenesConfig, choice: TaskChoice, about: dict[str, Any], folder: Path
) -> None:
    episodes = _missing_episodes(_open_arrays(folder, about)["proprio"])
    # Interleaved, so that every process has about as many.
    shares = [episodes[worker :: config.workers] for worker in range(config.workers)]
    job = _Job(config, choice, folder, about["phrases"])
    workers = [
        WorkerProcess(f"drawing process {index}", _draw_episodes, job, share)
        for index, share in enumerate(shares)
        if share
    ]
    try:
        for worker in workers:
            worker.receive()
    finally:
        for worker in workers:
            worker.join()


@dataclass(frozen=True)
class _Job:
    """What every drawing process needs to know."""

    config: ScenesConfig
    task: TaskChoice
    folder: Path
    phrases: list[str]


def _draw_episodes(channel: WorkerChannel, job: _Job, episodes: list[int]) -> None:
    """Draw these episodes into the task's files."""
    task = job.task.make(job.config.image_size)
    cameras = tuple(camera.name for camera in task.spec.cameras)
    renderer = task.make_renderer(cameras, job.config.image_size)
    keys = ("images", "points", "image_points", "proprio")
    # Every process maps the same files and writes to rows of its own.
    arrays = {key: np.load(job.folder / f"{key}.npy", "r+") for key in keys}
    data = task.make_data()
    projector = Projector(task, job.phrases)
    seeds = grounding_seeds(job.config.seed, job.config.episodes)
    for index in episodes:
        # By episode, not by process: the number of workers changes no frame.
        rng = np.random.default_rng([job.config.seed, index])
        row = index * FRAMES_PER_EPISODE
        for frame in play(task, data, seeds[index], rng, projector):
            renderer.render(data, {c: arrays["images"][row, i] for i, c in enumerate(cameras)})
            arrays["points"][row] = frame.points
            # [phrases, cameras, 1]; NaN compares as False and stays NaN.
            outside = (np.abs(frame.image_points) > 1).any(-1, keepdims=True)
            arrays["image_points"][row] = np.where(outside, np.nan, frame.image_points)
            arrays["proprio"][row] = task.proprio(data)  # last: it says that the frame is complete
            row += 1
    for array in arrays.values():
        array.flush()
    renderer.close()
    channel.send(("ok", None))
