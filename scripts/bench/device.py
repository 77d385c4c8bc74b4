"""Decisions and learning of the shipped model a second on a device, without a simulator.

Observations are random, so speeds are measured and nothing else. Decisions are timed from images on
the CPU to a chunk on the CPU, as a robot has them. Learning is one iteration of PPO, and updates of
cloning, on features that were computed before. `python -m scripts.bench.device --device cpu --tiny`
tries it out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from policies.optimisation import optimizer_step
from policies.reinforcement.experience import Batch
from policies.reinforcement.ppo import PPO, PPOConfig
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import score
from vla.checkpoint.initialisation import GROUNDED
from vla.contract import ObservationBatch
from vla.model.cloning_loss import cloning_loss
from vla.policy import VLAPolicy, load_policy
from vla.settings import require_numbers


@dataclass(frozen=True)
class BenchDeviceConfig:
    """What to measure.

    Attributes:
        device: "cpu" or "cuda".
        tiny: as little as possible, to try it out.
        batches: observations a decision.
        decisions: measured decisions of each batch size.
        macro_steps: what PPO learns from in an iteration.
        updates: measured updates of cloning.
        compiled: compile the policy; the first decision of each batch size takes minutes.
        out: JSON file.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    tiny: bool = False
    batches: tuple[int, ...] = (1, 16, 64)
    decisions: int = 50
    macro_steps: int = 2000
    updates: int = 100
    compiled: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("batches", "decisions", "macro_steps", "updates"))


def main(config: BenchDeviceConfig) -> dict[str, float]:
    """Measure, print and return.

    Raises:
        ValueError: no CUDA device.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device; try it with --device cpu --tiny")
    torch.manual_seed(0)
    policy = load_policy(GROUNDED, config.device)
    # As on a robot: no dropout.
    policy.model.eval()
    decisions, updates, macro_steps = config.decisions, config.updates, config.macro_steps
    batches = config.batches
    if config.tiny:
        decisions, updates, macro_steps, batches = 2, 2, 20, (1, 2)
    result = measure_learning(policy, macro_steps, updates)
    if config.compiled:
        policy.compile()
    for batch in batches:
        times = measure_decisions(policy, batch, decisions)
        for percent in (50, 99):
            milliseconds = 1e3 * float(np.percentile(times, percent))
            # Both percentiles: a control loop misses its deadline by the slow ones.
            result[f"decision of {batch}, p{percent}, ms"] = milliseconds
        result[f"decisions/s in batches of {batch}"] = batch / float(np.median(times))
    if config.out:
        config.out.write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:36} {value:.4g}")
    return result


def observe(policy: VLAPolicy, count: int) -> ObservationBatch:
    """Random observations on the CPU."""
    spec = policy.spec
    images = {
        c.name: torch.randint(256, (count, c.height, c.width, 3), dtype=torch.uint8)
        for c in spec.cameras
    }
    # Any values within the contract; speed does not depend on them.
    proprio = torch.tensor(spec.proprio.low).expand(count, -1).float()
    return ObservationBatch(
        images, proprio, ["push the block to the red target"] * count, torch.zeros(count)
    )


def measure_decisions(policy: VLAPolicy, batch: int, decisions: int) -> list[float]:
    """Seconds of each decision; the first three, which warm up, do not count."""
    observation = observe(policy, batch)
    # A policy keeps one memory a row, which a reset creates.
    policy.reset(range(batch))
    times = []
    for decision in range(-3, decisions):
        begun = time.perf_counter()
        # No waiting: `act` returns the chunk on the CPU, which waits for the device.
        policy.act(observation)
        if decision >= 0:
            times.append(time.perf_counter() - begun)
    return times


def measure_learning(policy: VLAPolicy, macro_steps: int, updates: int) -> dict[str, float]:
    """PPO's macro-steps a second of learning, all epochs counted once, and cloning's updates."""
    actor, generator = policy.actor, torch.Generator(policy.device).manual_seed(0)
    features, _ = policy.features(observe(policy, 1), policy.initial_state(1))
    features = features.select(
        torch.zeros(macro_steps, dtype=torch.long, device=policy.device)
    )  # one observation many times
    with torch.no_grad():
        sample = actor.sample(features, generator)
        # Of the same weights: the probability ratio is 1 at the first update, so nothing is clipped
        # there.
        valid = torch.ones(macro_steps, policy.chunk_length, dtype=torch.bool, device=policy.device)
        log_prob, weight = score(actor, features, sample, valid)  # [m, p]
    batch = Batch(
        features=features,
        sample=sample,
        log_prob=log_prob,
        weight=weight,
        valid=valid,
        advantage=torch.randn(macro_steps, device=policy.device, generator=generator),
    )
    # No early end by the KL: every gradient step is taken.
    ppo = PPO(actor, PPOConfig(target_kl=None))
    learned_s = _time(policy, lambda: ppo.update(batch, Reference(actor), generator), 2)

    # [n, chunk_length, action], normalised
    chunks = torch.zeros(256, policy.chunk_length, policy.spec.action.dim, device=policy.device)
    is_pad = torch.zeros(chunks.shape[:2], dtype=torch.bool, device=policy.device)
    some = features.select(torch.arange(256, device=policy.device) % macro_steps)
    optimizer = torch.optim.AdamW(actor.parameters(), lr=1e-5)

    def clone() -> None:
        loss = cloning_loss(actor, some, chunks, is_pad, 0.02, generator)
        optimizer_step(optimizer, loss, 1.0)

    return {
        "PPO, macro-steps learned/s": macro_steps / learned_s,
        "cloning, updates of 256/s": 1 / _time(policy, clone, updates),
    }


def _time(policy: VLAPolicy, call: Callable[[], object], times: int) -> float:
    """Seconds a call, after one that warms up."""
    call()
    _wait(policy)
    begun = time.perf_counter()
    for _ in range(times):
        call()
    _wait(policy)
    return (time.perf_counter() - begun) / times


def _wait(policy: VLAPolicy) -> None:
    if policy.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(tyro.cli(BenchDeviceConfig))
