"""Scripted demonstrations into a LeRobotDataset v3 that survives a kill at any moment.

Worker processes play episodes and leave each one, whole, in `<root>/.recording/`. The parent writes
them in groups, in the order of their seeds, with LeRobot's own writer into a staging folder, and
then moves the new files in. So the folder is a readable data set between any two groups, equal
settings give equal episodes in equal order, and a second run continues where the first stopped.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sim.recording_store import EpisodeKey, RecordingStore
from sim.render import CameraRenderer
from sim.tasks.base import Task
from sim.tasks.registry import make_task

# Evaluation draws its episodes from here on, so that no policy has seen them in training.
FIRST_EVALUATION_SEED = 1_000_000

# Episodes tried for one that is kept, before the expert is declared unfit.
_ATTEMPTS_PER_EPISODE = 20

# Episodes a write: fewer make more and smaller files, more make the folder lag behind.
_GROUP = 25

# Measured on Fetch at 96 px: a picture takes 0.07 of its raw bytes as PNG; twice that, for safety.
_PNG_RATIO = 0.15


@dataclass(frozen=True)
class RecordConfig:
    """What to record, and where.

    Attributes:
        task: registry names, one or several; they share one data set.
        episodes: successful episodes to keep of each task.
        root: folder of the data set; by default data/<task>.
        first_seed: seeds count up from here; training seeds stay below 1,000,000.
        noise: standard deviation of the Gaussian noise on executed actions, in action units; the
            recorded action is the expert's own at the state that the noise led to.
        noisy_fraction: share of the episodes that are played with noise.
        hold_steps: control steps that an episode goes on once success holds, so that staying is
            shown too.
        image_size: pictures are square, in pixels.
        workers: processes that simulate and draw.
    """

    task: tuple[str, ...]
    episodes: int = 50
    root: Path | None = None
    first_seed: int = 0
    noise: float = 0.2
    noisy_fraction: float = 0.5
    hold_steps: int = 10
    image_size: int = 96
    workers: int = 2

    def __post_init__(self) -> None:
        if not self.task or len(set(self.task)) != len(self.task):
            raise ValueError(f"task needs one or several different names, got {self.task}")
        if self.episodes < 1 or self.workers < 1 or self.hold_steps < 0 or self.image_size < 1:
            raise ValueError(f"episodes, workers, hold_steps and image_size must count: {self}")
        if not (0.0 <= self.noisy_fraction <= 1.0 and 0.0 <= self.noise < np.inf):
            raise ValueError(f"noise must be >= 0 and noisy_fraction in [0, 1]: {self}")
        if not 0 <= self.first_seed <= FIRST_EVALUATION_SEED - self.attempts:
            raise ValueError(
                f"seeds {self.first_seed}..{self.first_seed + self.attempts - 1} leave the "
                f"training range 0..{FIRST_EVALUATION_SEED - 1} (evaluation uses what follows); "
                "choose a smaller first_seed or fewer episodes"
            )

    @property
    def folder(self) -> Path:
        """Where the data set lies."""
        return self.root or Path("data") / "+".join(self.task)

    @property
    def attempts(self) -> int:
        """Most seeds tried for one task."""
        return self.episodes * _ATTEMPTS_PER_EPISODE

    @property
    def settings(self) -> dict[str, object]:
        """What must be equal to continue a recording; more episodes may always be added."""
        return {
            "task": list(self.task),
            "first_seed": self.first_seed,
            "noise": self.noise,
            "noisy_fraction": self.noisy_fraction,
            "hold_steps": self.hold_steps,
            "image_size": self.image_size,
        }


@dataclass(frozen=True)
class RecordSummary:
    """What a recording left behind.

    Attributes:
        root: folder of the data set.
        episodes: episodes in it.
        frames: frames in it.
        added: episodes that this run added.
        failed: task → seeds whose episode did not end in success and was dropped.
        wall_s: seconds this run took.
    """

    root: Path
    episodes: int
    frames: int
    added: int
    failed: dict[str, tuple[int, ...]]
    wall_s: float


def record(config: RecordConfig) -> RecordSummary:
    """Record until `config.episodes` successful episodes of each task lie in the folder.

    Raises:
        ValueError: unknown task, settings that differ from the folder's, tasks whose contracts
            differ, or an expert that hardly ever succeeds.
        OSError: the disk is full, or the folder cannot be written.
    """
    start_s = time.monotonic()
    tasks = [make_task(name, config.image_size) for name in config.task]
    with (
        _explained(config.folder),
        RecordingStore.open(config.folder, config.settings, tasks) as store,
    ):
        before = len(store.episodes)
        _require_space(config, tasks[0], store)
        _record_missing(config, store)
        failed = {
            name: tuple(sorted(seed for key, seed in store.failed if key == name))
            for name in config.task
        }
        return RecordSummary(
            root=config.folder,
            episodes=len(store.episodes),
            frames=store.frames,
            added=len(store.episodes) - before,
            failed=failed,
            wall_s=time.monotonic() - start_s,
        )


def _record_missing(config: RecordConfig, store: RecordingStore) -> None:
    plans = [_SeedPlan(name, config, store) for name in config.task]
    if all(plan.finished for plan in plans):
        return
    # spawn: a forked child would inherit threads and, at worst, a GL context
    pool = ProcessPoolExecutor(
        config.workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )
    try:
        with _progress() as bar:
            _drive(config, store, plans, pool, bar)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _drive(
    config: RecordConfig,
    store: RecordingStore,
    plans: list[_SeedPlan],
    pool: ProcessPoolExecutor,
    bar: Progress,
) -> None:
    """Keep the workers busy and write each group as soon as it is complete."""
    bars = {
        plan.name: bar.add_task(plan.name, total=config.episodes, completed=plan.done)
        for plan in plans
    }
    for plan in plans:
        running: dict[Future[bool], EpisodeKey] = {}
        while True:
            while len(running) < 2 * config.workers and (seed := plan.next_seed()) is not None:
                future = pool.submit(_play_into, config, plan.name, seed, store.spool)
                running[future] = (plan.name, seed)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                store.note(running.pop(future), succeeded=future.result())
            bar.update(bars[plan.name], completed=plan.done)
            if len(ready := plan.ready()) >= _GROUP:
                store.write(ready)
        store.write(plan.ready())


class _SeedPlan:
    """Which seeds of one task to play: the first ones upwards until enough succeeded.

    A failure adds the next seed, so exactly the first `episodes` successes in the order of the
    seeds are kept, whatever the number of workers and however often the recording was stopped.
    """

    def __init__(self, name: str, config: RecordConfig, store: RecordingStore):
        self.name = name
        self._config = config
        self._store = store
        self._written = sum(task == name for task, _ in store.episodes)
        known = [seed for task, seed in (*store.succeeded, *store.failed) if task == name]
        self._seeds = range(config.first_seed, config.first_seed + config.attempts)
        self._submitted = set(known)

    @property
    def done(self) -> int:
        """Episodes that succeeded, written or waiting."""
        return sum(task == self.name for task, _ in self._store.succeeded)

    @property
    def finished(self) -> bool:
        """Nothing is left to play or to write."""
        return sum(task == self.name for task, _ in self._store.episodes) >= self._config.episodes

    def next_seed(self) -> int | None:
        """A seed that nobody plays yet, or None when those in hand are enough.

        Raises:
            ValueError: the expert failed too often.
        """
        failures = sum(task == self.name for task, _ in self._store.failed)
        if len(self._submitted) - failures >= self._config.episodes:
            return None
        seed = next((seed for seed in self._seeds if seed not in self._submitted), None)
        if seed is None:
            raise ValueError(
                f"the expert of {self.name} succeeded in {self.done} of {len(self._submitted)} "
                f"episodes, {self._config.episodes} were asked for; lower --noise (now "
                f"{self._config.noise}) or --noisy-fraction (now {self._config.noisy_fraction})"
            )
        self._submitted.add(seed)
        return seed

    def ready(self) -> list[EpisodeKey]:
        """Successes not yet written, up to the first seed that is still being played."""
        keys = []
        for seed in self._seeds:
            key = (self.name, seed)
            if key in self._store.succeeded and key not in self._store.episodes:
                keys.append(key)
            elif key not in self._store.succeeded and key not in self._store.failed:
                break
        return keys


@dataclass(frozen=True)
class _Stage:
    task: Task
    renderer: CameraRenderer


@functools.cache
def _stage(name: str, image_size: int) -> _Stage:
    task = make_task(name, image_size)
    cameras = [camera.name for camera in task.spec.cameras]
    return _Stage(task, CameraRenderer(task.model, cameras, image_size))


def _prepare_worker() -> None:
    # One process a core: threads of the software renderer would only be in each other's way.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A parent that is killed cannot tell its workers, who would wait for work for ever.
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _play_into(config: RecordConfig, name: str, seed: int, spool: Path) -> bool:
    """Play one episode in a worker and leave its outcome in `spool`; True when it succeeded."""
    stage = _stage(name, config.image_size)
    arrays = play(stage.task, stage.renderer, seed, config)
    target = spool / f"{name}-{seed}{'.failed' if arrays is None else '.npz'}"
    unfinished = target.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        if arrays is not None:
            np.savez(file, allow_pickle=False, **arrays)
    unfinished.replace(target)
    return arrays is not None


def play(
    task: Task, renderer: CameraRenderer, seed: int, config: RecordConfig
) -> dict[str, np.ndarray] | None:
    """Play one expert episode.

    Returns:
        One row per control step, or None when the episode did not end in success. `image.<camera>`
        uint8 [t, h, w, 3], `proprio`, `action` (the expert's, clean), `executed` (with noise) and
        `privileged` float32 [t, ...], `success` bool [t] after the step; `instruction` is a string.
    """
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
    noise = config.noise if rng.random() < config.noisy_fraction else 0.0
    low, high = np.array(task.spec.action.low), np.array(task.spec.action.high)
    data = task.make_data()
    episode = task.reset(data, seed, "train")
    rows: dict[str, list[np.ndarray | np.bool_]] = {}
    held = 0
    while episode.steps < task.horizon and held <= config.hold_steps:
        task.place_markers(data, episode)
        pictures = renderer.picture(data)
        clean = np.clip(task.expert_action(data, episode), low, high)
        disturbed = np.clip(clean + noise * rng.standard_normal(clean.shape), low, high)
        row = {f"image.{camera}": picture for camera, picture in pictures.items()} | {
            "proprio": task.proprio(data),
            "privileged": task.privileged(data, episode),
            "action": clean.astype(np.float32),
            "executed": disturbed.astype(np.float32),
        }
        task.step(data, episode, row["executed"])
        success = task.is_success(data, episode)
        # Counted anew when success is lost: a block that slides through its target has not arrived.
        held = held + 1 if success else 0
        for key, value in (row | {"success": np.bool_(success)}).items():
            rows.setdefault(key, []).append(value)
    if not held:
        return None
    stacked = {key: np.stack(values) for key, values in rows.items()}
    return stacked | {"instruction": np.array(episode.instruction)}


def _require_space(config: RecordConfig, task: Task, store: RecordingStore) -> None:
    missing = config.episodes * len(config.task) - len(store.episodes)
    raw = sum(3 * camera.height * camera.width for camera in task.spec.cameras) * task.horizon
    needed = int(max(missing, 0) * raw * _PNG_RATIO) + _GROUP * raw
    free = shutil.disk_usage(config.folder).free
    if missing > 0 and free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{missing} episodes need about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
        )


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"cannot record into {folder}: {reason}. Free space or choose another --root; "
            "finished episodes are kept, and the same command continues",
        ) from error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeRemainingColumn(),
    )
