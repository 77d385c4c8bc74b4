"""Scripted demonstrations: what to record, one episode, and the worker processes that play many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import numpy as np

from sim.seeds import DEMONSTRATIONS
from sim.tasks.base import ROLES, Episode, Renderer, Task
from sim.tasks.declaration import require_action, require_finite
from sim.tasks.registry import make_task, member_names, short_name
from vla.data.dataset_info import POINT
from vla.settings import require_numbers

# Failures for each success (and one more) at which the expert is declared unfit.
FAILURES_PER_EPISODE = 20


@dataclass(frozen=True)
class RecordConfig:
    """What to record, and where.

    Attributes:
        task: names, one or several; they share one data set. A suite such as MetaWorld/MT10 stands
            for each of its tasks.
        episodes: successful episodes to keep of each task.
        root: folder of the data set; by default data/<task>.
        first_seed: seeds count up from here, within `sim.seeds.DEMONSTRATIONS`.
        noise: standard deviation of the Gaussian noise on executed actions, one number in each
            dimension's own unit of the contract: 0.2 is 1 cm a control step for the Fetch gripper,
            whose unit is 5 cm. The recorded action is the expert's own at the state that the noise
            led to.
        noisy_fraction: share of the episodes that are played with noise.
        hold_steps: control steps that an episode goes on once success holds, so that staying is
            shown too.
        keep: "held" keeps episodes in which success held through these steps, or to the end of the
            episode; "reached" those in which it held once, whatever came after: some experts of
            Meta-World let go of what they have reached.
        image_size: images are square, in pixels.
        workers: processes that simulate and render.
    """

    task: tuple[str, ...]
    episodes: int = 50
    root: Path | None = None
    first_seed: int = 0
    # Noisy execution with clean labels shows recoveries from states that the expert alone never
    # visits: DART, Laskey et al. 2017, arXiv:1703.09327.
    noise: float = 0.2
    noisy_fraction: float = 0.5
    hold_steps: int = 10
    keep: Literal["held", "reached"] = "held"
    image_size: int = 96
    workers: int = 2

    def __post_init__(self) -> None:
        counts = ("episodes", "workers", "image_size")
        require_numbers(self, at_least_1=counts, at_most={"noisy_fraction": 1})
        if not self.task or len(set(self.task)) != len(self.task):
            raise ValueError(f"task needs one or several different names, got {self.task}")
        # Refused now rather than when the expert has failed often.
        DEMONSTRATIONS.seeds(self.attempts, self.first_seed - DEMONSTRATIONS.start)

    @property
    def folder(self) -> Path:
        """Where the data set lies."""
        return self.root or Path("data") / "+".join(short_name(name) for name in self.task)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, suites resolved."""
        return tuple(dict.fromkeys(one for name in self.task for one in member_names(name)))

    @property
    def attempts(self) -> int:
        """Most seeds tried for one task."""
        # Enough that `_SeedPlan` refuses an unfit expert before the seeds run out.
        return (self.episodes + 1) * (FAILURES_PER_EPISODE + 1)

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
            # Left out by default: what was recorded before it could be chosen is continued.
            **({} if self.keep == "held" else {"keep": self.keep}),
        }


def play(
    task: Task, renderer: Renderer, seed: int, config: RecordConfig
) -> dict[str, np.ndarray] | None:
    """Play one expert episode.

    Returns:
        One row per control step, or None when the episode is not to be kept. `image.<camera>`
        uint8 [t, h, w, 3], `proprio`, `action` (the expert's, clean), `executed` (with noise) and
        `privileged` float32 [t, ...], `success` bool [t] after the step; `instruction` is a string.
        If the task has points, `points.<role>` float32 [t, 3] for each of `ROLES`.
    """
    data = task.make_data()
    try:
        return _episode(task, data, renderer, seed, config)
    finally:
        task.close(data)


def _episode(
    task: Task, data: Any, renderer: Renderer, seed: int, config: RecordConfig
) -> dict[str, np.ndarray] | None:
    """An episode in a state of its own, see `play`."""
    # By the task's name too, or all tasks would get equal noise; crc32, since `hash` of a string
    # differs between processes.
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
    noise = config.noise if rng.random() < config.noisy_fraction else 0.0
    low, high = np.array(task.spec.action.low), np.array(task.spec.action.high)
    episode = task.reset(data, seed, "train")
    rows: dict[str, list[np.ndarray | np.bool_]] = {}
    held, has_ended = 0, False
    while not has_ended and held <= config.hold_steps:
        task.place_markers(data, episode)
        # The observation before the action, as a policy has it.
        images = renderer.images(data)
        clean = np.clip(require_action(task, task.expert_action(data, episode)), low, high)
        disturbed = np.clip(clean + noise * rng.standard_normal(clean.shape), low, high)
        row = {f"image.{camera}": image for camera, image in images.items()} | {
            "proprio": task.proprio(data),
            "privileged": task.privileged(data, episode),
            "action": clean.astype(np.float32),
            "executed": disturbed.astype(np.float32),
        }
        row |= _named_points(task, data, episode)
        # Nobody could be trained on such data, and the recording may take hours.
        require_finite(task, "proprioception", task.spec.proprio.names, row["proprio"])
        require_finite(task, "privileged state", task.privileged_names, row["privileged"])
        # float32, as it is recorded: a replay of `executed` is the same episode to the last bit.
        task.step(data, episode, row["executed"])
        success = task.is_success(data, episode)
        # Counted anew when success is lost: a block that slides through its target has not arrived.
        goes_on = success or (config.keep == "reached" and held)
        held = held + 1 if goes_on else 0
        has_ended = episode.steps >= task.episode_length or task.is_terminated(data, episode)
        for key, value in (row | {"success": np.bool_(success)}).items():
            rows.setdefault(key, []).append(value)
    # Success was lost at the end, or never held.
    if not held:
        return None
    stacked = {key: np.stack(values) for key, values in rows.items()}
    return stacked | {"instruction": np.array(episode.instruction)}


def _named_points(task: Task, data: Any, episode: Episode) -> dict[str, np.ndarray]:
    """Where the things are that the instruction names; NaN at roles that nothing has."""
    if not task.can_be_grounded():
        return {}
    there = task.points(data, episode)
    unknown = np.full(3, np.nan)
    return {POINT + role: there.get(role, unknown).astype(np.float32) for role in ROLES}


def known_roles(tasks: Sequence[Task], seed: int) -> tuple[str, ...]:
    """Which of `ROLES` have a position in any of these tasks; seen in the episode `seed`."""
    known: set[str] = set()
    for task in tasks:
        if task.can_be_grounded():
            data = task.make_data()
            try:
                known |= task.points(data, task.reset(data, seed)).keys()
            finally:
                task.close(data)
    return tuple(role for role in ROLES if role in known)


@dataclass(frozen=True)
class _Setup:
    task: Task
    renderer: Renderer


# One model and one GL context a process and task, kept for all of its episodes. Tasks are played
# one after another, so that of the task before is freed: fifty of them would fill the memory.
_kept: dict[tuple[str, int], _Setup] = {}


def _setup(name: str, image_size: int) -> _Setup:
    if (name, image_size) not in _kept:
        while _kept:
            _kept.popitem()[1].renderer.close()
        task = make_task(name, image_size)
        cameras = [camera.name for camera in task.spec.cameras]
        _kept[name, image_size] = _Setup(task, task.make_renderer(cameras, image_size))
    return _kept[name, image_size]


def prepare_worker() -> None:
    """Make this process a worker that ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A parent that is killed cannot tell its workers, who would wait for work for ever.
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def spool_name(task: str, seed: int, suffix: str) -> str:
    """Of the file that holds an episode's outcome; `read_spool_name` is the inverse."""
    return f"{quote(task, safe='')}-{seed}{suffix}"


def read_spool_name(path: Path) -> tuple[str, int]:
    """Task and seed."""
    task, _, seed = path.stem.rpartition("-")
    return unquote(task), int(seed)


def play_into(config: RecordConfig, name: str, seed: int, spool: Path) -> bool:
    """Play one episode in a worker and leave its outcome in `spool`; True when it succeeded."""
    setup = _setup(name, config.image_size)
    arrays = play(setup.task, setup.renderer, seed, config)
    leave_in_spool(spool, name, seed, arrays)
    return arrays is not None


def leave_in_spool(
    spool: Path, name: str, seed: int, arrays: Mapping[str, np.ndarray] | None
) -> None:
    """Leave an episode of a task, or the mark of a failed one, where `RecordingStore` finds it."""
    target = spool / spool_name(name, seed, ".failed" if arrays is None else ".npz")
    # Renamed when complete: whatever has a final name in the spool is whole. A failure is an empty
    # file.
    unfinished = target.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        if arrays is not None:
            np.savez(file, allow_pickle=False, **arrays)
    unfinished.replace(target)
