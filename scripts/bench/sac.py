"""Compare SAC with hindsight with stable-baselines3's: updates a second, and time and steps to 95%.

Both learn the same state-based task from scratch, one decision a control step, with the same
network sizes, batch size, discount, learning rate, share of hindsight goals and one gradient step
a control step: the settings of rl-baselines3-zoo for FetchReach. Success is greedy, at the end of
the episode, on the same initial states; its time is not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro

from policies.evaluation.evaluate import evaluate
from policies.reinforcement.off_policy import OffPolicyTrainer
from policies.reinforcement.refinement import RefinementConfig
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.run_folder import RunFolder
from scripts.bench.env import Contender, interleave, make_gymnasium, table
from sim.seeds import SELECTION, training_seeds
from sim.vector import CpuVecEnv
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.settings import require_numbers

_GAMMA, _LEARNING_RATE, _BATCH = 0.95, 1e-3, 256
_GOALS = 4  # hindsight goals for each real one
_EPISODE_STEPS = 50
_AT_ONCE = 10  # gradient steps between two collections of ours


@dataclass(frozen=True)
class BenchSacConfig:
    """How long and how.

    Attributes:
        task: a Fetch task of this project; the peer runs its v4.
        rounds: of the measurement of updates a second; 0 leaves it out.
        updates: gradient steps of one contender in one round.
        seeds: learning runs of each side; 0 leaves them out.
        success: greedy success at which a learning run ends.
        most_steps: control steps after which it ends without.
        evaluate_every: control steps between two greedy evaluations.
        evaluation_episodes: of each.
        hidden: units of each of two hidden layers.
        num_envs: environments of ours; the peer has one, as its zoo sets it.
        threads: of torch, on both sides, while learning.
    """

    task: str = "FetchReach"
    rounds: int = 5
    updates: int = 500
    seeds: int = 5
    success: float = 0.95
    most_steps: int = 20_000
    evaluate_every: int = 500
    evaluation_episodes: int = 100
    hidden: int = 64
    num_envs: int = 10
    threads: int = 1

    def __post_init__(self) -> None:
        counts = ("updates", "evaluate_every", "evaluation_episodes", "hidden", "num_envs")
        require_numbers(self, at_least_1=(*counts, "most_steps", "threads"), at_most={"success": 1})


class Learned(NamedTuple):
    """One learning run.

    Attributes:
        success: greedy, at the end.
        steps: control steps of training.
        wall_s: seconds of training, without evaluation.
        cpu_s: the same in processor seconds of all its processes, for a machine that is not idle.
    """

    success: float
    steps: int
    wall_s: float
    cpu_s: float


class _Stopwatch:
    """Wall and processor seconds of what is timed."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = 0.0, 0.0

    def time(self, what: Callable[[], Any]) -> None:
        """Do it, and add what it took."""
        begun, cpu_s = time.perf_counter(), _cpu_s()
        what()
        self.wall_s += time.perf_counter() - begun
        self.cpu_s += _cpu_s() - cpu_s


def _cpu_s() -> float:
    """Processor seconds of this process and of its workers so far; Linux."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        # Fields 14 and 15, user and system time; the second is a name that may hold spaces.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def make_trainer(config: BenchSacConfig, env: CpuVecEnv, seed: int) -> OffPolicyTrainer[Any]:
    """Ours, from scratch."""
    episodes = max(1, config.evaluate_every // _EPISODE_STEPS)
    torch.manual_seed(seed)
    head = GaussianHeadConfig(config.hidden, log_std_min=-5.0, log_std_start=0.0)
    policy = StatePolicy(env, 1, head)
    # From scratch nothing is lost to an untrained critic, so it needs no iterations of its own.
    training = RefinementConfig(episodes=episodes, warmup_iterations=0, seed=seed)
    method = SACConfig(
        gamma=_GAMMA,
        # As the peer's networks and gradient steps, and its entropy's target and start.
        hidden=config.hidden,
        layer_norm=False,
        critics=2,
        n_step=1,
        updates_per_step=1.0,
        target_entropy=-1.0,
        temperature_start=0.1,
        batch_size=_BATCH,
        learning_rate=_LEARNING_RATE,
        critic_learning_rate=_LEARNING_RATE,
        hindsight=_GOALS / (_GOALS + 1),
        step_reward=-1.0,
        log_std_start=0.0,
    )
    # `advance` neither evaluates nor saves, so nothing is written there.
    folder = RunFolder("runs/never-made", training)
    return OffPolicyTrainer(
        policy, env, training, method, folder, lambda i: training_seeds(seed, i, episodes)
    )


def ours_updates(config: BenchSacConfig, threads: int) -> Contender:
    """Gradient steps of ours, sampling and hindsight included."""
    torch.set_num_threads(threads)
    env = CpuVecEnv(config.task, config.num_envs, render=False)
    trainer = make_trainer(config, env, 0)
    # Twenty episodes to draw from.
    for _ in range(2):
        trainer.advance()
    generator = torch.Generator().manual_seed(0)

    def run(updates: int) -> float:
        begun = time.perf_counter()
        for _ in range(max(1, updates // _AT_ONCE)):
            trainer.sac.update(trainer.replay.sample(_AT_ONCE, _BATCH, generator), generator)
        return max(1, updates // _AT_ONCE) * _AT_ONCE / (time.perf_counter() - begun)

    return Contender(run, env.close)


def make_peer(config: BenchSacConfig, seed: int) -> Any:
    """stable-baselines3's SAC with its replay buffer for hindsight, from scratch."""
    from stable_baselines3 import SAC as PEER
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    # The size is of images, which are not drawn.
    env = DummyVecEnv([lambda: make_gymnasium(config.task, None, 96)])
    # The zoo normalises observations.
    return PEER(
        "MultiInputPolicy",
        VecNormalize(env, norm_obs=True, norm_reward=False),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": _GOALS, "goal_selection_strategy": "future"},
        gamma=_GAMMA,
        learning_rate=_LEARNING_RATE,
        batch_size=_BATCH,
        learning_starts=1000,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=seed,
        device="cpu",
    )


def peer_updates(config: BenchSacConfig, threads: int) -> Contender:
    """Gradient steps of stable-baselines3, sampling and hindsight included."""
    torch.set_num_threads(threads)
    learner = make_peer(config, 0)
    learner.learn(1000)

    def run(updates: int) -> float:
        begun = time.perf_counter()
        learner.train(gradient_steps=updates, batch_size=_BATCH)
        return updates / (time.perf_counter() - begun)

    return Contender(run, learner.get_env().close)


def learn_ours(config: BenchSacConfig, seed: int) -> Learned:
    """One run of ours to the success asked for."""
    torch.set_num_threads(config.threads)
    seeds = SELECTION.seeds(config.evaluation_episodes)
    with CpuVecEnv(config.task, config.num_envs, render=False) as env:
        trainer = make_trainer(config, env, seed)
        watch, success = _Stopwatch(), 0.0
        while success < config.success and trainer.simulator_steps < config.most_steps:
            watch.time(trainer.advance)
            success = evaluate(env, trainer.policy, seeds)[0]["success/end"]
        return Learned(success, trainer.simulator_steps, watch.wall_s, watch.cpu_s)


def learn_peer(config: BenchSacConfig, seed: int) -> Learned:
    """One run of stable-baselines3 to the success asked for."""
    torch.set_num_threads(config.threads)
    learner = make_peer(config, seed)
    env = make_gymnasium(config.task, None, 96)
    learn = partial(learner.learn, config.evaluate_every, reset_num_timesteps=False)
    watch, success = _Stopwatch(), 0.0
    while success < config.success and learner.num_timesteps < config.most_steps:
        watch.time(learn)
        reached = [
            _play_peer(learner, env, seed) for seed in SELECTION.seeds(config.evaluation_episodes)
        ]
        success = float(np.mean(reached))
    return Learned(success, learner.num_timesteps, watch.wall_s, watch.cpu_s)


def _play_peer(learner: Any, env: Any, seed: int) -> bool:
    """Whether a greedy episode ends in success."""
    observation, _ = env.reset(seed=seed)
    is_success, is_over = False, False
    while not is_over:
        normalised = learner.get_env().normalize_obs(observation)
        action, _ = learner.predict(normalised, deterministic=True)
        observation, _, _, is_over, info = env.step(action)
        is_success = bool(info["is_success"])
    return is_success


def learning_table(config: BenchSacConfig) -> str:
    """Markdown: each seed of both sides, and the medians of their ratios."""
    sides: dict[str, Callable[[BenchSacConfig, int], Learned]] = {
        "ours": learn_ours,
        "stable-baselines3": learn_peer,
    }
    runs: dict[str, list[Learned]] = {name: [] for name in sides}
    context = multiprocessing.get_context("spawn")
    for seed in range(config.seeds):
        for name, learn in sides.items():
            # A process each, one after the other: neither has the other's threads or warm caches.
            with ProcessPoolExecutor(1, context) as pool:
                runs[name].append(pool.submit(learn, config, seed).result())
                print(f"{name}, seed {seed}: {runs[name][-1]}", flush=True)
    lines = [
        f"| {config.task} to {config.success:.0%} | success | control steps | seconds | CPU s |",
        "|---|---|---|---|---|",
    ]
    measures = ("steps", "wall_s", "cpu_s")
    for name, learned in runs.items():
        success = [run.success for run in learned]
        columns = [[getattr(run, what) for run in learned] for what in measures]
        cells = [f"{median(c):,.0f} ({min(c):,.0f} to {max(c):,.0f})" for c in columns]
        reached = f"{min(success):.2f} to {max(success):.2f}"
        lines.append(f"| {name}, {len(learned)} seeds | {' | '.join([reached, *cells])} |")
    pairs = list(zip(*runs.values(), strict=True))  # ours and theirs of each seed
    ratios = [median(getattr(a, w) / getattr(b, w) for a, b in pairs) for w in measures]
    lines.append(f"| ours / theirs, median | | {' | '.join(f'{r:.2f}' for r in ratios)} |")
    return "\n".join(lines)


def main(config: BenchSacConfig) -> None:
    """Print both tables, the machine and its load."""
    load = os.getloadavg()[0]
    if config.rounds:
        contenders = {
            f"{name}, {threads} thread{'s' * (threads > 1)}": (
                partial(make, config, threads),
                {"OMP_NUM_THREADS": str(threads)},
            )
            for name, make in {"ours": ours_updates, "stable-baselines3": peer_updates}.items()
            for threads in (1, 2)
        }
        rates = interleave(contenders, config.updates, config.rounds)
        title = f"SAC and hindsight on {config.task}, 2 x {config.hidden} units, updates"
        print(table(title, rates, tuple(rates)[:2]), end="\n\n")
    if config.seeds:
        print(learning_table(config), end="\n\n")
    print(
        f"{config.rounds} interleaved rounds, medians; batches of {_BATCH}; {os.cpu_count()} cores "
        f"({platform.processor() or platform.machine()}), load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after."
    )


if __name__ == "__main__":
    main(tyro.cli(BenchSacConfig))
