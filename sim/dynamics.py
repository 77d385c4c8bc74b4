"""The simulator itself as the model that planners search."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import mujoco
import numpy as np

from sim.tasks.base import TaskDeclarationError
from sim.tasks.mujoco_task import MujocoTask, unpack_state
from sim.tasks.registry import make_task

_BROKEN = [
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
        mujoco.mjtWarning.mjWARN_BADCTRL,
    )
]


class ExactDynamics:
    """Exact dynamics of a task: every rollout runs `Task.step`, as the environment does.

    Samples are spread over threads that own one `MjData` each; MuJoCo releases Python's lock while
    it steps. `mujoco.rollout` is not used, though it is as fast: it returns neither the solver's
    warm start nor the lagging body poses from which the next control step begins, and every
    Fetch control step needs Python in between to place the mocap body, so that grasps drift from
    the environment by about 1e-9 m in ten steps. See docs/planning.md for both figures.

    A task is shared by the threads, so its `step` and `cost` must not write to the task.
    """

    def __init__(self, task_name: str, threads: int | None = None) -> None:
        """Build the planner's own copy of the task.

        Args:
            task_name: registry name.
            threads: worker threads; None is one per CPU core.

        Raises:
            ValueError: unknown task, one that cannot be searched, or `threads` below 1.
        """
        threads = (os.cpu_count() or 1) if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads is {threads}, it must be at least 1")
        self.threads = threads
        task = make_task(task_name)
        if not isinstance(task, MujocoTask):
            raise TaskDeclarationError(
                f"planners search tasks on one MuJoCo model, and {task_name} is a gymnasium "
                "environment whose state cannot be set"
            )
        self._task = task
        self.spec = self._task.spec
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dynamics")
        # As many `MjData` as threads, so that `get` never waits.
        self._idle_data: SimpleQueue[mujoco.MjData] = SimpleQueue()
        for _ in range(threads):
            self._idle_data.put(self._task.make_data())

    def rollout(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """`Task.cost` after each control step.

        Args:
            state: float64 [state] from `sim.tasks.base.pack_state`.
            actions: float64 [samples, planning_horizon, action.dim], rounded to float32 and clipped
                to the limits as the environment does.

        Returns:
            float64 [samples, planning_horizon]; +inf from the step at which a simulation broke.

        Raises:
            ValueError: a wrong shape.
        """
        if actions.ndim != 3 or actions.shape[2] != self.spec.action.dim:
            raise ValueError(
                f"actions have shape {actions.shape}, "
                f"expected [samples, planning_horizon, {self.spec.action.dim}]"
            )
        received = actions.astype(
            np.float32
        )  # [samples, planning_horizon, action], as `step` gets them
        return np.stack(list(self._pool.map(lambda one: self._rollout_one(state, one), received)))

    def _rollout_one(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        # Infinity rather than a large number: a planner must never prefer a broken simulation.
        costs = np.full(len(actions), np.inf)
        data = self._idle_data.get()
        try:
            episode = unpack_state(self._task, data, state)
            data.warning.number[:] = 0  # of the rollout that had this data before
            for step, action in enumerate(actions):
                if not np.isfinite(action).all():
                    break  # the costs from here on stay +inf
                self._task.step(data, episode, action)
                cost = self._task.cost(data, episode)
                # MuJoCo restarts a simulation that diverged, so its state looks sound afterwards.
                if data.warning.number[_BROKEN].any() or not np.isfinite(cost):
                    break
                costs[step] = cost
        finally:
            self._idle_data.put(data)
        return costs

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
