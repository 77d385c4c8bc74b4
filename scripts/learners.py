"""`vla learners`: compare learners from the same clones, control steps and initial states.

Every method refines every clone. The best checkpoint of each run plays the same initial states,
which chose nothing, and what comes out is a table and a page with learning curves. Repeating the
command goes on where it stopped: a finished run is not trained again, a checkpoint that was played
is not played again, and methods and clones may be added.

A method is what `--algorithm` of `vla refine` takes, with settings if wanted, or one of

- dpo: comparisons of the clone's own episodes by success, one in ten wrong, then direct preference
  optimisation;
- reward_model: comparisons by return from half of the control steps, one in ten wrong, a reward
  model fitted to them, and PPO on that reward with the other half;
- dagger: three rounds of fifty episodes that the expert labels, each cloned from the start. It uses
  far fewer control steps than the others, and an expert that they do not have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from vla_runtime.atomic_folder import digest, write_atomically

from policies.evaluation.habits.run_metrics import RunMetrics
from policies.reinforcement.off_policy import OFF_POLICY
from policies.reinforcement.registry import ALGORITHMS
from policies.reinforcement.trainer import OnPolicyConfig
from policies.run_folder import require_writable
from scripts import compare, dagger, dpo, refine, reward
from scripts.devices import require_device
from scripts.evaluate import EvaluateConfig
from scripts.initial_states import States
from scripts.learners_table import Trained, write_results
from scripts.outcomes import play_once
from scripts.policy_loading import Candidate, read_policy, require_comparable
from scripts.presets import preset
from scripts.refine import read_algorithm
from sim.tasks.registry import make_task, short_name
from vla.checkpoint.folder import fingerprint
from vla.model.heads.registry import require_likelihood
from vla.policy import VLAPolicy, load_policy
from vla.settings import require_numbers

_ATTEMPTS = 4
"""Episodes of an initial state whose outcomes are compared."""
_LABEL_NOISE = 0.1


@dataclass(frozen=True)
class LearnersConfig:
    """Which methods, from which clones, for how long.

    Attributes:
        clones: checkpoints that every method starts from; the n-th is refined with seed n.
        methods: what `--algorithm` of `vla refine` takes, with settings if wanted
            (`grpo:group_size=4`), or dpo, reward_model or dagger.
        task: registry name.
        control_steps: of simulation that each method collects, at most.
        evaluate_every: control steps between two greedy evaluations, which choose the checkpoint.
        selection_episodes: initial states of those evaluations.
        states: initial states of the table.
        episodes: how many of them.
        demonstrations: recorded folder that sac and dagger learn from; default `data/<task>`.
        num_envs: environments stepped together.
        device: where to learn.
        out: a folder for each method and seed, and results.md, results.json and results.html.
    """

    clones: tuple[Path, ...]
    methods: tuple[str, ...] = (*ALGORITHMS, "sac", "dpo", "reward_model", "dagger")
    task: str = "FetchPush"
    control_steps: int = 300_000
    evaluate_every: int = 50_000
    selection_episodes: int = 200
    states: States = "development"
    episodes: int = 200
    demonstrations: Path | None = None
    num_envs: int = 50
    device: Literal["cpu", "cuda"] = "cpu"
    out: Path = Path("runs/learners")

    def __post_init__(self) -> None:
        counts = ("control_steps", "evaluate_every", "selection_episodes", "episodes", "num_envs")
        require_numbers(self, at_least_1=counts)
        for name in ("clones", "methods"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise ValueError(f"{name} must be one or more, each of them once: {given}")

    @property
    def data(self) -> Path:
        """Where the demonstrations lie."""
        return self.demonstrations or Path("data") / short_name(self.task)


class Job(NamedTuple):
    """One run of the table: a method's text, the clone that it starts from, and a folder."""

    method: str
    clone: Path
    seed: int
    folder: Path


def main(config: LearnersConfig) -> int:
    """Train and play what is missing, then write the table."""
    require_possible(config)
    trained = [
        _play(config, "clone", seed, clone, config.out / "clone" / f"s{seed}")
        for seed, clone in enumerate(config.clones)
    ]
    for seed, clone in enumerate(config.clones):
        for method in config.methods:
            job = Job(method, clone, seed, config.out / method / f"s{seed}")
            print(f"{method}, seed {seed}", flush=True)
            with _timed(job.folder):
                best = _runner(method)(config, job)
            trained.append(_play(config, method, seed, best, job.folder))
            # After every run: an interrupted comparison has a table of what is there.
            print(write_results(config.out, config.task, trained), flush=True)
    return 0


def require_possible(config: LearnersConfig) -> None:
    """Try what would stop the comparison hours later.

    Raises:
        ValueError: a method is unknown, does not fit a clone's head, its iterations do not fit into
            the control steps or its groups into an iteration, the demonstrations are of another
            task, or the task has no expert for dagger.
        OSError: a clone or the demonstrations are missing, or nothing can be written.
    """
    require_device(config.device)
    require_writable(config.out)
    policies = [load_policy(clone, config.device) for clone in config.clones]
    for method in config.methods:
        _runner(method)
        for policy in policies:
            _require_head(method, policy)
    for method in config.methods:
        if method != "dagger":
            _iterations(config, method)
            _require_groups(method)
    named = {method.partition(":")[0] for method in config.methods}
    if named & {"sac", "dagger"} and not (config.data / "meta" / "info.json").is_file():
        raise FileNotFoundError(
            f"no demonstrations in {config.data}, which sac and dagger learn from: record them "
            f"with vla collect --task {config.task}, or name others with --demonstrations"
        )
    if "sac" in named:
        refine.require_recorded(
            refine.RefineConfig(config.task, "sac", demonstrations=config.data), True
        )
    if "dagger" in named:
        dagger.require_teacher(config.task, dagger.DaggerConfig.teacher)


def _require_head(method: str, policy: VLAPolicy) -> None:
    """Refuse a method that the clone's head cannot serve."""
    name = method.partition(":")[0]
    if name in OFF_POLICY:
        OFF_POLICY[name].space(policy, read_algorithm(method, "--methods"))
    elif name != "dagger":
        require_likelihood(policy.actor.head, name)


def _require_groups(method: str) -> None:
    """Refuse groups that an iteration is no whole number of."""
    name = method.partition(":")[0]
    if name not in ALGORITHMS:
        return
    episodes, size = _episodes(name), getattr(read_algorithm(method, "--methods"), "group_size", 1)
    if episodes % size:
        raise ValueError(
            f"{method} compares groups of {size} episodes, of which an iteration of {episodes} is "
            "no multiple"
        )


def _runner(method: str) -> Callable[[LearnersConfig, Job], Path]:
    """What trains a method and returns its best checkpoint."""
    special = {"dpo": _dpo, "reward_model": _reward_model, "dagger": _dagger}
    if method in special:
        return special[method]
    name, known = method.partition(":")[0], (*ALGORITHMS, *OFF_POLICY)
    if name not in known:
        raise ValueError(f"no method {name!r}; valid: {', '.join((*known, *special))}")
    read_algorithm(method, "--methods")
    return _refine


@cache
def _episode_length(task: str) -> int:
    return make_task(task).episode_length


def _iterations(config: LearnersConfig, method: str) -> tuple[int, int, int]:
    """Episodes of an iteration, iterations, and iterations between two greedy evaluations."""
    name = method.partition(":")[0]
    episodes = _episodes(name)
    steps = config.control_steps // 2 if name == "reward_model" else config.control_steps
    length = _episode_length(config.task)
    each = episodes * length
    if steps % each or config.evaluate_every % each:
        raise ValueError(
            f"an iteration of {name} is {episodes} episodes of {length} control steps: its "
            f"{steps:,} control steps and evaluate_every {config.evaluate_every:,} must be "
            f"multiples of {each:,}"
        )
    return episodes, steps // each, config.evaluate_every // each


def _episodes(name: str) -> int:
    """Of an iteration: methods that take one gradient step each need many small ones."""
    return 50 if name in ("a2c", "reinforce", *OFF_POLICY) else 200


def _refine(
    config: LearnersConfig, job: Job, algorithm: str = "", reward_from: str | None = None
) -> Path:
    """`vla refine` from the clone."""
    name = job.method.partition(":")[0]
    episodes, iterations, every = _iterations(config, job.method)
    training = OnPolicyConfig(
        iterations=iterations, episodes=episodes, evaluate_every=every, seed=job.seed
    )
    if name == "a2c":
        training = replace(training, critic_minibatch_size=100)
    refine.main(
        refine.RefineConfig(
            config.task,
            algorithm or job.method,
            job.clone,
            demonstrations=config.data if name == "sac" else None,
            out=job.folder,
            device=config.device,
            num_envs=config.num_envs,
            selection_episodes=config.selection_episodes,
            reward=reward_from,
            training=training,
        )
    )
    return job.folder / "best"


def _compare(
    config: LearnersConfig,
    job: Job,
    control_steps: int,
    judge: Literal["return", "success"],
) -> Path:
    """`vla compare`: the clone's own episodes, judged with label noise; their folder."""
    folder = job.folder / "comparisons"
    compare.main(
        compare.CompareConfig(
            config.task,
            (job.clone,),
            states=control_steps // (_ATTEMPTS * _episode_length(config.task)),
            attempts=_ATTEMPTS,
            judge=judge,
            label_noise=_LABEL_NOISE,
            out=folder,
            num_envs=config.num_envs,
            device=config.device,
            seed=job.seed,
        )
    )
    return folder


def _dpo(config: LearnersConfig, job: Job) -> Path:
    training = replace(dpo.DpoConfig().training, seed=job.seed)
    dpo.main(
        dpo.DpoConfig(
            config.task,
            _compare(config, job, config.control_steps, "success"),
            job.clone,
            out=job.folder / "dpo",
            device=config.device,
            num_envs=config.num_envs,
            selection_episodes=config.selection_episodes,
            training=training,
        )
    )
    return job.folder / "dpo" / "best"


def _reward_model(config: LearnersConfig, job: Job) -> Path:
    compared = _compare(config, job, config.control_steps // 2, "return")
    fitted = job.folder / "reward"
    # A new folder or none: the model is whole where it is.
    if not fitted.is_dir():
        training = replace(reward.RewardConfig().training, inputs="features", seed=job.seed)
        reward.main(reward.RewardConfig(config.task, compared, fitted, training))
    about = json.loads((fitted / "run.json").read_text())["settings"]
    # More control steps are more comparisons, which the model has not seen.
    if about["comparisons"] != digest(compared / "comparisons.jsonl"):
        raise ValueError(
            f"the reward model in {fitted} was fitted to other comparisons than there are now: "
            "choose another --out for other --control-steps"
        )
    refined = job._replace(folder=job.folder / "refined")
    return _refine(config, refined, "ppo:reference_kl=0.1", f"model:{fitted}")


def _dagger(config: LearnersConfig, job: Job) -> Path:
    settings = preset(config.task).pretrain
    training = replace(settings.training, seed=job.seed)
    cloning = replace(
        settings, data=(config.data,), out=job.folder, device=config.device, training=training
    )
    dagger.main(dagger.DaggerConfig(training=cloning))
    return job.folder / "best"


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the seconds of what is done to the folder's own; a run may be trained in several goes."""
    started, file, found = time.perf_counter(), folder / "seconds.json", _results(folder)
    try:
        yield
    finally:
        before = json.loads(file.read_text()) if file.is_file() else 0.0
        # A finished run loads its policy again to find that nothing is left to do.
        if _results(folder) != found:
            write_atomically(file, json.dumps(before + time.perf_counter() - started))


def _results(folder: Path) -> list[tuple[Path, int]]:
    """What a method has written so far: its logs, episodes and weights, and their sizes."""
    kinds = (".jsonl", ".safetensors")
    return sorted((path, path.stat().st_size) for path in folder.rglob("*") if path.suffix in kinds)


def _play(
    config: LearnersConfig, method: str, seed: int, checkpoint: Path, folder: Path
) -> Trained:
    """A run's best checkpoint, played, and what else is known of the run."""

    def candidate() -> Candidate:
        found = read_policy(str(checkpoint), config.device, config.task)
        require_comparable([found], config.task, found.name)
        # Not as `NAME=FOLDER`: a method's settings have a "=" of their own.
        return replace(found, name=method)

    playing = EvaluateConfig(
        config.task,
        (method,),
        episodes=config.episodes,
        states=config.states,
        num_envs=config.num_envs,
        films=0,
        device=config.device,
    )
    asked = {"task": config.task, "checkpoint": fingerprint(checkpoint)}
    outcomes = play_once(folder / f"{config.states}.json", asked, candidate, playing)
    clone, mine = (_ledger(path) for path in (config.clones[seed], checkpoint))
    seconds, metrics = folder / "seconds.json", checkpoint.parent / "metrics.jsonl"
    # The clone's own log counts updates, not control steps.
    logged = method != "clone" and metrics.is_file()
    return Trained(
        method,
        seed,
        np.array(outcomes["at_end"], dtype=bool),
        np.array(outcomes["ever"], dtype=bool),
        {name: amount - clone.get(name, 0) for name, amount in mine.items()},
        json.loads(seconds.read_text()) if seconds.is_file() else None,
        RunMetrics.read(checkpoint.parent) if logged else None,
        clone.get("collection_steps", 0),
    )


def _ledger(checkpoint: Path) -> dict[str, int]:
    """What was spent on a checkpoint's weights."""
    return json.loads((checkpoint / "ledger.json").read_text())
