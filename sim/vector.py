"""A vector environment over worker processes with shared memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vla_runtime.shared_arrays import Layout, SharedArrays

from sim.tasks.base import Phrasing
from sim.tasks.registry import find_task
from sim.worker import WorkerConfig, serve
from sim.worker_process import WorkerError, WorkerProcess
from vla.contract import ObservationBatch, StepBatch


class CpuVecEnv:
    """`num_envs` environments of one task in spawned processes; implements `VecEnv`.

    A chunk of `k` actions is `k` control steps and one image a camera, at the end. Results depend
    on seeds and actions alone, never on `num_workers`. Workers write to shared memory; what
    `observe` and `step` return are copies, so a rollout may keep them.

    Args:
        task: registry name.
        num_envs: environments.
        num_workers: processes, at most `num_envs`; default one a core.
        image_size: pixels a side.
        cameras: which to draw, in the policy's order; None is all that the task has.
        render: False draws nothing: `images` is empty and the contract has no cameras.
        phrasing: instruction templates, "train" or "heldout".
        antialias: multisample the images (several times slower on a CPU; other pixels).
        swap_instructions: every scene gets another goal than its seed's, in words and in success;
            see `sim.instruction_swap`.

    Raises:
        ValueError: unknown task or camera, or a count below one.
        OSError: not enough shared memory.
        WorkerError: a worker did not start; the message has its traceback.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        task: str,
        num_envs: int,
        num_workers: int | None = None,
        image_size: int = 96,
        cameras: Sequence[str] | None = None,
        render: bool = True,
        phrasing: Phrasing = "train",
        antialias: bool = False,
        swap_instructions: bool = False,
    ):
        # `__del__` also runs after a refusal in here, when there is nothing to close yet.
        self._closed = True
        num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
        if min(num_envs, num_workers, image_size) < 1:
            raise ValueError(
                f"num_envs is {num_envs}, num_workers {num_workers} and image_size {image_size}: "
                "each must be at least 1"
            )
        num_workers = min(num_workers, num_envs)
        # The parent's own copy: for the contract and the names; it is never stepped.
        choice = find_task(task)
        self.task = choice.make(image_size)
        known = {camera.name: camera for camera in self.task.spec.cameras}
        drawn = tuple(known if cameras is None else cameras) if render else ()
        if unknown := [name for name in drawn if name not in known]:
            raise ValueError(f"task {task} has no camera {unknown}; it has {list(known)}")
        # The contract promises what is drawn, so that a policy for other cameras is refused.
        self.spec = dataclasses.replace(
            self.task.spec, cameras=tuple(known[name] for name in drawn)
        )
        self.num_envs = num_envs
        self.episode_length = self.task.episode_length
        self.privileged_names = self.task.privileged_names
        self.goals = self.task.goals
        self._instructions = [""] * num_envs
        self._labels: list[dict[str, str]] = [{} for _ in range(num_envs)]
        self._began = np.zeros(num_envs, bool)
        # Before any process starts: it may be refused.
        self._shared = SharedArrays(self._layout())
        self._workers: list[WorkerProcess] = []
        self._closed = False
        self._start(
            [
                WorkerConfig(
                    task=choice,
                    image_size=image_size,
                    cameras=drawn,
                    antialias=antialias,
                    phrasing=phrasing,
                    swap_instructions=swap_instructions,
                    indices=tuple(int(i) for i in indices),
                )
                for indices in np.array_split(np.arange(num_envs), num_workers)
            ]
        )

    def _layout(self) -> Layout:
        # The longest chunk is an episode, so no step ever needs more memory than this.
        n, k, action = self.num_envs, self.episode_length, self.spec.action.dim
        layout: Layout = {
            f"image/{camera.name}": ((n, camera.height, camera.width, 3), "uint8")
            for camera in self.spec.cameras
        }
        # n environments, k control steps: [n, ...], so a worker writes to rows of its own and no
        # lock is needed.
        return layout | {
            "proprio": ((n, self.spec.proprio.dim), "float32"),
            "privileged": ((n, len(self.privileged_names)), "float32"),
            "time_s": ((n,), "float32"),
            "actions": ((n, k, action), "float32"),
            "expert": ((n, action), "float32"),
            "success": ((n, k), "bool"),
            "valid": ((n, k), "bool"),
            "terminated": ((n,), "bool"),
            "truncated": ((n,), "bool"),
        }

    def _start(self, configs: list[WorkerConfig]) -> None:
        self._hosts = {i: w for w, config in enumerate(configs) for i in config.indices}
        for index, config in enumerate(configs):
            worker = WorkerProcess(f"worker {index}", serve, config, self._shared)
            self._workers.append(worker)
        self._collect(range(len(configs)))  # each reports once it has built its model

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin new episodes in these environments; an equal seed is an equal episode.

        Raises:
            ValueError: lengths differ, an index is out of range, or a seed is negative.
        """
        if len(indices) != len(seeds):
            raise ValueError(f"{len(indices)} environments but {len(seeds)} seeds")
        if bad := [i for i in indices if not 0 <= i < self.num_envs]:
            raise ValueError(f"no environments {bad}: there are {self.num_envs}, from 0")
        if bad := [seed for seed in seeds if seed < 0]:
            raise ValueError(f"seeds must not be negative, got {bad}")
        # One message a worker, whatever the number of its environments.
        wanted: dict[int, dict[int, int]] = {}  # worker → environment → seed
        for index, seed in zip(indices, seeds, strict=True):
            wanted.setdefault(self._hosts[int(index)], {})[int(index)] = int(seed)
        for begun in self._ask("reset", wanted):
            for index, (instruction, labels) in begun.items():
                self._instructions[index] = instruction
                self._labels[index] = labels
                self._began[index] = True

    def observe(self) -> tuple[ObservationBatch, Tensor]:
        """Current observations, and privileged state float32 [n, privileged]; copies."""
        self._require_begun()
        return self._observation(), self._copy("privileged")

    def step(self, chunks: Tensor) -> StepBatch:
        """Execute float32 [n, k, action.dim], k <= episode_length, clipped to the action's range.

        Reward is 1 at each step after which the task's condition holds. An environment that ended
        keeps its last observation and its flags, with `valid` False, until `reset`.

        Raises:
            ValueError: wrong shape, or a NaN or infinity; the message names where.
        """
        self._require_begun()
        actions = self._checked(chunks)
        length = actions.shape[1]
        # Written before the workers are called, read by them: the pipe carries only the length.
        self._shared.arrays["actions"][:, :length] = actions
        self._ask("step", dict.fromkeys(range(len(self._workers)), length))
        success = self._shared.arrays["success"][:, :length]  # [n, k]
        return StepBatch(
            observation=self._observation(),
            privileged=self._copy("privileged"),
            # float32 [n, k]; both are copies, as `astype` makes one.
            rewards=torch.from_numpy(success.astype(np.float32)),
            success=torch.from_numpy(success.copy()),
            # False after the end of an episode: such steps were not executed.
            valid=self._copy("valid")[:, :length],
            terminated=self._copy("terminated"),
            truncated=self._copy("truncated"),
        )

    def expert_actions(self) -> Tensor:
        """The scripted expert's next action in every environment, float32 [n, action.dim]."""
        self._require_begun()
        self._ask("expert", dict.fromkeys(range(len(self._workers))))
        return self._copy("expert")

    def export_state(self) -> np.ndarray:
        """States for planners, float64 [n, state]; see `sim.tasks.mujoco_task.pack_state`."""
        self._require_begun()
        return np.stack(self._gather("state"))

    def points(self) -> list[dict[str, np.ndarray]]:
        """For each environment, name → world position [3] in metres."""
        self._require_begun()
        return self._gather("points")

    def labels(self) -> list[dict[str, str]]:
        """For each environment, the words that filled its instruction."""
        return [dict(labels) for labels in self._labels]

    def close(self) -> None:
        """End the processes and free the shared memory; may be called again."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.join()
        self._shared.close()

    def __enter__(self) -> CpuVecEnv:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Wrong arguments fail before `__init__` sets the attribute.
        if not getattr(self, "_closed", True):
            self.close()

    def _observation(self) -> ObservationBatch:
        return ObservationBatch(
            images={c.name: self._copy(f"image/{c.name}") for c in self.spec.cameras},
            proprio=self._copy("proprio"),
            instructions=list(self._instructions),
            time_s=self._copy("time_s"),
        )

    def _copy(self, name: str) -> Tensor:
        # The workers will write here again, while the caller may keep what it was given.
        return torch.from_numpy(self._shared.arrays[name].copy())

    def _require_begun(self) -> None:
        if self._closed:
            raise RuntimeError("this vector environment is closed")
        if not self._began.all():
            missing = np.flatnonzero(~self._began).tolist()
            raise RuntimeError(f"call reset first: environments {missing} have no episode")

    def _checked(self, chunks: Tensor) -> np.ndarray:
        # Workers are on the CPU whatever the policy's device is.
        actions = np.asarray(chunks.detach().cpu(), np.float32)
        names = self.spec.action.names
        shape = (self.num_envs, "k", len(names))
        if actions.ndim != 3 or actions.shape[::2] != shape[::2] or not actions.shape[1]:
            raise ValueError(f"chunks have shape {actions.shape}, expected {shape}, k >= 1")
        if actions.shape[1] > self.episode_length:
            raise ValueError(
                f"a chunk of {actions.shape[1]} exceeds the episode length {self.episode_length}"
            )
        # MuJoCo resets the state to its defaults on a NaN and only warns, which would look like a
        # valid step.
        if not np.isfinite(actions).all():
            env, step, dim = np.argwhere(~np.isfinite(actions))[0]
            raise ValueError(
                f"action {actions[env, step, dim]} for environment {env}, chunk step {step}, "
                f"dimension {names[dim]!r}: actions must be finite (MuJoCo would reset the world)"
            )
        return actions

    def _gather(self, method: str) -> list[Any]:
        answers: dict[int, Any] = {}
        for part in self._ask(method, dict.fromkeys(range(len(self._workers)))):
            answers |= part
        return [answers[index] for index in range(self.num_envs)]

    def _ask(self, method: str, arguments: dict[int, Any]) -> list[Any]:
        """Call a `Worker` method in these processes at once; the answers in their order."""
        if self._closed:
            raise RuntimeError("this vector environment is closed")
        try:
            # All are sent before any answer is read, so the workers run at the same time.
            for worker, argument in arguments.items():
                self._workers[worker].send((method, argument))
        except WorkerError:
            self.close()
            raise
        return self._collect(arguments)

    def _collect(self, workers: Iterable[int]) -> list[Any]:
        try:
            # After one failure the others are ended too: their answers would be out of step with
            # the calls.
            return [self._workers[worker].receive() for worker in workers]
        except WorkerError:
            self.close()
            raise
