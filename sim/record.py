"""Scripted demonstrations into a LeRobotDataset v3 that survives a kill at any moment.

Worker processes play episodes and leave each one, whole, in `<root>/.recording/`. The parent writes
them in groups, in the order of their seeds, with LeRobot's own writer into a staging folder, and
then moves the new files in. So the folder is a readable data set between any two groups, equal
settings give equal episodes in equal order, and a second run continues where the first stopped.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from vla_runtime.dataset_files import import_lerobot
from vla_runtime.main_guard import exit_without_main_guard

from sim.demonstrate import (
    FAILURES_PER_EPISODE,
    RecordConfig,
    known_roles,
    play_into,
    prepare_worker,
)
from sim.recording_store import EpisodeKey, RecordingStore
from sim.tasks.base import Task, TaskDeclarationError
from sim.tasks.registry import make_task
from sim.worker_pool import WorkerPool
from sim.worker_process import WorkerError

# Episodes a write: fewer make more and smaller files, more make the folder lag behind.
_GROUP = 25

# Measured on Fetch at 96 px: an image takes 0.07 of its raw bytes as PNG; twice that, for safety.
_PNG_RATIO = 0.15


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
        OSError: the disk is full, the folder cannot be written, or a worker process died.
    """
    # Before any side effect: a worker that imports an unguarded script would record, too.
    exit_without_main_guard()
    start_s = time.monotonic()
    tasks = [make_task(name, config.image_size) for name in config.names]
    for task in tasks:
        if not task.has_expert():
            raise TaskDeclarationError(
                f"{task.name} has no expert to record: define expert_action in its class, or clone "
                "demonstrations that were recorded elsewhere"
            )
        if not task.spec.cameras:
            raise TaskDeclarationError(
                f"{task.name} has no camera, and demonstrations are images too: name one in "
                "camera_list (docs/tasks/gymnasium.md)"
            )
    points = known_roles(tasks, config.first_seed)
    with (
        _explained(config.folder),
        RecordingStore.open(config.folder, config.settings, tasks, points) as store,
    ):
        # After reopening: what earlier runs left is no longer to be done.
        before = len(store.episodes)
        _require_space(config, tasks[0], store)
        _record_missing(config, store)
        failed = {
            name: tuple(sorted(seed for key, seed in store.failed if key == name))
            for name in config.names
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
    plans = [_SeedPlan(name, config, store) for name in config.names]
    # Running the same command again on a complete folder starts no process.
    if all(plan.finished for plan in plans):
        return
    pool = WorkerPool(config.workers, prepare_worker)
    # LeRobot takes seconds to import: do it while the first episodes are played.
    threading.Thread(target=import_lerobot, daemon=True).start()
    try:
        with _progress() as bar:
            _drive(config, store, plans, pool, bar)
    except WorkerError as error:
        raise ChildProcessError(
            f"{error}; finished episodes are kept, and the same command continues"
        ) from error
    finally:
        pool.close()


def _drive(
    config: RecordConfig,
    store: RecordingStore,
    plans: list[_SeedPlan],
    pool: WorkerPool,
    bar: Progress,
) -> None:
    """Keep the workers busy and write each group as soon as it is complete."""
    bars = {
        plan.name: bar.add_task(plan.name, total=config.episodes, completed=plan.done)
        for plan in plans
    }
    running: dict[Future[bool], EpisodeKey] = {}
    for index, plan in enumerate(plans):
        while True:
            # enough to keep the workers busy while a group is written
            while len(running) < config.workers + _GROUP and (key := _next_key(plans[index:])):
                running[pool.submit(play_into, config, *key, store.spool)] = key
            if not any(name == plan.name for name, _ in running.values()):
                break
            # In order of completion; `plan.ready` restores the order of the seeds.
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                store.register(running.pop(future), succeeded=future.result())
            for each in plans[index:]:
                bar.update(bars[each.name], completed=each.done)
            if len(ready := plan.ready()) >= _GROUP:
                store.write(ready)
        # The rest, fewer than a group.
        store.write(plan.ready())


def _next_key(plans: Sequence[_SeedPlan]) -> EpisodeKey | None:
    """An episode that nobody plays yet, of the first task that lacks one."""
    for plan in plans:
        if (seed := plan.next_seed()) is not None:
            return plan.name, seed
    return None


class _SeedPlan:
    """Which seeds of one task to play: the first ones upwards until enough succeeded.

    A failure adds the next seed, so exactly the first `episodes` successes in the order of the
    seeds are kept, whatever the number of workers and however often the recording was stopped.
    """

    def __init__(self, name: str, config: RecordConfig, store: RecordingStore):
        self.name = name
        self._config = config
        self._store = store
        self._seeds = range(config.first_seed, config.first_seed + config.attempts)
        self._submitted: set[int] = set()

    @property
    def done(self) -> int:
        """Episodes that succeeded, written or waiting."""
        return sum(task == self.name for task, _ in self._store.succeeded)

    @property
    def finished(self) -> bool:
        """Nothing is left to play or to write."""
        return sum(task == self.name for task, _ in self._store.episodes) >= self._config.episodes

    def next_seed(self) -> int | None:
        """A seed that nobody plays yet, or None when those in hand may be enough.

        Raises:
            ValueError: the expert failed too often.
        """
        failures = sum(task == self.name for task, _ in self._store.failed)
        if failures >= FAILURES_PER_EPISODE * (self.done + 1):
            raise ValueError(
                f"the expert of {self.name} failed in {failures} of {failures + self.done} "
                f"episodes; lower --noise (now {self._config.noise}) or --noisy-fraction "
                f"(now {self._config.noisy_fraction}). `vla doctor --task {self.name}` shows "
                "whether it succeeds without noise"
            )
        for seed in self._candidate_seeds():
            # `succeeded` also holds what an earlier run has left in the spool.
            if seed not in self._submitted and (self.name, seed) not in self._store.succeeded:
                self._submitted.add(seed)
                return seed
        return None

    def ready(self) -> list[EpisodeKey]:
        """Successes not yet written, up to the first seed that is still being played."""
        keys = [(self.name, seed) for seed in self._candidate_seeds()]
        # Up to the first gap only: a later seed may not be written before an earlier one.
        known = itertools.takewhile(lambda key: key in self._store.succeeded, keys)
        return [key for key in known if key not in self._store.episodes]

    def _candidate_seeds(self) -> Iterator[int]:
        # A failed seed drops out and the next one moves up, so these are always `episodes` many.
        untried_or_good = (s for s in self._seeds if (self.name, s) not in self._store.failed)
        return itertools.islice(untried_or_good, self._config.episodes)


def _require_space(config: RecordConfig, task: Task, store: RecordingStore) -> None:
    # `missing` are not in the data set yet; of those, `unplayed` are not in the spool either.
    missing = max(config.episodes * len(config.names) - len(store.episodes), 0)
    raw = (
        sum(3 * camera.height * camera.width for camera in task.spec.cameras) * task.episode_length
    )
    unplayed = max(missing - (len(store.succeeded) - len(store.episodes)), 0)
    # PNG for all of them, and raw arrays for the group that waits in the spool.
    needed = int(missing * raw * _PNG_RATIO) + min(unplayed, _GROUP) * raw
    free = shutil.disk_usage(config.folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{missing} episodes need about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
        )


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Add the folder and what helps to errors of the file system."""
    try:
        yield
    except (BlockingIOError, ChildProcessError):
        raise  # these say so themselves
    except OSError as error:
        reason = error.strerror or str(error)
        mend = "choose another --root"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = (
                "free space or choose another --root; finished episodes are kept, and the same "
                "command continues"
            )
        raise OSError(error.errno, f"cannot record into {folder}: {reason}; {mend}") from error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeRemainingColumn(),
    )
