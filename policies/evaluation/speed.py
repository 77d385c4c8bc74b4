"""How long a decision takes: latency for one robot, throughput for many that decide together."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vla.contract import ObservationBatch, Policy

_WARM_UP = 3
"""Decisions before time counts: the first ones allocate, choose kernels and may compile."""
_WARM_UP_S = 1.0
"""A decision that takes longer needs no second one to warm up."""
_LEAST = 3


@dataclass(frozen=True)
class Speed:
    """Wall time of decisions, each of which computes a new chunk.

    Attributes:
        latency_median_s: seconds for one observation, batch 1.
        latency_p90_s: its 90% quantile.
        throughput_hz: decisions a second with `batch` observations at once.
        batch: of the throughput.
    """

    latency_median_s: float
    latency_p90_s: float
    throughput_hz: float
    batch: int

    @classmethod
    def of(cls, single: np.ndarray, together: np.ndarray, batch: int) -> Speed:
        """From seconds for one observation, float64 [decisions], and for `batch` at once."""
        # Medians: one pause of the operating system would dominate a mean of thirty.
        return cls(
            latency_median_s=float(np.median(single)),
            latency_p90_s=float(np.quantile(single, 0.9)),
            throughput_hz=batch / float(np.median(together)),
            batch=batch,
        )


def time_decisions(
    policy: Policy, observation: ObservationBatch, most: int = 30, limit_s: float = 5.0
) -> np.ndarray:
    """Seconds that `act` took on this observation, float64 [decisions], after warming up.

    Every decision begins an episode: a policy that hands out a queue of control steps would else
    be timed while it computes nothing.

    Args:
        policy: a fresh one; a planner's environment must be in the observed state.
        observation: n rows, all of which are decided at once.
        most: decisions.
        limit_s: begin no further one after so many seconds of deciding; at least three are timed.
    """
    rows = range(len(observation))

    def decide() -> float:
        # Outside the measured time: a robot resets once an episode.
        policy.reset(rows)
        start = time.perf_counter()
        policy.act(observation).cpu()  # waits for a GPU
        return time.perf_counter() - start

    for _ in range(_WARM_UP):
        if decide() > _WARM_UP_S:
            break
    seconds: list[float] = []
    # A slow planner would take minutes for thirty decisions: time limits it, but not below three.
    while len(seconds) < most and (len(seconds) < _LEAST or sum(seconds) < limit_s):
        seconds.append(decide())
    return np.array(seconds)
