"""`vla compare`: play policies from equal initial states, and judge which episode is better."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from policies.preferences.comparisons import Comparison, ComparisonStore, Pair, Segment
from policies.preferences.judges import ScriptedJudge
from policies.preferences.page import JudgingServer, Questions, require_free
from policies.preferences.pairing import make_pairs
from policies.preferences.trajectories import (
    Trajectory,
    collect_trajectories,
    interface_fingerprint,
)
from policies.reinforcement.exploration import Exploration
from policies.run_folder import require_writable
from scripts.devices import require_device
from scripts.films import film_mp4, try_film
from scripts.progress import Bar
from sim.seeds import training_seeds
from sim.tasks.registry import make_task, short_name
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.model.heads.registry import require_likelihood
from vla.policy import VLAPolicy, load_policy
from vla.settings import require_numbers

_NOTHING = (
    "every initial state is played once, so there is nothing to compare: raise --attempts, or name "
    "several --policies"
)


@dataclass(frozen=True)
class CompareConfig:
    """Collect episodes, and judge pairs of them.

    Attributes:
        task: registry name.
        policies: checkpoints that play; by default `runs/<task>/clone/best`.
        states: initial states that each of them plays.
        attempts: how often, each time with other samples.
        log_std: log standard deviation of the exploration, as `vla refine --log-std-start`.
        temperature: of a head of tokens, which has no standard deviation, as `vla refine
            --temperature-start`.
        judge: "return" and "success" are scripted; "person" opens a page on this machine.
        label_noise: how often a scripted judge prefers the worse one.
        comparisons: the most pairs; by default one of every two episodes of a state.
        segment_chunks: compare segments of so many chunks from anywhere in the episodes instead of
            whole episodes, which DPO needs.
        out: folder of the comparisons, which grows; by default `runs/<task>/comparisons`.
        export: also write all judgements as one table, to a .json or .parquet file.
        port: of the page; 0 takes a free one.
        film_size: pixels a side of each camera in the page's films.
        num_envs: environments stepped together.
        device: where the policies compute.
        seed: of initial states, samples, pairs and label noise.
    """

    task: str = "FetchPush"
    policies: tuple[Path, ...] = ()
    states: int = 100
    attempts: int = 4
    log_std: float = -1.2
    temperature: float = 1.6
    judge: Literal["return", "success", "person"] = "return"
    label_noise: float = 0.1
    comparisons: int | None = None
    segment_chunks: int | None = None
    out: Path | None = None
    export: Path | None = None
    port: int = 0
    film_size: int = 256
    num_envs: int = 50
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("states", "attempts", "comparisons", "segment_chunks", "film_size", "num_envs")
        require_numbers(
            self,
            at_least_1=counts,
            above_0=("temperature",),
            any_sign=("log_std",),
            at_most={"label_noise": 0.49, "port": 65535},
        )
        if self.export is not None and self.export.suffix not in (".json", ".parquet"):
            raise ValueError(f"export ends in .json or .parquet, got {self.export}")


def main(config: CompareConfig) -> int:
    """Play what is missing, judge what is not judged, and say what there is."""
    runs = Path("runs") / short_name(config.task)
    checkpoints = config.policies or (runs / "clone" / "best",)
    out = config.out or runs / "comparisons"
    if config.attempts * len(checkpoints) < 2 and not any(out.glob("trajectories/*")):
        raise ValueError(_NOTHING)
    _require_possible(config)
    spec = make_task(config.task).spec
    policies = {folder: load_policy(folder, config.device, spec) for folder in checkpoints}
    for policy in policies.values():
        require_likelihood(policy.actor.head, "comparing sampled episodes")
    with CpuVecEnv(config.task, config.num_envs) as env:
        store = ComparisonStore.create(
            out,
            config.task,
            env.spec,
            privileged_names=env.privileged_names,
            log_std=config.log_std,
            temperature=config.temperature,
        )
        for folder, policy in policies.items():
            _play_missing(policy, fingerprint(folder), env, store, config)
    trajectories = store.load(store.names())
    lengths = {name: (t.seed, len(t)) for name, t in trajectories.items()}
    pairs = make_pairs(lengths, config.segment_chunks, config.comparisons, config.seed)
    if not pairs:
        raise ValueError(_NOTHING)
    if config.judge == "person":
        _ask(pairs, trajectories, store, config)
    else:
        judge = ScriptedJudge(config.judge, config.label_noise, config.seed)
        judged = store.judged(judge.name)
        for pair in (pair for pair in pairs if pair not in judged):
            label = judge(pair, *(trajectories[s.trajectory] for s in (pair.first, pair.second)))
            store.append(Comparison(pair, label, judge.name))
    store.close()
    if config.export is not None:
        store.export(config.export)
    told = sum(comparison.told for comparison in store.comparisons)
    print(
        f"{store.folder}: {len(trajectories)} episodes, {len(store.comparisons)} comparisons, of "
        f"which {told} prefer one"
    )
    return 0


def _require_possible(config: CompareConfig) -> None:
    """Try what comes after the episodes, so that it cannot fail there.

    Raises:
        OSError: the table cannot be written, or the page's port is taken.
        ValueError: torch finds no such device, or films cannot have this size.
        NoRendererError: films are needed, and nothing can be drawn.
    """
    require_device(config.device)
    if (table := config.export) is not None:
        require_writable(table.parent)
        if table.is_dir():
            raise IsADirectoryError(f"cannot write {table}: it is a folder")
    if config.judge == "person":
        require_free(config.port)
        try_film(config.task, training_seeds(config.seed, 0, 1)[0], config.film_size)


def _play_missing(
    policy: VLAPolicy, name: str, env: CpuVecEnv, store: ComparisonStore, config: CompareConfig
) -> None:
    """Play in groups of as many episodes as there are environments, and keep each group."""
    log_std, temperature = config.log_std, config.temperature
    Exploration(policy.actor, (log_std, log_std), (temperature, temperature)).begin()
    interface, existing = interface_fingerprint(policy), set(store.names())
    seeds = training_seeds(config.seed, 0, config.states)
    wanted = [(seed, attempt) for seed in seeds for attempt in range(config.attempts)]
    with Bar("compare", len(wanted)) as bar:
        for number, group in enumerate(itertools.batched(wanted, env.num_envs)):
            names = [f"{name[:12]}-{seed}-{attempt}" for seed, attempt in group]
            if not existing.issuperset(names):
                # Of the group alone, so that an interrupted collection goes on to the same samples.
                drawn = zlib.crc32(f"{config.seed} {names[0]}".encode())
                generator = torch.Generator(policy.device).manual_seed(drawn)
                played = collect_trajectories(
                    env, policy, [seed for seed, _ in group], generator, name, interface
                )
                for each, trajectory in zip(names, played, strict=True):
                    # With other --attempts a group mixes old and new: judged episodes stay.
                    if each not in existing:
                        trajectory.save(store.path(each))
            bar.update(number * env.num_envs + len(group), {})


def _ask(
    pairs: Sequence[Pair],
    trajectories: dict[str, Trajectory],
    store: ComparisonStore,
    config: CompareConfig,
) -> None:
    """Let a person answer what nobody answered; Ctrl-C stops, the same command goes on."""
    judged = store.judged("person")
    if not (left := [pair for pair in pairs if pair not in judged]):
        return

    def film(segment: Segment) -> bytes:
        trajectory = trajectories[segment.trajectory]
        first, last = ([0, *trajectory.ends][end] for end in (segment.start, segment.stop))
        actions = trajectory.actions.numpy()[:last]
        return film_mp4(config.task, trajectory.seed, actions, config.film_size, first)

    questions = Questions(
        left,
        film,
        lambda pair: trajectories[pair.first.trajectory].instruction,
        lambda pair, label: store.append(Comparison(pair, label, "person")),
    )
    with JudgingServer(questions, config.port) as server:
        print(
            f"{len(left)} questions: {server.url} (Ctrl-C stops; every answer is kept)", flush=True
        )
        server.run()
