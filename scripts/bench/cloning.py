"""From demonstrations alone: our policy, a plain convolutional network, and LeRobot's policies.

    python -m scripts.bench.cloning --tasks MetaWorld/reach@150 MetaWorld/push@150 \
        --methods ours=3000 cnn=6000 lerobot:act=2100

All tasks together are one policy. Every method learns from the same demonstrations and plays the
same initial states, which chose nothing; its number of updates is its budget, and what that cost in
processor time is in the table. Methods: ours (`vla pretrain --start scratch`) and grounded (the
same from the shipped model, which has seen the Fetch tasks), both with the default head or another
one (ours:flow), cnn (`scripts/bench/plain_cnn.py`), and lerobot:TYPE for the policies of LeRobot.
ACT and diffusion know no words: they tell tasks apart by what they see. The last checkpoint counts,
and all decide anew after equally many control steps.

Repeating the command goes on: what is recorded, trained and played is kept. A run of ours or of
LeRobot's that was cut goes on, one of the plain network starts anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import numpy as np
import torch
import tyro
from vla_runtime.atomic_folder import write_atomically

from policies.evaluation.statistics import paired_difference, wilson_interval
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from scripts import pretrain
from scripts.bench.plain_cnn import PlainCNN, train_cnn
from scripts.evaluate import EvaluateConfig
from scripts.initial_states import States
from scripts.outcomes import play_once
from scripts.policy_loading import Candidate, read_policy
from scripts.results_table import in_points, percent
from sim.demonstrate import RecordConfig
from sim.record import record
from sim.tasks.registry import short_name
from vla.execution import RecedingHorizon
from vla.model.heads.registry import HEADS
from vla.settings import require_numbers

_CHUNK_LENGTH = 5
_LEROBOT_BATCH = 16


@dataclass(frozen=True)
class BenchCloningConfig:
    """What is cloned, by what, and for how long.

    Attributes:
        tasks: registry names; all of them together are one policy.
        methods: NAME=UPDATES; the first is compared with the others.
        demonstrations: of each task.
        execute_steps: control steps executed of each chunk, by every method.
        seeds: of the training; every one is run.
        states: initial states that are played.
        episodes: of each task.
        out: data, runs and results.md.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...] = ("ours=3000", "cnn=6000", "lerobot:act=2100")
    demonstrations: int = 40
    execute_steps: int = _CHUNK_LENGTH
    seeds: tuple[int, ...] = (0,)
    states: States = "development"
    episodes: int = 100
    out: Path = Path("runs/cloning")

    def __post_init__(self) -> None:
        counts = ("demonstrations", "episodes", "execute_steps")
        require_numbers(self, at_least_1=counts, at_most={"execute_steps": _CHUNK_LENGTH})
        names = [name for name, _ in self.budgets]
        if not self.tasks or len(set(names)) != len(names):
            raise ValueError(f"need tasks, and each method once: {self.tasks}, {self.methods}")

    @property
    def budgets(self) -> list[tuple[str, int]]:
        """Methods and their updates."""
        found = []
        for text in self.methods:
            name, _, updates = text.partition("=")
            if not _is_method(name) or not updates.isdecimal():
                valid = ", ".join(f"{known}=UPDATES" for known in _KNOWN)
                raise ValueError(f"no method {text!r}; valid: {valid}")
            found.append((name, int(updates)))
        return found

    @property
    def data(self) -> Path:
        """Demonstrations of all tasks."""
        return self.out / "data"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        method: its name.
        updates: its budget.
        seed: of everything random.
        folder: of its run.
    """

    method: str
    updates: int
    seed: int
    folder: Path

    @property
    def kind(self) -> str:
        """Key of `METHODS`."""
        return self.method.partition(":")[0]

    @property
    def detail(self) -> str:
        """Of ours the head, of LeRobot's the type of policy; "" where none is said."""
        return self.method.partition(":")[2]


def main(config: BenchCloningConfig) -> int:
    """Record, train and play what is missing; print and write the table."""
    record(RecordConfig(config.tasks, config.demonstrations, config.data))
    results = {}
    for seed in config.seeds:
        for method, updates in config.budgets:
            job = Job(method, updates, seed, config.out / f"{method}-{updates}" / f"s{seed}")
            job.folder.mkdir(parents=True, exist_ok=True)
            print(f"{method}, seed {seed}", flush=True)
            _train_once(config, job)
            results[method, seed] = _outcomes(config, job)
            text = table(config, results)
            write_atomically(config.out / "results.md", text)
            print(text, flush=True)
    return 0


def _train_once(config: BenchCloningConfig, job: Job) -> None:
    """In a process of its own, whose processor seconds are added up over all goes."""
    file, done = job.folder / "cpu_s.json", job.folder / "done"
    if done.is_file():
        return
    before = _children_s()
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_train, config, job).result()
    finally:
        earlier = json.loads(file.read_text()) if file.is_file() else 0.0
        write_atomically(file, json.dumps(earlier + _children_s() - before))
    done.touch()


def _children_s() -> float:
    spent = getrusage(RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _train(config: BenchCloningConfig, job: Job) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that it starts
    METHODS[job.kind](config, job)


def _ours(config: BenchCloningConfig, job: Job) -> None:
    _pretrain(config, job, batch=128, start="scratch")


def _grounded(config: BenchCloningConfig, job: Job) -> None:
    _pretrain(config, job, batch=CloningConfig().batch)


def _pretrain(config: BenchCloningConfig, job: Job, batch: int, **start: Any) -> None:
    every = max(1, job.updates // 4)
    training = CloningConfig(job.updates, batch, evaluate_every=every, seed=job.seed)
    pretrain.clone(
        pretrain.PretrainConfig(
            None,
            (config.data,),
            **start,
            head=job.detail or None,
            chunk_length=_CHUNK_LENGTH,
            out=job.folder / "run",
            training=training,
        )
    )


# Once for all tasks that it plays.
@cache
def _cnn(config: BenchCloningConfig, job: Job) -> PlainCNN:
    """Trained, or read back."""
    data = Demonstrations((config.data,), _CHUNK_LENGTH, seed=job.seed)
    return train_cnn(data, _CHUNK_LENGTH, job.updates, job.seed, job.folder)


def _lerobot(config: BenchCloningConfig, job: Job) -> None:
    """`vla lerobot-train` with LeRobot's own settings for all that is not said here."""
    kind, out = job.detail, job.folder / "run"
    resumed = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    words = [sys.executable, "-m", "scripts.cli", "lerobot-train"]
    if resumed.is_file():
        words += ["--resume=true", f"--config_path={resumed}"]
    else:
        words += [
            f"--dataset.repo_id=local/{config.data.name}",
            f"--dataset.root={config.data}",
            "--policy.push_to_hub=false",
            "--policy.device=cpu",
            f"--output_dir={out}",
            f"--seed={job.seed}",
            f"--steps={job.updates}",
            f"--save_freq={max(1, job.updates // 8)}",
            f"--batch_size={_LEROBOT_BATCH}",
        ]
        words += _act(config, job) if kind == "act" else [f"--policy.type={kind}"]
    subprocess.run(words, check=True)


def _act(config: BenchCloningConfig, job: Job) -> list[str]:
    """What helped ACT most in short pilots: batch norms that work, brightness, shifts, a rate."""
    from scripts.bench.act_start import write_act_start

    start = job.folder / "start"
    write_act_start(config.data, job.seed, start)
    changes = {
        "brightness": {
            "weight": 1.0,
            "type": "ColorJitter",
            "kwargs": {"brightness": [0.8, 1.2]},
        },
        "shift": {
            "weight": 1.0,
            "type": "RandomAffine",
            "kwargs": {"degrees": [0.0, 0.0], "translate": [0.04, 0.04]},
        },
    }
    return [
        f"--policy.path={start}",
        "--policy.use_amp=true",
        "--use_policy_training_preset=false",
        "--optimizer.type=adamw",
        "--optimizer.lr=1e-4",  # at 3e-4 two seeds of three never learned to see
        "--optimizer.weight_decay=1e-4",
        "--optimizer.grad_clip_norm=10",
        "--scheduler.type=cosine_decay_with_warmup",
        f"--scheduler.num_warmup_steps={min(100, job.updates)}",
        f"--scheduler.num_decay_steps={job.updates}",
        "--scheduler.peak_lr=1e-4",
        "--scheduler.decay_lr=1e-6",
        "--dataset.image_transforms.enable=true",
        "--dataset.image_transforms.max_num_transforms=2",
        f"--dataset.image_transforms.tfs={json.dumps(changes)}",
    ]


METHODS: dict[str, Callable[[BenchCloningConfig, Job], Any]] = {
    "ours": _ours,
    "grounded": _grounded,
    "cnn": _cnn,
    "lerobot": _lerobot,
}
_KNOWN = ("ours[:HEAD]", "grounded[:HEAD]", "cnn", "lerobot:TYPE")


def _is_method(name: str) -> bool:
    kind, _, detail = name.partition(":")
    if kind == "lerobot":
        return bool(detail)
    # Without a head the default one: a colon with nothing behind it is a slip.
    return kind in METHODS and (name == kind or (kind != "cnn" and detail in HEADS))


def _candidate(config: BenchCloningConfig, job: Job, task: str) -> Candidate:
    """The last checkpoint."""
    if job.kind == "cnn":
        policy = RecedingHorizon(_cnn(config, job), config.execute_steps)
        return Candidate(job.method, "cnn", lambda: policy, policy.spec)
    checkpoint = job.folder / "run"
    if job.kind != "lerobot":
        checkpoint /= f"step_{job.updates:06d}"
    return read_policy(f"{job.method}={checkpoint}@receding:{config.execute_steps}", "cpu", task)


def _outcomes(config: BenchCloningConfig, job: Job) -> dict[str, dict[str, list[bool]]]:
    """Task → "at_end" and "ever" of every initial state; played once."""
    found = {}
    for task in config.tasks:
        name = f"{short_name(task)}-{config.states}-{config.episodes}"
        file = job.folder / f"{name}-{config.execute_steps}.json"
        playing = EvaluateConfig(
            task, (job.method,), episodes=config.episodes, states=config.states, films=0
        )
        candidate = partial(_candidate, config, job, task)
        asked = {"updates": job.updates, "execute_steps": config.execute_steps}
        found[task] = play_once(file, asked, candidate, playing)
    return found


def table(
    config: BenchCloningConfig,
    results: dict[tuple[str, int], dict[str, dict[str, list[bool]]]],
) -> str:
    """Markdown: success of each task at the end and once; all seeds of a method together."""
    names = list(dict.fromkeys(method for method, _ in results))
    lines = [
        f"| success | {' | '.join(names)} | {names[0]} against each other one, points |",
        f"|{'---|' * (len(names) + 2)}",
    ]
    minutes = [_minutes(config, name, results) for name in names]
    lines.append(f"| processor minutes of training | {' | '.join(minutes)} | |")
    for task in (*config.tasks, "all"):
        for what in ("at_end", "ever"):
            columns = {n: _column(results, n, task, what) for n in names}
            lines.append(f"| {task}, {what.replace('_', ' ')} | {_cells(columns)} |")
    seeds = len({seed for _, seed in results})
    note = f"{config.episodes} {config.states} states a task, {seeds} seed{'s' * (seeds > 1)}"
    note += f", {config.demonstrations} demonstrations a task"
    note += f", {config.execute_steps} control steps a decision."
    return "\n".join([*lines, "", note]) + "\n"


def _column(results: dict, method: str, task: str, what: str) -> np.ndarray:
    """Outcomes of all seeds, bool [seeds * states]; of every task together for "all"."""
    runs = [found for (name, _), found in sorted(results.items()) if name == method]
    picked = [run[t][what] for run in runs for t in run if task in (t, "all")]
    return np.concatenate([np.array(x, dtype=bool) for x in picked])


def _cells(columns: dict[str, np.ndarray]) -> str:
    first, *others = columns
    rates = []
    for outcomes in columns.values():
        rates.append(percent(wilson_interval(int(outcomes.sum()), len(outcomes))))
    compared = []
    for name in others:
        # A method whose seeds are still missing is compared on those that are there.
        n = min(len(columns[first]), len(columns[name]))
        found = paired_difference(columns[first][:n], columns[name][:n]).difference
        compared.append(f"{name} {in_points(found)}")
    return f"{' | '.join(rates)} | {', '.join(compared)}"


def _minutes(config: BenchCloningConfig, method: str, results: dict) -> str:
    updates = dict(config.budgets)[method]
    spent = [
        json.loads((config.out / f"{method}-{updates}" / f"s{seed}" / "cpu_s.json").read_text())
        for name, seed in results
        if name == method
    ]
    return ", ".join(f"{seconds / 60:.0f}" for seconds in spent)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchCloningConfig)))
