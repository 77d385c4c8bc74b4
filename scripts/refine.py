"""`vla refine`: improve a cloned policy with PPO in simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from policies.reinforcement.ppo import PPO, PPOConfig
from policies.run_folder import RunFolder
from scripts.pretrain import SELECTION_SEED
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv
from vla.policy import load_policy


@dataclass(frozen=True)
class RefineConfig:
    """Refine a clone with PPO.

    Attributes:
        task: registry name.
        clone: checkpoint to start from; by default `runs/<task>/clone/best`.
        embodiment: which robot of a clone for several; by default the one that fits the task.
        out: run folder; by default `runs/<task>/refined`. Its best checkpoint is `<out>/best`.
        device: where to learn.
        num_envs: environments stepped together.
        selection_episodes: initial states that choose the checkpoint; of 100, chance picks one.
        stop_at: end early once greedy success on them reaches this; above 1 never.
        training: how to learn.
    """

    task: str = "FetchPush"
    clone: Path | None = None
    embodiment: str | None = None
    out: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_envs: int = 50
    selection_episodes: int = 200
    stop_at: float = 1.1
    training: OmitArgPrefixes[PPOConfig] = field(default_factory=PPOConfig)


def main(config: RefineConfig) -> int:
    """Learn, say how well, and where the policy lies."""
    runs = Path("runs") / config.task
    wanted = config.embodiment or make_task(config.task).spec
    policy = load_policy(config.clone or runs / "clone" / "best", config.device, wanted)
    folder = RunFolder(config.out or runs / "refined", config, command_line("refine", config))
    with (
        CpuVecEnv(config.task, config.num_envs) as env,
        Bar("refine", config.training.iterations) as bar,
    ):
        ppo = PPO(policy, env, config.training, folder)
        seeds = range(SELECTION_SEED, SELECTION_SEED + config.selection_episodes)
        best = ppo.run(seeds, bar.update, config.stop_at)
    folder.close()
    print(
        f"refined: success {ppo.best_success:.2f} on {config.selection_episodes} after "
        f"{ppo.simulator_steps} simulator steps: {best}"
    )
    return 0
