"""Measure PPO's control steps a second, learning included, against stable-baselines3, interleaved.

Both learn the same state-based task with the same network sizes, rollout length, epochs and
minibatches, one decision a control step; stable-baselines3 is given one and two threads of torch.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import partial

import torch
import tyro

from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.run_folder import RunFolder
from scripts.bench.env import Contender, interleave, make_gymnasium, table
from sim.vector import CpuVecEnv
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.settings import require_numbers

_HIDDEN = 256
# Of gymnasium-robotics' Fetch tasks and of ours.
_EPISODE_STEPS = 50


@dataclass(frozen=True)
class BenchPpoConfig:
    """How long and how.

    Attributes:
        task: a Fetch task of this project; the peer runs its v4.
        rounds: every contender runs once a round; ratios are taken within a round.
        steps: control steps of one contender in one round.
        rollout: control steps between two learnings.
        epochs: passes over a rollout.
        minibatch: control steps a gradient step.
        num_envs: environments of ours.
        peer_envs: environments (and processes) of stable-baselines3.
    """

    task: str = "FetchPush"
    rounds: int = 5
    steps: int = 4000
    rollout: int = 2000
    epochs: int = 10
    minibatch: int = 250
    num_envs: int = 40
    peer_envs: int = 8

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=(
                "rounds",
                "steps",
                "rollout",
                "epochs",
                "minibatch",
                "num_envs",
                "peer_envs",
            ),
        )


def ours(config: BenchPpoConfig, chunk_length: int) -> Contender:
    """Our PPO, `chunk_length` control steps a decision."""
    env = CpuVecEnv(config.task, config.num_envs, render=False)
    episodes = config.rollout // _EPISODE_STEPS
    # In macro-steps: `config.minibatch` counts control steps, of which a decision has
    # `chunk_length`.
    minibatch_size = config.minibatch // chunk_length
    training = OnPolicyConfig(
        episodes=episodes,
        critic_epochs=config.epochs,
        critic_minibatch_size=minibatch_size,
        # The critic's warm-up would be learning without a counterpart on the other side.
        warmup_iterations=0,
    )
    # The KL never ends an iteration early: both sides take all their gradient steps.
    method = PPOConfig(epochs=config.epochs, minibatch_size=minibatch_size, target_kl=None)
    policy = StatePolicy(env, chunk_length, GaussianHeadConfig(_HIDDEN))
    # `iterate` neither evaluates nor saves, so nothing is written there.
    folder = RunFolder("runs/never-made", training)
    trainer = OnPolicyTrainer(
        policy, env, training, method, folder, lambda i: range(i * episodes, (i + 1) * episodes)
    )

    def run(steps: int) -> float:
        iterations = max(1, steps // config.rollout)
        begun = time.perf_counter()
        for _ in range(iterations):
            trainer.iterate()
        return iterations * config.rollout / (time.perf_counter() - begun)

    return Contender(run, env.close)


def stable_baselines(config: BenchPpoConfig, threads: int) -> Contender:
    """stable-baselines3's PPO over processes."""
    import gymnasium
    from stable_baselines3 import PPO as PEER
    from stable_baselines3.common.vec_env import SubprocVecEnv

    def make() -> gymnasium.Env:
        # The size is of images, which are not drawn.
        env = make_gymnasium(config.task, None, 96)
        return gymnasium.wrappers.FlattenObservation(env)

    torch.set_num_threads(threads)
    env = SubprocVecEnv([make] * config.peer_envs)
    learner = PEER(
        "MlpPolicy",
        env,
        # stable-baselines3 counts a rollout by environment.
        n_steps=config.rollout // config.peer_envs,
        batch_size=config.minibatch,
        n_epochs=config.epochs,
        policy_kwargs={"net_arch": [_HIDDEN, _HIDDEN]},
        device="cpu",
    )

    def run(steps: int) -> float:
        begun = time.perf_counter()
        before = learner.num_timesteps
        # It rounds up to whole rollouts, hence the count of steps it has really taken.
        learner.learn(steps, reset_num_timesteps=False)
        return (learner.num_timesteps - before) / (time.perf_counter() - begun)

    return Contender(run, env.close)


def main(config: BenchPpoConfig) -> None:
    """Print the table, the machine and its load."""
    load = os.getloadavg()[0]
    # One thread for ours and for one of the peers; the other peer gets two.
    one = {"OMP_NUM_THREADS": "1"}
    contenders = {
        "ours, a decision each step": (partial(ours, config, 1), one),
        "ours, chunks of 5 steps": (partial(ours, config, 5), one),
        "stable-baselines3, 1 thread": (partial(stable_baselines, config, 1), one),
        "stable-baselines3, 2 threads": (partial(stable_baselines, config, 2), {}),
    }
    rates = interleave(contenders, config.steps, config.rounds)
    print(table(f"PPO on {config.task}, state", rates, tuple(rates)[:2]), end="\n\n")
    print(
        f"{config.rounds} interleaved rounds, medians; rollouts of {config.rollout} steps, "
        f"{config.epochs} epochs, 2 x {_HIDDEN} units; {os.cpu_count()} cores "
        f"({platform.processor() or platform.machine()}), load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after."
    )


if __name__ == "__main__":
    main(tyro.cli(BenchPpoConfig))
