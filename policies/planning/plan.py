"""What every sampling planner shares: the plan, the noise that proposes, the cost that ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla.contract import Dynamics, VectorSpec


class NoFiniteRolloutError(RuntimeError):
    """Every sampled rollout broke and there is no earlier plan to fall back on."""


@dataclass(frozen=True)
class Plan:
    """An action sequence and what finding it took.

    Attributes:
        actions: float64 [planning_horizon, action.dim], in contract units, inside the limits.
        cost: predicted cost of the sequence, summed over the horizon; NaN where the planner returns
            an average that it never rolled out, +inf where every rollout broke.
        simulator_steps: control steps that the dynamics simulated to find it.
    """

    actions: np.ndarray
    cost: float
    simulator_steps: int


class Planner(Protocol):
    """Searches action sequences of a fixed length."""

    @property
    def planning_horizon(self) -> int:
        """Control steps in a plan."""
        ...

    def plan(
        self,
        dynamics: Dynamics,
        state: np.ndarray,
        warm_start: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Plan:
        """Plan from `state`.

        Args:
            dynamics: the model that is searched.
            state: float64 [state], as `dynamics` takes it.
            warm_start: float64 [planning_horizon, action.dim] to search around; None at an
                episode's start.
            rng: the only source of randomness.

        Raises:
            NoFiniteRolloutError: every rollout broke and `warm_start` is None.
        """
        ...


def coloured_noise(
    rng: np.random.Generator, exponent: float, samples: int, horizon: int, dim: int
) -> np.ndarray:
    """Unit-variance Gaussian noise whose power falls as 1 / frequency ** exponent over time.

    White noise averages out over a horizon, so the arm stays where it is; correlated noise explores
    whole motions. Twice the horizon is drawn and cut, because a Fourier series is periodic and
    would tie the plan's end to its beginning.

    Shapes:
        float64 [samples, horizon, dim]; correlated over `horizon`, independent elsewhere.

    Source: Timmer and Koenig 1995; for planning Pinneri et al. 2020 (iCEM), section 3.1.
    """
    length = 2 * horizon
    # [samples, 2 * horizon, dim]
    white = rng.standard_normal((samples, length, dim))
    # [horizon + 1], in cycles a control step
    frequency = np.fft.rfftfreq(length)
    frequency[0] = frequency[1]  # a constant offset is as likely as the slowest wave
    # Half the exponent: power is amplitude squared.
    gain = frequency ** (-exponent / 2)
    # Mean squared gain over the two-sided spectrum, in which only 0 and Nyquist appear once.
    variance = (2 * np.sum(gain**2) - gain[0] ** 2 - gain[-1] ** 2) / length
    # Divided by the deviation, so that `std` of a planner means the same for every colour.
    spectrum = np.fft.rfft(white, axis=1) * (gain / np.sqrt(variance))[:, None]
    return np.fft.irfft(spectrum, n=length, axis=1)[:, :horizon]


def limits(spec: VectorSpec) -> tuple[np.ndarray, np.ndarray]:
    """Float64 [dim] lower and upper action limits."""
    return np.asarray(spec.low, dtype=np.float64), np.asarray(spec.high, dtype=np.float64)


def rollout_costs(dynamics: Dynamics, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Cost of each sequence, summed over the horizon: float64 [samples].

    NaN and infinities of either sign become +inf, so that a broken rollout is never ranked best.

    Raises:
        ValueError: the dynamics returned another shape than [samples, horizon].
    """
    # [samples, horizon]
    costs = dynamics.rollout(state, actions)
    if costs.shape != actions.shape[:2]:
        raise ValueError(f"dynamics returned costs {costs.shape}, expected {actions.shape[:2]}")
    broken = ~np.isfinite(costs)
    # 0 in place of what broke, so that the discarded sum cannot warn of inf - inf.
    return np.where(broken.any(axis=1), np.inf, np.where(broken, 0.0, costs).sum(axis=1))


def fall_back(warm_start: np.ndarray | None, simulator_steps: int) -> Plan:
    """The earlier plan where every rollout of this one broke.

    Raises:
        NoFiniteRolloutError: there is no earlier plan.
    """
    if warm_start is None:
        raise NoFiniteRolloutError(
            "every sampled rollout has a non-finite cost and there is no earlier plan; check that "
            "the state comes from the environment that the dynamics models and is finite"
        )
    return Plan(warm_start, np.inf, simulator_steps)
