"""`vla refine`: improve a cloned policy by reinforcement learning in simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from policies.reinforcement.registry import ALGORITHMS
from policies.reinforcement.rewards import make_reward
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.run_folder import RunFolder
from scripts.choice import read_choice
from scripts.curricula import make_curriculum
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.seeds import SELECTION, training_seeds
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.policy import load_policy
from vla.settings import require_numbers


@dataclass(frozen=True)
class RefineConfig:
    """Refine a clone by reinforcement learning.

    Attributes:
        task: registry name.
        algorithm: ppo, a2c or reinforce, and settings of it that are off their defaults:
            `ppo:clip_range=0.2,epochs=5`; `ppo:help` shows them all.
        clone: checkpoint to start from; by default `runs/<task>/clone/best`.
        embodiment: which robot of a clone for several; by default the one that fits the task.
        out: run folder; by default `runs/<task>/refined`. Its best checkpoint is `<out>/best`.
        device: where to learn.
        num_envs: environments stepped together. They decide in one batch, about four times as fast
            as one by one; another number rounds otherwise, changes what is collected and can change
            which of two equally good checkpoints is chosen. `vla evaluate`, whose scores are
            reported, decides one by one.
        selection_episodes: initial states that choose the checkpoint; with 100 the choice is mostly
            chance.
        reward: learn from this one in place of the task's own, which is 1 at each successful step:
            distance, or near-object, which is flawed on purpose. Success is watched beside it.
        curriculum: choose start states (frontier) or how near is good enough (radius) by success so
            far, with settings as for the algorithm; None takes them as the task draws them.
        stop_at: end early once greedy success on them reaches this; None never does.
        training: what is the same for every algorithm.
    """

    task: str = "FetchPush"
    algorithm: str = "ppo"
    clone: Path | None = None
    embodiment: str | None = None
    out: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_envs: int = 50
    selection_episodes: int = 200
    reward: str | None = None
    curriculum: str | None = None
    stop_at: float | None = None
    training: OmitArgPrefixes[OnPolicyConfig] = field(default_factory=OnPolicyConfig)

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("num_envs", "selection_episodes"), at_most={"stop_at": 1})
        if self.reward and (self.curriculum or "").partition(":")[0] == "radius":
            raise ValueError("--reward and --curriculum radius both say what is learned from")


def main(config: RefineConfig) -> int:
    """Learn, say how well, and where the policy lies."""
    training, runs = config.training, Path("runs") / config.task
    configs = {name: algorithm.config for name, algorithm in ALGORITHMS.items()}
    # Before anything is loaded: a wrong setting is answered at once.
    method = read_choice("algorithm", "--algorithm", config.algorithm, configs)
    task = make_task(config.task)
    reward = None if config.reward is None else make_reward(config.reward, task.privileged_names)
    curriculum = None
    if config.curriculum is not None:
        curriculum = make_curriculum(config.curriculum, config.task, training)
    clone = config.clone or runs / "clone" / "best"
    policy = load_policy(clone, config.device, config.embodiment or task.spec)
    folder = RunFolder(
        config.out or runs / "refined",
        config,
        command_line("refine", config),
        # By content: resuming with another clone is refused, moving the same one is not.
        {"command": "refine", "task": config.task, "clone": fingerprint(clone)}
        | ({} if config.reward is None else {"reward": config.reward}),
    )
    selection = SELECTION.seeds(config.selection_episodes)
    with (
        # One environment for collection and for selection: `rollout` resets it with the seeds of
        # each.
        CpuVecEnv(config.task, config.num_envs) as env,
        Bar("refine", training.iterations) as bar,
    ):
        trainer = OnPolicyTrainer(
            policy,
            env,
            training,
            method,
            folder,
            # A function of the iteration alone, so a resumed run collects the states that come
            # next.
            lambda iteration: training_seeds(training.seed, iteration, training.episodes),
            reward,
            curriculum,
        )
        best = trainer.run(selection, bar.update, config.stop_at)
    folder.close()
    print(
        f"refined: success {trainer.checkpoints.best_score:.2f} on {config.selection_episodes} "
        f"after {trainer.simulator_steps} simulator steps: {best}"
    )
    return 0
