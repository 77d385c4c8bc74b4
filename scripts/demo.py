"""`vla demo`: the main job on a small scale: collect, clone, refine, compare, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from policies.imitation.bc import CloningConfig
from policies.reinforcement.ppo import PPOConfig
from scripts import collect, evaluate, pretrain, refine


@dataclass(frozen=True)
class DemoConfig:
    """From demonstrations to a report.

    Attributes:
        task: registry name.
        demonstrations: episodes to record.
        cloning_updates: optimizer steps of behaviour cloning.
        iterations: of PPO.
        episodes: held-out initial states on which all are compared.
        out: everything is written below it.
        seed: of everything random.
    """

    task: str = "FetchPush"
    demonstrations: int = 50
    cloning_updates: int = 3000
    iterations: int = 20
    episodes: int = 100
    out: Path = Path("runs/demo")
    seed: int = 0


def main(config: DemoConfig) -> int:
    """Run every stage; a stage that was cut goes on where it stopped when called again."""
    started = time.perf_counter()
    data, clone, refined = (config.out / name for name in ("data", "clone", "refined"))

    def announce(stage: str) -> None:
        print(f"\n[{time.perf_counter() - started:5.0f} s] {stage}", flush=True)

    announce(f"recording {config.demonstrations} demonstrations of {config.task}")
    collect.main(collect.CollectConfig((config.task,), config.demonstrations, data))
    announce("cloning them")
    cloning = CloningConfig(config.cloning_updates, evaluate_every=1000, seed=config.seed)
    pretrain.main(pretrain.PretrainConfig(config.task, (data,), out=clone, training=cloning))
    announce("refining the clone with PPO")
    learning = PPOConfig(iterations=config.iterations, seed=config.seed)
    refine.main(refine.RefineConfig(config.task, clone / "best", refined, training=learning))
    announce("comparing on held-out initial states")
    policies = (f"clone={clone}", f"refined={refined}", "planner:cem", "expert", "random")
    evaluate.main(
        evaluate.EvaluateConfig(
            config.task, policies, episodes=config.episodes, out=config.out / "report"
        )
    )
    announce(f"done: open {config.out / 'report' / 'report.html'}")
    return 0
