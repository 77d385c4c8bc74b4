"""The cross-entropy method over action sequences.

Sample sequences from a Gaussian, refit it to the cheapest ones, repeat; return the best found.

Source: Rubinstein and Kroese 2004, "The Cross-Entropy Method"; coloured noise, elites kept between
iterations and the best sample returned: Pinneri et al. 2020, "Sample-efficient cross-entropy method
for real-time planning" (iCEM), algorithm 1.

Departures from iCEM: the number of samples is the same in every iteration; kept elites bring their
costs with them instead of being simulated again, since the dynamics are deterministic; from one
decision to the next only the best sequence is carried, not the elite set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from policies.planning.plan import Plan, coloured_noise, fall_back, limits, rollout_costs
from vla.contract import Dynamics
from vla.settings import require_numbers


@dataclass(frozen=True)
class CemConfig:
    """Settings of `Cem`.

    Attributes:
        planning_horizon: control steps planned ahead.
        samples: sequences simulated per iteration.
        iterations: times the Gaussian is refitted.
        elites: cheapest sequences it is refitted to.
        keep_elites: elites that stay candidates in the next iteration (iCEM: 0.3 of them).
        initial_std: in half-widths of the action range (iCEM: 0.5).
        min_std: floor of the same, against early collapse.
        momentum: share of the old mean and deviation kept at each refit (iCEM: 0.1).
        noise_exponent: colour of the noise; 0 is white (iCEM: 2 to 3.5, task by task).
    """

    planning_horizon: int = 10
    samples: int = 24
    iterations: int = 3
    elites: int = 6
    keep_elites: int = 2
    initial_std: float = 0.7
    min_std: float = 0.05
    momentum: float = 0.1
    noise_exponent: float = 2.5

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("iterations", "elites"),
            above_0=("initial_std",),
            any_sign=("noise_exponent",),
            at_most={"momentum": 1 - 1e-6},
        )
        if not self.keep_elites <= self.elites <= self.samples:
            raise ValueError(f"need keep_elites <= elites <= samples: {self}")
        if self.planning_horizon < 2:
            raise ValueError(f"need planning_horizon >= 2: {self}")


class Cem:
    """Cross-entropy planner; it holds no state between calls."""

    def __init__(self, config: CemConfig) -> None:
        self.config = config

    @property
    def planning_horizon(self) -> int:
        """Control steps in a plan."""
        return self.config.planning_horizon

    def plan(
        self,
        dynamics: Dynamics,
        state: np.ndarray,
        warm_start: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Plan:
        """See `Planner.plan`; returns the cheapest sequence that was simulated.

        The warm start, clipped to the limits, is one of them, so the cost is never above its own.
        """
        config = self.config
        low, high = limits(dynamics.spec.action)
        shape = (config.planning_horizon, low.size)
        half_range = (high - low) / 2
        # [planning_horizon, action.dim] both; the middle of the range where no plan came before.
        mean = np.broadcast_to((low + high) / 2, shape) if warm_start is None else warm_start
        std = np.broadcast_to(config.initial_std * half_range, shape)
        elites, elite_costs = np.empty((0, *shape)), np.empty(0)
        best, best_cost = None, math.inf

        for iteration in range(config.iterations):
            # [samples, planning_horizon, action.dim]
            noise = coloured_noise(rng, config.noise_exponent, config.samples, *shape)
            if iteration in (0, config.iterations - 1):
                noise[0] = 0.0  # the warm start itself, and the converged mean, are candidates
            # Clipped before the rollout: costs belong to commands that can be executed.
            sampled = np.clip(mean + std * noise, low, high)
            kept = slice(0, config.keep_elites)
            candidates = np.concatenate([sampled, elites[kept]])
            costs = np.concatenate([rollout_costs(dynamics, state, sampled), elite_costs[kept]])

            # Cheapest first; a stable sort makes equal costs reproducible.
            order = np.argsort(costs, kind="stable")[: config.elites]
            # A mean over a broken rollout would pull the Gaussian towards what broke it.
            order = order[np.isfinite(costs[order])]
            if order.size == 0:
                continue  # every rollout broke: draw again from the same Gaussian
            elites, elite_costs = candidates[order], costs[order]
            # Apart from the elites, of which the next iteration may keep none.
            if elite_costs[0] < best_cost:
                best, best_cost = elites[0], float(elite_costs[0])
            # Refit with momentum, iCEM algorithm 1: mean and deviation over the elites, per step.
            mean = config.momentum * mean + (1 - config.momentum) * elites.mean(axis=0)
            std = config.momentum * std + (1 - config.momentum) * elites.std(axis=0)
            # In the units of each dimension, so that one floor serves radians and metres.
            std = np.maximum(std, config.min_std * half_range)

        simulator_steps = config.iterations * config.samples * config.planning_horizon
        if best is None:
            return fall_back(warm_start, simulator_steps)
        # Not the mean: between two ways around an obstacle the mean may be the collision.
        return Plan(best, best_cost, simulator_steps)
