"""Latency and throughput: every decision is computed, and time is that of `act` alone."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from point_env import PointVecEnv

from policies.evaluation.speed import Speed, time_decisions


class Queueing:
    """Computes a chunk of ten control steps and hands it out one at a time, as LeRobot's do."""

    spec = PointVecEnv.spec

    def __init__(self, seconds: float) -> None:
        self.seconds, self.queue, self.computed = seconds, 0, 0

    def reset(self, indices):
        """A new episode has an empty queue."""
        self.queue = 0
        time.sleep(0.003)

    def act(self, observation):
        """One step."""
        if not self.queue:
            time.sleep(self.seconds)
            self.computed += 1
            self.queue = 10
        self.queue -= 1
        return torch.zeros(len(observation), 1, 1)


def _observation(rows: int):
    env = PointVecEnv(rows)
    env.reset(range(rows), range(rows))
    return env.observe()[0]


def test_steps_from_a_queue_are_no_decisions():
    """Every timed decision computes; what a reset takes does not count."""
    policy = Queueing(0.001)
    seconds = time_decisions(policy, _observation(1), most=8)
    assert len(seconds) == 8
    assert policy.computed > 8, "the first ones warm up"
    assert (seconds >= 0.001).all()
    assert np.median(seconds) < 0.003


def test_slow_decisions_end_the_measurement():
    """After three of them, or a single one to warm up, once the time is over."""
    policy = Queueing(0.02)
    assert len(time_decisions(policy, _observation(1), limit_s=0.01)) == 3
    assert len(time_decisions(policy, _observation(1), most=30, limit_s=0.2)) < 30


def test_latency_and_throughput_by_hand():
    """Quantiles of single decisions; observations a second of those together."""
    single = np.arange(1, 12) / 100
    speed = Speed.of(single, np.array([0.1, 0.2, 0.9]), batch=8)
    assert (speed.latency_median_s, speed.latency_p90_s) == pytest.approx((0.06, 0.1))
    assert (speed.throughput_hz, speed.batch) == (pytest.approx(40), 8)
    one = Speed.of(np.array([0.5]), np.array([0.5]), batch=1)
    assert one.latency_median_s == one.latency_p90_s == 0.5
