"""`vla dagger`: clone, let the clone play, label what it meets, and clone again."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg
from vla_runtime.atomic_folder import write_atomically

from policies.evaluation.drift import Drift, measure_drift
from policies.imitation.dagger import Mixture, play_labelled
from scripts import pretrain
from scripts.devices import require_device
from scripts.initial_states import choose_seeds
from scripts.policy_loading import BUILT_IN, image_size_px, make_built_in
from scripts.pretrain import PretrainConfig
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.demonstrate import leave_in_spool
from sim.recording_store import RecordingStore
from sim.seeds import DEVELOPMENT, training_seeds
from sim.tasks.registry import make_task, short_name
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.data.recorded_frames import read_frames
from vla.policy import VLAPolicy, load_policy
from vla.settings import require_numbers

TEACHERS = tuple(name for name in BUILT_IN if name == "expert" or name.startswith("planner:"))
_STATES = "privileged.state"


@dataclass(frozen=True)
class DaggerConfig:
    """Clone with DAgger.

    Attributes:
        rounds: of playing, labelling and cloning again, after the first clone.
        episodes_per_round: played and labelled in each round.
        teacher: labels every visited state: expert, planner:cem or planner:mppi.
        beta: probability that a chunk is the teacher's in the first round; in round i its i-th
            power. With 0 the learner always plays.
        drift_episodes: initial states on which the first and the best clone are compared.
        training: how demonstrations are cloned, as in `vla pretrain`. `out` holds all rounds, by
            default `runs/<task>/dagger`. `<out>/best` is the best clone of all rounds.
    """

    rounds: int = 3
    episodes_per_round: int = 50
    teacher: str = "expert"
    beta: float = 0.0
    drift_episodes: int = 100
    # Without a prefix of its own: the flags are those of `vla pretrain`, `--embedded.width` too.
    training: Annotated[PretrainConfig, arg(name="")] = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        counts = ("rounds", "episodes_per_round", "drift_episodes")
        require_numbers(self, at_least_1=counts, at_most={"beta": 1})
        if self.teacher not in TEACHERS:
            raise ValueError(f"no teacher {self.teacher!r}; valid: {', '.join(TEACHERS)}")
        if self.training.task is None:
            raise ValueError("DAgger plays in simulation: name a task")


def main(config: DaggerConfig) -> int:
    """Clone, play and label, round by round; then say what it was good for."""
    cloning, task = config.training, str(config.training.task)
    out = cloning.out or Path("runs") / short_name(task) / "dagger"
    recorded = cloning.data or (Path("data") / short_name(task),)
    require_device(cloning.device)
    # Both before minutes of cloning: data sets of others have no simulator state to compare with.
    require_teacher(task, config.teacher)
    demonstrated = _demonstrated_states(recorded)
    labelled: list[Path] = []
    scores: list[float] = []
    for number in range(config.rounds + 1):
        if number:
            labelled.append(_label(config, number, out))
        every = (*recorded, *labelled)
        checkpoints = pretrain.clone(replace(cloning, data=every, out=_round(out, number)))
        scores.append(checkpoints.best_score)
    # Of equally good ones the later, which has seen more.
    best = max(range(len(scores)), key=lambda number: (scores[number], number))
    load_policy(_round(out, best) / "best").save(
        out / "best", command=command_line("dagger", config)
    )
    compared = {"clone": _round(out, 0) / "best", "DAgger": out / "best"}
    found = _drift(config, compared, demonstrated)
    write_atomically(
        out / "drift.json", json.dumps({name: asdict(drift) for name, drift in found.items()})
    )
    _print_drift(found)
    print(f"dagger: success {scores[best]:.2f} in round {best}: {out / 'best'}")
    return 0


def _print_drift(found: Mapping[str, Drift]) -> None:
    print("                distance from demonstrations      success")
    print("control steps   " + "".join(f"{name:>12}" for name in found) * 2)
    first, last = found.values()
    for index, steps in enumerate(first.steps):
        figures = (first.distance, last.distance, first.success, last.success)
        print(f"{steps:13}   " + "".join(f"{values[index]:12.3f}" for values in figures))


def _round(out: Path, number: int) -> Path:
    return out / f"round_{number}"


def require_teacher(name: str, teacher: str) -> None:
    """Ask once what will be asked at every step; a task without it says so."""
    task = make_task(name)
    data = task.make_data()
    episode = task.reset(data, DEVELOPMENT.start)
    if teacher == "expert":
        task.expert_action(data, episode)
    else:
        task.cost(data, episode)


def _demonstrated_states(folders: tuple[Path, ...]) -> torch.Tensor:
    """Simulator states of the demonstrations, float32 [m, privileged]."""
    parts = [read_frames(folder).vectors(_STATES) for folder in folders]
    return torch.cat([torch.from_numpy(part).float() for part in parts])


def _label(config: DaggerConfig, number: int, out: Path) -> Path:
    """Play and label the episodes of a round that are not recorded yet; their data set.

    Raises:
        ValueError: the round was recorded with another teacher, learner or number of episodes.
    """
    cloning, task = config.training, str(config.training.task)
    learner = _round(out, number - 1) / "best"
    policy = load_policy(learner, cloning.device)
    folder = out / "labelled" / f"round_{number}"
    settings = {
        "task": [task],
        "teacher": config.teacher,
        "beta": config.beta**number,
        "learner": fingerprint(learner),
        "seed": cloning.training.seed,
    }
    # Other states in every round, and none that chooses or measures.
    seeds = training_seeds(cloning.training.seed, number, config.episodes_per_round)
    tasks = [make_task(task, image_size_px(policy.spec))]
    with RecordingStore.open(folder, settings, tasks) as store:
        # Added to it, they would change what finished rounds were cloned from.
        if others := {seed for _, seed in store.succeeded} - {*seeds}:
            raise ValueError(
                f"{folder} holds {len(others)} episodes of other initial states: go on with the "
                "--episodes-per-round it was recorded with, or choose another --out"
            )
        if missing := [seed for seed in seeds if (task, seed) not in store.succeeded]:
            with _environment(policy, task, cloning.num_envs) as env:
                _play(config, number, policy, env, store, missing)
        store.write([(task, seed) for seed in seeds if (task, seed) not in store.episodes])
    return folder


def _play(
    config: DaggerConfig,
    number: int,
    policy: VLAPolicy,
    env: CpuVecEnv,
    store: RecordingStore,
    seeds: Sequence[int],
) -> None:
    """Leave labelled episodes in the store's spool."""
    task, beta = env.task.name, config.beta**number
    with Bar(f"round {number}", len(seeds)) as bar:
        for group in itertools.batched(seeds, env.num_envs):
            # A planner is asked at every control step, so it shifts its plan by one.
            teacher = make_built_in(config.teacher, env, seed=number, execute_steps=1)
            mixture = Mixture(lambda: copy.copy(policy), teacher, policy.spec, beta, group[0])
            for seed, arrays in zip(group, play_labelled(env, mixture, group), strict=True):
                leave_in_spool(store.spool, task, seed, arrays)
                store.register((task, seed), succeeded=True)
            bar.update(len(store.succeeded), {})


def _drift(
    config: DaggerConfig, checkpoints: Mapping[str, Path], demonstrated: torch.Tensor
) -> dict[str, Drift]:
    """On development states, which chose no checkpoint."""
    cloning, task = config.training, str(config.training.task)
    policies = {name: load_policy(path, cloning.device) for name, path in checkpoints.items()}
    seeds = choose_seeds(task, "development", config.drift_episodes)
    with _environment(next(iter(policies.values())), task, cloning.num_envs) as env:
        return {
            name: measure_drift(env, policy, seeds, demonstrated)
            for name, policy in policies.items()
        }


def _environment(policy: VLAPolicy, task: str, num_envs: int) -> CpuVecEnv:
    cameras = [camera.name for camera in policy.spec.cameras]
    return CpuVecEnv(task, num_envs, None, image_size_px(policy.spec), cameras)
