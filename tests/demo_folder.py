"""Recorded folders without a simulator's images: made-up episodes through the real writer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from sim.recording_store import RecordingStore
from sim.tasks.base import Task
from sim.tasks.registry import make_task

SETTINGS: dict[str, object] = {"noise": 0.2}


def made_up_episode(task: Task, seed: int, length: int) -> dict[str, np.ndarray]:
    """What a worker would leave; random, the action's first entry counts the steps."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, task.spec.action.dim)).astype(np.float32)
    action[:, 0] = np.arange(length)
    privileged = rng.normal(size=(length, len(task.privileged_names)))
    images = {
        f"image.{camera.name}": rng.integers(
            256, size=(length, camera.height, camera.width, 3), dtype=np.uint8
        )
        for camera in task.spec.cameras
    }
    return images | {
        "proprio": rng.normal(size=(length, task.spec.proprio.dim)).astype(np.float32),
        "action": action,
        "executed": action + np.float32(0.5),
        "privileged": privileged.astype(np.float32),
        "success": np.arange(length) >= length - 2,
        "points.gripper": rng.normal(size=(length, 3)).astype(np.float32),
        "instruction": np.array(f"do thing {seed % 2}"),
    }


def spool(store: RecordingStore, task: Task, seed: int, length: int) -> tuple[str, int]:
    """Leave a made-up episode as a worker does; returns its key."""
    arrays = made_up_episode(task, seed, length)
    np.savez(store.spool / f"{task.name}-{seed}.npz", allow_pickle=False, **arrays)
    store.register((task.name, seed), succeeded=True)
    return task.name, seed


def write_folder(
    root: Path, lengths: list[int], name: str = "FetchReach", image_size: int = 16
) -> Task:
    """A finished data set with one episode per length, seeds counting from 0."""
    task = make_task(name, image_size)
    with RecordingStore.open(root, SETTINGS, [task]) as store:
        store.write([spool(store, task, seed, length) for seed, length in enumerate(lengths)])
    return task


def die(*_: object) -> None:
    """Instead of episodes: what the kernel does to a worker when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
