"""One worker process of the vector environment: many `MjData` on one model and one renderer.

Numpy only, so that a spawned worker starts without loading torch.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from vla_runtime.shared_arrays import SharedArrays

from sim.instruction_swap import swap_instruction
from sim.tasks.base import Episode, Phrasing, Task, TaskDeclarationError
from sim.tasks.declaration import require_action
from sim.tasks.mujoco_task import MujocoTask, pack_state
from sim.tasks.registry import TaskChoice
from sim.worker_channel import WorkerChannel

_SPIN_S = 3e-4
"""How long a worker polls for work before it sleeps; waking it would take as long."""


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to know.

    Attributes:
        task: with its class, so that a task need not be registered in the worker.
        image_size: pixels a side.
        cameras: names to draw; empty draws none.
        antialias: multisample the images.
        phrasing: which instruction templates.
        swap_instructions: every scene gets another goal than its seed's, see `swap_instruction`.
        indices: the environments that this worker hosts.
    """

    task: TaskChoice
    image_size: int
    cameras: tuple[str, ...]
    antialias: bool
    phrasing: Phrasing
    swap_instructions: bool
    indices: tuple[int, ...]


class Worker:
    """The environments of one process; every method writes to the shared arrays."""

    def __init__(self, config: WorkerConfig, task: Task, arrays: dict[str, np.ndarray]):
        self._config = config
        self._task = task
        self._arrays = arrays
        self._renderer = None
        if config.cameras:
            self._renderer = task.make_renderer(config.cameras, config.image_size, config.antialias)
        # One model for all: only `MjData` is an environment's own, see `Task`.
        self._data = {index: task.make_data() for index in config.indices}
        self._episodes: dict[int, Episode] = {}

    def reset(self, seeds: dict[int, int]) -> dict[int, tuple[str, dict[str, str]]]:
        """Begin episodes; environment → instruction and labels."""
        phrasing = self._config.phrasing
        for index, seed in seeds.items():
            data = self._data[index]
            episode = self._task.reset(data, seed, phrasing)
            if self._config.swap_instructions:
                episode = swap_instruction(self._task, data, episode, phrasing)
            self._episodes[index] = episode
            # Here alone: until its reset an ended environment keeps its flags.
            self._arrays["terminated"][index] = False
            self._arrays["truncated"][index] = False
            self._observe(index)
        return {i: (self._episodes[i].instruction, self._episodes[i].labels) for i in seeds}

    def step(self, length: int) -> None:
        """Execute `length` control steps in every environment that has not ended; draw once."""
        for index in self._config.indices:
            self._step(index, length)

    def _step(self, index: int, length: int) -> None:
        arrays, task = self._arrays, self._task
        data, episode = self._data[index], self._episodes[index]
        ended = bool(arrays["terminated"][index] or arrays["truncated"][index])
        # Views of this environment's row: bool [episode_length].
        valid, success = arrays["valid"][index], arrays["success"][index]
        # What an earlier, longer chunk left must not count for this one.
        valid[:length] = False
        success[:length] = False
        # An ended episode keeps its last observation, which is the final one.
        if ended:
            return
        for k in range(length):
            task.step(data, episode, arrays["actions"][index, k])
            valid[k] = True
            # Success does not end an episode, see `Task.is_terminated`.
            success[k] = task.is_success(data, episode)
            arrays["terminated"][index] = task.is_terminated(data, episode)
            # What ended inside the task has no value beyond, also in its last control step.
            arrays["truncated"][index] = (
                episode.steps >= task.episode_length and not arrays["terminated"][index]
            )
            if arrays["terminated"][index] or arrays["truncated"][index]:
                break
        self._observe(index)

    def _observe(self, index: int) -> None:
        arrays, task = self._arrays, self._task
        data, episode = self._data[index], self._episodes[index]
        arrays["proprio"][index] = task.proprio(data)
        arrays["privileged"][index] = task.privileged(data, episode)
        arrays["time_s"][index] = episode.steps / task.spec.control_rate_hz
        if self._renderer is not None:
            # Before every image: the goal's marker is in the model, which all environments share.
            task.place_markers(data, episode)
            # Views: the renderer writes straight into shared memory.
            out = {name: arrays[f"image/{name}"][index] for name in self._config.cameras}
            self._renderer.render(data, out)

    def expert(self) -> None:
        """The scripted expert's action for every environment."""
        for index in self._config.indices:
            data, episode = self._data[index], self._episodes[index]
            action = self._task.expert_action(data, episode)
            self._arrays["expert"][index] = require_action(self._task, action)

    def state(self) -> dict[int, np.ndarray]:
        """Packed states, see `sim.tasks.mujoco_task.pack_state`."""
        task = self._task
        if not isinstance(task, MujocoTask):
            raise TaskDeclarationError(f"{task.name} has no state that planners could search from")
        return {i: pack_state(task, self._data[i], self._episodes[i]) for i in self._config.indices}

    def points(self) -> dict[int, dict[str, np.ndarray]]:
        """Nameable world positions."""
        return {
            i: self._task.points(self._data[i], self._episodes[i]) for i in self._config.indices
        }

    def close(self) -> None:
        """Free the renderer, and what the environments hold."""
        # Each of them, also after one that fails.
        with contextlib.ExitStack() as stack:
            for data in self._data.values():
                stack.callback(self._task.close, data)
            if self._renderer is not None:
                stack.callback(self._renderer.close)


def serve(channel: WorkerChannel, config: WorkerConfig, shared: SharedArrays) -> None:
    """Answer (method, argument) messages with ("ok", result) until `None` arrives."""
    try:
        worker = Worker(config, config.task.make(config.image_size), shared.arrays)
        # However it ends: an environment may have processes of its own, which would stay.
        with contextlib.closing(worker):
            # The parent waits for this before it sends anything: compiling a model takes seconds.
            channel.send(("ok", None))
            while (message := channel.receive(_SPIN_S)) is not None:
                channel.send(("ok", _call(worker, *message)))
    finally:
        shared.close()


def _call(worker: Worker, method: str, argument: Any) -> Any:
    bound = getattr(worker, method)
    return bound() if argument is None else bound(argument)
