"""Receding-horizon control: plan, execute the plan's beginning, shift what is left, plan again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from policies.planning.plan import Planner
from vla.contract import Dynamics, ObservationBatch, RobotSpec


class PlannerPolicy:
    """A planner as a `Policy`, with its compute ledger.

    It plans from the simulator's full state, which no robot exports: it is a reference for what the
    task allows, not a competitor of the policies that see images.

    Attributes:
        spec: the contract of the environment.
        decisions: plans made, one per environment and `act`.
        seconds: wall time of all of them.
        simulator_steps: control steps simulated inside all of them.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        planner: Planner,
        get_states: Callable[[], np.ndarray],
        spec: RobotSpec,
        execute_steps: int,
        seed: int = 0,
        rest_action: Mapping[str, float] | None = None,
    ) -> None:
        """Join a planner to an environment.

        Args:
            dynamics: the model to search, of the same contract but for the cameras.
            planner: finds the action sequences.
            get_states: float64 [n, state], every environment's present state as `dynamics` takes
                it (`CpuVecEnv.export_state`).
            spec: the contract of the environment.
            execute_steps: control steps executed of each plan.
            seed: each episode draws its own stream from this and the count of resets before it, so
                that results do not depend on how many environments run at once.
            rest_action: action dimension → the command that keeps still there. A shifted plan ends
                with these, and with its own last command in the other dimensions.

        Raises:
            ContractMismatchError: `dynamics` models another robot.
            ValueError: `execute_steps` does not fit into the plan, or `rest_action` names a
                dimension that the contract does not have.
        """
        same_cameras = replace(dynamics.spec, cameras=spec.cameras)  # a planner uses none
        spec.require_match(same_cameras, "the environment", "the dynamics")
        if not 1 <= execute_steps <= planner.planning_horizon:
            most = planner.planning_horizon
            raise ValueError(
                f"execute_steps is {execute_steps}, valid is 1 to planning_horizon, {most}"
            )
        rest_action = rest_action or {}
        if unknown := sorted(set(rest_action) - set(spec.action.names)):
            valid = list(spec.action.names)
            raise ValueError(f"rest_action names {unknown}, valid names are {valid}")
        self.spec = spec
        self.decisions = 0
        self.seconds = 0.0
        self.simulator_steps = 0
        self._dynamics = dynamics
        self._planner = planner
        self._get_states = get_states
        self._execute_steps = execute_steps
        self._seed = seed
        # [action.dim]; NaN keeps a dimension's last command, see `shift`.
        self._rest = np.array([rest_action.get(name, np.nan) for name in spec.action.names])
        self._resets = 0
        self._generators: dict[int, np.random.Generator] = {}
        self._warm_starts: dict[int, np.ndarray] = {}

    @property
    def decision_rate_hz(self) -> float:
        """Decisions a second of wall time; NaN before the first one."""
        # Of the search alone: the simulated robot's own time is not in `seconds`.
        return self.decisions / self.seconds if self.seconds else float("nan")

    @property
    def steps_per_decision(self) -> float:
        """Simulator control steps a decision; NaN before the first one."""
        return self.simulator_steps / self.decisions if self.decisions else float("nan")

    def reset(self, indices: Sequence[int]) -> None:
        """Forget the warm starts of these environments and begin their next random stream."""
        for index in indices:
            # A plan of the last episode would start the search at the old goal.
            self._warm_starts.pop(index, None)
            # A stream an episode and not a row: `rollout` resets in the order of its seeds,
            # whichever rows are free.
            self._generators[index] = np.random.default_rng([self._seed, self._resets])
            self._resets += 1

    def act(self, observation: ObservationBatch) -> Tensor:
        """Plan for every environment: float32 [n, execute_steps, action.dim].

        An environment that was never reset plays no episode: it gets zeros, clipped to the limits,
        and costs nothing.
        """
        # [execute_steps, action.dim]; zero may lie outside of the limits.
        idle = np.zeros((self._execute_steps, self.spec.action.dim)).clip(
            self.spec.action.low, self.spec.action.high
        )
        chunks = np.stack(
            [
                self._decide(index, state) if index in self._generators else idle
                # [state] of each row: the simulator's own, not what the observation shows.
                for index, state in enumerate(self._get_states())
            ]
        )
        return torch.from_numpy(chunks.astype(np.float32)).to(observation.proprio.device)

    def _decide(self, index: int, state: np.ndarray) -> np.ndarray:
        start_s = time.perf_counter()
        plan = self._planner.plan(
            self._dynamics,
            state,
            self._warm_starts.get(index),
            self._generators[index],
        )
        # As many as are executed: the next plan begins where this one is then.
        self._warm_starts[index] = shift(plan.actions, self._execute_steps, self._rest)
        self.seconds += time.perf_counter() - start_s
        self.decisions += 1
        self.simulator_steps += plan.simulator_steps
        return plan.actions[: self._execute_steps]


def shift(actions: np.ndarray, steps: int, rest: np.ndarray) -> np.ndarray:
    """Drop the first `steps` rows and append as many: [planning_horizon, action.dim].

    What is appended is `rest` [action.dim], or the last row's value where `rest` is NaN. Repeating
    a last motion instead of resting made the arm leave its goal again (docs/planning.md).
    """
    # [action.dim]
    tail = np.where(np.isnan(rest), actions[-1], rest)
    return np.concatenate([actions[steps:], np.tile(tail, (steps, 1))])
