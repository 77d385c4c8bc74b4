"""Model predictive path integral control.

Perturb a nominal sequence, weigh the perturbed ones by exp(-cost / temperature), average.

Source: Williams et al. 2017, "Information theoretic MPC for model-based reinforcement learning"
(algorithm 2; weights eq. 34, update eq. 35).

Departures: costs are divided by their standard deviation over the samples, so that one temperature
serves tasks of any scale; the control cost term lambda u' Sigma^-1 eps is left out, as the action
is bounded anyway; noise is coloured instead of smoothing the result (Vlahov et al. 2024, "Low
frequency sampling in model predictive path integral control"); the update is iterated, with the
deviation shrunk each time (as in covariance annealing), because a decision here is several control
steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.planning.plan import Plan, coloured_noise, fall_back, limits, rollout_costs
from vla.contract import Dynamics
from vla.settings import require_numbers


@dataclass(frozen=True)
class MppiConfig:
    """Settings of `Mppi`.

    Attributes:
        planning_horizon: control steps planned ahead.
        samples: sequences simulated per iteration, the nominal one among them.
        iterations: updates per decision.
        temperature: lambda, in standard deviations of the samples' costs; small follows the best.
        std: of the noise, in half-widths of the action range.
        std_decay: factor on `std` after each iteration.
        noise_exponent: colour of the noise; 0 is white, as in the paper.
    """

    planning_horizon: int = 10
    samples: int = 24
    iterations: int = 3
    temperature: float = 0.2
    std: float = 0.7
    std_decay: float = 0.6
    noise_exponent: float = 2.5

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("iterations",),
            above_0=("temperature", "std", "std_decay"),
            any_sign=("noise_exponent",),
            at_most={"std_decay": 1},
        )
        if self.planning_horizon < 2 or self.samples < 2:
            raise ValueError(f"need planning_horizon >= 2 and samples >= 2: {self}")


class Mppi:
    """Path-integral planner; it holds no state between calls."""

    def __init__(self, config: MppiConfig) -> None:
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
        """See `Planner.plan`; the average is returned unsimulated, so its cost is NaN."""
        config = self.config
        low, high = limits(dynamics.spec.action)
        shape = (config.planning_horizon, low.size)
        nominal = np.broadcast_to((low + high) / 2, shape) if warm_start is None else warm_start
        # [action.dim], in the units of each dimension.
        std = config.std * (high - low) / 2
        updated = False

        for _ in range(config.iterations):
            # [samples, planning_horizon, action.dim]
            noise = coloured_noise(rng, config.noise_exponent, config.samples, *shape)
            noise[0] = 0.0  # the nominal sequence competes too
            sampled = np.clip(nominal + std * noise, low, high)
            costs = rollout_costs(dynamics, state, sampled)
            if np.isfinite(costs).any():
                # Equation 35: weighted mean over samples, [planning_horizon, action.dim].
                nominal = np.einsum("s,sha->ha", path_weights(costs, config.temperature), sampled)
                updated = True
            std = std * config.std_decay

        simulator_steps = config.iterations * config.samples * config.planning_horizon
        if not updated:
            return fall_back(warm_start, simulator_steps)
        # A rounding error of the average may leave the limits by one unit in the last place.
        return Plan(np.clip(nominal, low, high), np.nan, simulator_steps)


def path_weights(costs: np.ndarray, temperature: float) -> np.ndarray:
    """exp(-(S - min S) / (temperature std S)), normalised to sum 1; a broken sample weighs 0.

    Args:
        costs: float64 [samples], at least one of them finite, broken ones +inf.
        temperature: in standard deviations of the finite costs.

    Source: Williams et al. 2017, eq. 34.
    """
    # Broken samples must not count in the minimum or the deviation.
    finite = costs[np.isfinite(costs)]
    # Not 0 where all costs are equal: every sample then weighs the same.
    deviation = max(float(finite.std()), np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):  # equal costs: 0 / tiny = 0; far ones: exp(-inf) = 0
        weights = np.exp(-(costs - finite.min()) / (temperature * deviation))
    return weights / weights.sum()
