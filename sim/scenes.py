"""Pictures of scenes with the positions of what is in them: data for grounding words in pictures.

In two episodes of five the arm babbles: it visits random points, blocks and targets, opening and
closing its fingers. In the others it follows the scripted expert, with noise. So the pictures
cover what a policy may see. No action is kept: these are not demonstrations. An episode whose
things leave the fixed cameras' pictures begins anew. In two frames of three the target is shown
elsewhere, at times about the object: an episode has ten frames, and one target each would be few.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from sim.render import CameraRenderer, project
from sim.seeds import grounding_seeds
from sim.tasks.base import Episode, Task
from sim.tasks.registry import make_task

_STEPS = 40
_FRAME_EVERY = 4
_FRAMES_PER_EPISODE = _STEPS // _FRAME_EVERY
_FIXED_CAMERAS = 2
_MOST_RESTARTS = 10
_TARGET_MOVED = 2 / 3


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
    """

    tasks: tuple[str, ...]
    frames_per_task: int
    root: Path
    image_size: int = 96
    workers: int = os.cpu_count() or 1
    seed: int = 0


@dataclass(frozen=True)
class Scenes:
    """Frames of one task, memory-mapped.

    Attributes:
        task: registry name.
        images: uint8 [n, cameras, h, w, 3].
        proprio: float32 [n, proprio].
        points: float32 [n, phrases, 3], world, metres; NaN where a phrase names nothing.
        pictures: float32 [n, phrases, cameras, 2], the points in the pictures: x to the right and
            y down, from -1 to 1; NaN outside of the picture, hidden or not.
        phrases: the names of `points`, "gripper" first.
    """

    task: str
    images: np.ndarray
    proprio: np.ndarray
    points: np.ndarray
    pictures: np.ndarray
    phrases: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path | str) -> Scenes:
        """Open one task's folder.

        Raises:
            FileNotFoundError: nothing complete is there.
        """
        folder = Path(folder)
        about = folder / "scenes.json"
        if not about.is_file():
            raise FileNotFoundError(f"no scenes in {folder}: make them with `vla ground`")
        meta = json.loads(about.read_text(encoding="utf-8"))
        return cls(
            task=meta["task"],
            images=np.load(folder / "images.npy", mmap_mode="r"),
            proprio=np.load(folder / "proprio.npy"),
            points=np.load(folder / "points.npy"),
            pictures=np.load(folder / "pictures.npy"),
            phrases=tuple(meta["phrases"]),
        )


def make_scenes(config: ScenesConfig) -> list[Scenes]:
    """Draw what is missing below `config.root` and open everything; an equal seed, equal frames.

    Raises:
        ValueError: a folder holds scenes that were drawn in another way.
    """
    opened = []
    for name in config.tasks:
        folder = config.root / name
        task = make_task(name, config.image_size)
        about = _describe(config, task)
        if (folder / "scenes.json").is_file():
            drawn = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
            if differing := [key for key in about if drawn.get(key) != about[key]]:
                raise ValueError(
                    f"the scenes in {folder} were drawn with another {', '.join(differing)}: "
                    "remove that folder, or name another one"
                )
        else:
            _draw_task(config, task, about, folder)
        opened.append(Scenes.open(folder))
    return opened


def _describe(config: ScenesConfig, task: Task) -> dict[str, Any]:
    """What decides the frames; kept beside them."""
    cameras = {camera.name: _stands(task.model.camera(camera.name)) for camera in task.spec.cameras}
    return {
        "task": task.name,
        "frames": -(-config.frames_per_task // _FRAMES_PER_EPISODE) * _FRAMES_PER_EPISODE,
        "image_size": config.image_size,
        "seed": config.seed,
        "targets moved": _TARGET_MOVED,
        "cameras": cameras,
        "phrases": _phrases(task),
    }


def _stands(camera: Any) -> list[float]:
    """Position, orientation and angle of one of MuJoCo's cameras, to the micrometre."""
    numbers = (*camera.pos, *camera.quat, *camera.fovy)
    return [round(float(number), 6) for number in numbers]


def _draw_task(config: ScenesConfig, task: Task, about: dict[str, Any], folder: Path) -> None:
    count, phrases = about["frames"], about["phrases"]
    folder.mkdir(parents=True, exist_ok=True)
    size, cameras = config.image_size, len(task.spec.cameras)
    shapes = {
        "images": ((count, cameras, size, size, 3), np.uint8),
        "proprio": ((count, task.spec.proprio.dim), np.float32),
        "points": ((count, len(phrases), 3), np.float32),
        "pictures": ((count, len(phrases), cameras, 2), np.float32),
    }
    for key, (shape, dtype) in shapes.items():
        np.lib.format.open_memmap(folder / f"{key}.npy", "w+", dtype, shape).flush()
    episodes = range(count // _FRAMES_PER_EPISODE)
    parts = [list(episodes)[worker :: config.workers] for worker in range(config.workers)]
    jobs = [(config, task.name, folder, phrases, part) for part in parts if part]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        pool.starmap(_draw_episodes, jobs)
    # Written last: a folder without it is incomplete and is drawn again.
    temporary = folder / "scenes.json.part"
    temporary.write_text(json.dumps(about), encoding="utf-8")
    temporary.replace(folder / "scenes.json")


def _phrases(task: Task) -> list[str]:
    data = task.make_data()
    names = task.points(data, task.reset(data, 0))
    return ["gripper", "target", "object", *sorted(set(names) - {"gripper", "target", "object"})]


def _draw_episodes(
    config: ScenesConfig, name: str, folder: Path, phrases: list[str], episodes: list[int]
) -> None:
    """Draw these episodes into the task's files."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
    task = make_task(name, config.image_size)
    cameras = tuple(camera.name for camera in task.spec.cameras)
    renderer = CameraRenderer(task.model, cameras, config.image_size)
    keys = ("images", "proprio", "points", "pictures")
    arrays = {key: np.load(folder / f"{key}.npy", "r+") for key in keys}
    data = task.make_data()
    seeds = grounding_seeds(config.seed, max(episodes) + 1)
    for index in episodes:
        seed = seeds[index]
        rng = np.random.default_rng([config.seed, index])
        babbler = _Babbler(rng) if rng.random() < 0.4 else _NoisyExpert(rng)
        episode, step, restarts = task.reset(data, seed), 0, 0
        while step < _STEPS:
            task.step(data, episode, babbler.action(task, data, episode))
            points, pictures, is_in_view = _look(task, data, episode, phrases, cameras)
            if not is_in_view and restarts < _MOST_RESTARTS:
                episode, restarts = task.reset(data, seed), restarts + 1
                continue
            step += 1
            if step % _FRAME_EVERY:
                continue
            row = index * _FRAMES_PER_EPISODE + step // _FRAME_EVERY - 1
            shown = episode
            if rng.random() < _TARGET_MOVED:
                moved = task.move_target(data, episode, rng)
                *seen, is_in_view = _look(task, data, moved, phrases, cameras)
                if is_in_view:
                    shown, (points, pictures) = moved, seen
            task.place_markers(data, shown)
            renderer.render(data, {c: arrays["images"][row, i] for i, c in enumerate(cameras)})
            arrays["proprio"][row] = task.proprio(data)
            arrays["points"][row] = points
            outside = (np.abs(pictures) > 1).any(-1, keepdims=True)
            arrays["pictures"][row] = np.where(outside, np.nan, pictures)
    for array in arrays.values():
        array.flush()
    renderer.close()


def _look(
    task: Task, data: mujoco.MjData, episode: Episode, phrases: list[str], cameras: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Points [phrases, 3], their places [phrases, cameras, 2]; do the fixed cameras see all?"""
    named = task.points(data, episode)
    points = np.array([named.get(phrase, np.full(3, np.nan)) for phrase in phrases])
    pictures = np.stack([project(task.model, data, c, points) for c in cameras], axis=1)
    fixed = pictures[:, :_FIXED_CAMERAS][np.isfinite(points).all(1)]
    return points, pictures, not (np.abs(fixed) > 1).any()


class _NoisyExpert:
    """Follows the scripted expert; much or little noise, which lasts for some steps, is added."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._scale = rng.uniform(0.0, 0.3)
        self._noise = np.zeros(4)

    def action(self, task: Task, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Float32 [4]: dx, dy, dz, gripper."""
        # Not on the gripper: blocks must be carried, too.
        self._noise[:3] = 0.8 * self._noise[:3] + self._rng.normal(0.0, self._scale, 3)
        wanted = task.expert_action(data, episode) + self._noise
        return np.clip(wanted, -1.0, 1.0).astype(np.float32)


class _Babbler:
    """Moves towards one random waypoint after another."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._left = 0
        self._waypoint = np.zeros(3)
        self._grip = 1.0

    def action(self, task: Task, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Float32 [4]: dx, dy, dz, gripper."""
        rng = self._rng
        points = task.points(data, episode)
        if self._left == 0:
            self._left = int(rng.integers(4, 10))
            self._choose(points)
        self._left -= 1
        pull = np.clip(10.0 * (self._waypoint - points["gripper"]), -1.0, 1.0)
        noisy = np.clip(pull + rng.normal(0.0, 0.2, 3), -1.0, 1.0)
        return np.append(noisy, self._grip).astype(np.float32)

    def _choose(self, points: dict[str, np.ndarray]) -> None:
        rng = self._rng
        at_object = "object" in points and math.dist(points["gripper"], points["object"]) < 0.02
        if at_object and self._grip > 0 and rng.random() < 0.7:
            self._grip, self._left = -1.0, 3  # close where it is; the waypoint stays meanwhile
            return
        if rng.random() < 0.5:
            self._grip = rng.choice([-1.0, 1.0])
        name = rng.choice([name for name in points if name != "gripper"])
        if rng.random() < 0.65:
            spread_m = rng.choice([0.005, 0.05])
            self._waypoint = points[name] + rng.normal(0.0, spread_m, 3)
            if rng.random() < 0.3:
                self._waypoint[2] += rng.uniform(0.03, 0.12)
        else:
            self._waypoint = points["target"] + rng.uniform(-0.25, 0.25, 3)
        self._waypoint[2] = np.clip(self._waypoint[2], 0.42, 0.9)
