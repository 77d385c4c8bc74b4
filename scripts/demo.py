"""`vla demo`: the main job on a small scale: collect, clone, refine, compare, export, run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from vla_runtime.exported.folder import read_exported
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.run_report import REPORT

from scripts import collect, evaluate, export, pretrain, refine
from scripts.presets import preset
from scripts.progress import stages
from sim.robot import TaskRobot
from sim.tasks.registry import make_task
from vla.checkpoint.folder import fingerprint
from vla.deploy.torch_policy import find_checkpoint
from vla.settings import require_numbers


@dataclass(frozen=True)
class DemoConfig:
    """From demonstrations to a report, and to a policy that runs a simulated robot in real time.

    Attributes:
        task: a preset's name.
        demonstrations: episodes to record.
        cloning_updates: optimizer steps of behaviour cloning.
        iterations: of PPO.
        episodes: held-out initial states on which all are compared.
        out: everything is written below it.
        seed: of everything random.
    """

    task: str = "FetchPush"
    demonstrations: int = 5
    cloning_updates: int = 1000
    iterations: int = 20
    episodes: int = 100
    out: Path = Path("runs/demo")
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(
            self, at_least_1=("demonstrations", "cloning_updates", "iterations", "episodes")
        )


def main(config: DemoConfig) -> int:
    """Run every stage; call it again after an interruption, and each resumes where it stopped."""
    announce = stages()
    data, clone, refined = (config.out / name for name in ("data", "clone", "refined"))
    settings = preset(config.task)
    # All settings first: a bad one is refused before the first stage, not before its own.
    recording = replace(settings.collect, episodes=config.demonstrations, root=data)
    cloning = replace(
        settings.pretrain,
        data=(data,),
        out=clone,
        training=replace(
            settings.pretrain.training, updates=config.cloning_updates, seed=config.seed
        ),
    )
    refining = replace(
        settings.refine,
        # Does not exist yet: its content is read only when that stage begins.
        clone=clone / "best",
        out=refined,
        training=replace(settings.refine.training, iterations=config.iterations, seed=config.seed),
    )
    comparison = evaluate.EvaluateConfig(
        config.task,
        # The first one is the reference of the comparison; expert and random bound it from both
        # sides.
        (f"clone={clone}", f"refined={refined}", "planner:cem", "expert", "random"),
        episodes=config.episodes,
        out=config.out / "report",
        seed=config.seed,
    )

    # Each `main` continues its own folder, so finished stages are skipped within seconds.
    announce(f"recording {config.demonstrations} demonstrations of {config.task}")
    collect.main(recording)
    announce("cloning them")
    pretrain.main(cloning)
    announce("refining the clone with PPO")
    refine.main(refining)
    announce("comparing on held-out initial states")
    evaluate.main(comparison)
    announce("exporting the refined policy, and comparing it with the checkpoint in closed loop")
    exported, run = config.out / "exported", config.out / "run"
    _drop_older(exported, run, refined)
    if not exported.exists():
        export.main(export.ExportConfig(refined, exported, task=config.task))
    announce("running it on the simulated robot in real time, without torch")
    if not (run / REPORT).exists():
        _run_robot(config.task, exported, run)
    announce(f"done: open {config.out / 'report' / 'report.html'} and {run / 'report.html'}")
    return 0


def _drop_older(exported: Path, run: Path, refined: Path) -> None:
    """Remove the export of an earlier policy, such as of fewer iterations, and what it did."""
    if not exported.exists():
        return
    source = read_exported(exported)[1].source
    if source["checkpoint"] != fingerprint(find_checkpoint(refined)):
        # The run first: an interruption in between leaves an export that is dropped again.
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(exported)


def _run_robot(task: str, policy: Path, out: Path) -> None:
    """One episode of the first held-out initial state, through control loop and safety gate."""
    robot, steps = TaskRobot(task), make_task(task).episode_length
    seconds = steps / robot.spec.control_rate_hz
    config = RunConfig(f"fetch:{task}", str(policy), robot.instruction, seconds=seconds, out=out)
    print(*run_robot(robot, config).lines(), sep="\n", flush=True)
