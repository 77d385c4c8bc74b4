"""Measure environment speed against gymnasium and EnvPool, interleaved, and print a table."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np
import tyro

from vla.settings import require_numbers


class Contender(NamedTuple):
    """`run` takes a number of control steps and returns steps a second; `close` ends it."""

    run: Callable[[int], float]
    close: Callable[[], object]


Build = Callable[[], Contender]


@dataclass(frozen=True)
class BenchEnvConfig:
    """How long and against whom.

    Attributes:
        task: a Fetch task of this project; the peers run its v4.
        rounds: every contender runs once a round; ratios are taken within a round.
        steps: control steps of one contender in one round, state only.
        frames: control steps, each with one image, of one contender in one round.
        num_envs: environments of ours and of EnvPool.
        async_envs: environments (and processes) of gymnasium's AsyncVectorEnv.
        size: side of an image, pixels.
        peers: leave a peer out when it is not installed.
    """

    task: str = "FetchPush"
    rounds: int = 5
    steps: int = 8000
    frames: int = 400
    num_envs: int = 16
    async_envs: int = 8
    size: int = 96
    peers: tuple[str, ...] = ("gymnasium", "envpool")

    def __post_init__(self) -> None:
        require_numbers(
            self, at_least_1=("rounds", "steps", "frames", "num_envs", "async_envs", "size")
        )


def ours_state(config: BenchEnvConfig) -> Contender:
    """Our vector environment without images, one control step a call."""
    import torch

    from sim.vector import CpuVecEnv

    env = CpuVecEnv(config.task, config.num_envs, render=False)
    rng = np.random.default_rng(0)

    def run(steps: int) -> float:
        begun = time.perf_counter()
        for step in range(steps // config.num_envs):
            # Ours never resets itself; the peers do, so resets are within the time of both.
            if step % env.episode_length == 0:
                env.reset(range(config.num_envs), range(config.num_envs))
            # [n, 1, action.dim]: chunks of one step, since the peers take single actions.
            env.step(torch.from_numpy(_actions(rng, config.num_envs)[:, None]))
        return steps / (time.perf_counter() - begun)

    return Contender(run, env.close)


def gymnasium_state(config: BenchEnvConfig) -> Contender:
    """Gymnasium's AsyncVectorEnv, one process an environment."""
    import gymnasium

    make = partial(make_gymnasium, config.task, None, config.size)
    env = gymnasium.vector.AsyncVectorEnv([make] * config.async_envs)
    # Stepping before the first reset is an error; later resets are automatic.
    env.reset(seed=0)
    return _vector_run(env, config.async_envs)


def envpool_state(config: BenchEnvConfig) -> Contender:
    """EnvPool's C++ threads."""
    import envpool

    env = envpool.make(f"{config.task}-v4", env_type="gymnasium", num_envs=config.num_envs)
    env.reset()
    return _vector_run(env, config.num_envs)


def _vector_run(env, num_envs: int) -> Contender:
    rng = np.random.default_rng(0)

    def run(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps // num_envs):
            env.step(_actions(rng, num_envs))
        return steps / (time.perf_counter() - begun)

    return Contender(run, env.close)


def gymnasium_images(config: BenchEnvConfig) -> Contender:
    """gymnasium-robotics' own rendering (4 samples a pixel) after every step, one process."""
    env = make_gymnasium(config.task, "rgb_array", config.size)
    rng = np.random.default_rng(0)

    def run(frames: int) -> float:
        begun = time.perf_counter()
        for frame in range(frames):
            if frame % 50 == 0:
                env.reset(seed=frame)
            env.step(_actions(rng, 1)[0])
            env.render()
        return frames / (time.perf_counter() - begun)

    return Contender(run, env.close)


def ours_images(config: BenchEnvConfig, antialias: bool) -> Contender:
    """Our task and renderer, one camera's image after every step, one process."""
    from sim.tasks.registry import make_task

    task = make_task(config.task, config.size)
    data = task.make_data()
    renderer = task.make_renderer(("front",), config.size, antialias)
    # Allocated once: the renderer writes into it.
    out = {"front": np.empty((config.size, config.size, 3), np.uint8)}
    rng = np.random.default_rng(0)

    def run(frames: int) -> float:
        episode = task.reset(data, 0)
        begun = time.perf_counter()
        for frame in range(frames):
            if frame % 50 == 0:
                episode = task.reset(data, frame)
            task.step(data, episode, _actions(rng, 1)[0])
            # The peer computes its observation in every step, so ours has to as well.
            task.privileged(data, episode)
            task.place_markers(data, episode)
            renderer.render(data, out)
        return frames / (time.perf_counter() - begun)

    return Contender(run, renderer.close)


def _actions(rng: np.random.Generator, num_envs: int) -> np.ndarray:
    # Drawn within the measured time on all sides, so that it cancels.
    return rng.uniform(-1.0, 1.0, (num_envs, 4)).astype(np.float32)


def make_gymnasium(task: str, render_mode: str | None, size: int):
    """The peer's own environment; version 4."""
    warnings.simplefilter("ignore")
    import gymnasium
    import gymnasium_robotics

    from sim.render import choose_backend

    if render_mode:
        # The backend that ours chooses, so that both draw with the same library.
        os.environ.setdefault("MUJOCO_GL", choose_backend())
    gymnasium.register_envs(gymnasium_robotics)
    kwargs = {"render_mode": render_mode, "width": size, "height": size} if render_mode else {}
    return gymnasium.make(f"{task}-v4", **kwargs)


# In a worker process: an environment cannot be pickled, so it stays here between calls.
_prepared: Contender | None = None


def _prepare(build: Build, env: dict, warm_up: int) -> None:
    global _prepared
    # Before `build`: thread pools and renderers read it when they are loaded.
    os.environ.update(env)
    _prepared = build()
    _prepared.run(warm_up)  # warm caches, page in libraries


def _measure(steps: int) -> float:
    assert _prepared is not None
    return _prepared.run(steps)


def _close() -> None:
    if _prepared is not None:
        _prepared.close()


def interleave(
    contenders: dict[str, tuple[Build, dict[str, str]]],
    steps: int,
    rounds: int,
    warm_up: int = 64,
) -> dict[str, list[float]]:
    """Name → steps a second in each round; every contender lives in a process of its own.

    Twice `warm_up` steps of each come before what is measured.
    """
    # Each contender has its own threads, GL context and environment variables; a fork would share
    # them.
    context = multiprocessing.get_context("spawn")
    pools = {
        name: ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(build, env, warm_up))
        for name, (build, env) in contenders.items()
    }
    try:
        for pool in pools.values():
            pool.submit(_measure, warm_up).result()  # all are ready before the first is measured
        rates: dict[str, list[float]] = {name: [] for name in pools}
        for _ in range(rounds):
            for name, pool in pools.items():
                # One at a time: no contender competes with another for the cores.
                rates[name].append(pool.submit(_measure, steps).result())
    finally:
        for pool in pools.values():
            pool.submit(_close)
            pool.shutdown()
    return rates


def bench_state(config: BenchEnvConfig) -> dict[str, list[float]]:
    """State only; ours first."""
    contenders: dict = {f"ours, {config.num_envs} environments": (partial(ours_state, config), {})}
    if "gymnasium" in config.peers:
        contenders[f"gymnasium AsyncVectorEnv({config.async_envs})"] = (
            partial(gymnasium_state, config),
            {},
        )
    if "envpool" in config.peers:
        contenders[f"EnvPool, {config.num_envs} environments"] = (
            partial(envpool_state, config),
            {},
        )
    return interleave(contenders, config.steps, config.rounds)


def bench_images(config: BenchEnvConfig) -> dict[str, list[float]]:
    """Step and one image, one process; ours first, without and with antialiasing."""
    # Mesa's llvmpipe: 0 means that the calling thread rasters.
    one_thread = {"LP_NUM_THREADS": "0"}
    contenders: dict = {
        "ours": (partial(ours_images, config, antialias=False), one_thread),
        "ours, antialiased": (partial(ours_images, config, antialias=True), one_thread),
    }
    if "gymnasium" in config.peers:
        gymnasium = partial(gymnasium_images, config)
        contenders["gymnasium (antialiased), one raster thread"] = (gymnasium, one_thread)
        contenders["gymnasium (antialiased), default raster threads"] = (gymnasium, {})
    return interleave(contenders, config.frames, config.rounds)


def table(title: str, rates: dict[str, list[float]], ours: tuple[str, ...]) -> str:
    """Markdown: median rates, and the median within-round ratio of each of ours to each row."""
    head = " | ".join(f"{name} / this" for name in ours)
    lines = [f"| {title} | steps/s | {head} |", "|---" * (2 + len(ours)) + "|"]
    for name, values in rates.items():
        # Ratios within a round, then their median: load that changes between rounds cancels.
        ratios = [median(a / b for a, b in zip(rates[mine], values, strict=True)) for mine in ours]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {name} | {median(values):,.0f} | {cells} |")
    return "\n".join(lines)


def main(config: BenchEnvConfig) -> None:
    """Print both tables, the machine and its load."""
    load = os.getloadavg()[0]
    state = bench_state(config)
    print(table(f"{config.task}, state", state, tuple(state)[:1]), end="\n\n")
    images = bench_images(config)
    title = f"{config.task}, step + one image of {config.size} px"
    print(table(title, images, tuple(images)[:2]), end="\n\n")
    print(
        f"{config.rounds} interleaved rounds, medians; {os.cpu_count()} cores "
        f"({platform.processor() or platform.machine()}), load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after. Ours draws the front camera without the parts of the "
        "robot that its view does not need; gymnasium draws its own camera and the whole robot."
    )


if __name__ == "__main__":
    main(tyro.cli(BenchEnvConfig))
