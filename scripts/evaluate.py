"""`vla evaluate`: play several policies on the same held-out initial states and report on them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from rich.markup import escape
from rich.progress import Progress

from policies.evaluation.baselines import BlankImages
from policies.evaluation.habits.diagnosis import diagnose_folder
from policies.evaluation.report.curves import Log, read_log
from policies.evaluation.report.data import PolicyResult, Report, Unfinished, table
from policies.evaluation.report.page import REPORT_FILES, write_report
from policies.evaluation.speed import Speed, time_decisions
from policies.folder_lock import lock_folder
from policies.planning.receding import PlannerPolicy
from policies.rollout import Episode, Episodes, rollout
from scripts.devices import require_device
from scripts.initial_states import States, choose_seeds, goals_of
from scripts.policy_loading import (
    Candidate,
    make_built_in,
    make_env,
    policy_for,
    read_policy,
    read_run,
    require_comparable,
)
from scripts.provenance import command_line, machine_facts
from scripts.results_table import print_table
from sim.instruction_swap import original_success, swap_instruction
from sim.tasks.base import Phrasing
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv
from vla.settings import require_numbers

# Pixels a side of each of two cameras: an H.264 frame is at most 8,192 wide.
_LARGEST_FILM = 4096


@dataclass(frozen=True)
class EvaluateConfig:
    """What to compare, and on which episodes.

    Attributes:
        task: registry name.
        policies: each `name=checkpoint folder` (ours or LeRobot's), or one of expert, random, zero,
            planner:cem and planner:mppi, which `name=` may rename. A checkpoint of ours executes
            whole chunks unless @receding:STEPS, @ensemble or @realtime:STEPS:DELAY follows it, one
            of LeRobot's as many steps as it was saved with unless @receding:STEPS does; one of ours
            for several robots controls the one that fits the task, unless #NAME follows its folder.
        reference: name of the policy that the others are compared with; default the first.
        episodes: initial states, the same for every policy.
        states: which initial states: "development" while something is being built, "selection"
            those that choose checkpoints, "final" once a release; see `sim/seeds.py`.
        out: folder for report.html and report.json.
        title: of the page; default made from the task and the names.
        num_envs: environments stepped together, and the batch with which throughput is measured.
            A checkpoint decides with a batch of one in each, as on a robot, so results do not
            depend on this number: 100 episodes of a FetchPush clone were equal to the last bit
            with 1 and 16, while decisions for 16 rows at once changed 26 outcomes in float32. On
            one CPU core a decision costs 17 ms instead of 4.
        num_workers: simulator processes; None is one per CPU core.
        films: filmed successes, and as many failures, of each policy; 0 makes none.
        film_size: pixels a side of each camera in a film, even, at most 4096.
        phrasing: instruction templates: those of training, or held-out ones.
        only: keep only initial states whose goal names all of these, such as "red block".
        swap_instructions: give every scene another goal that it allows, and report success on the
            goal of the instruction and on the scene's original one, in the same episodes.
        blank_images: show the policies black images.
        device: where checkpoints compute.
        bf16: checkpoints compute in bfloat16 where the device supports it, instead of float32:
            faster, slightly other actions.
        compile: compile our policies, which takes minutes and pays in long evaluations.
        seed: of random actions, planners and policies that draw noise.
    """

    task: str = "FetchPush"
    policies: tuple[str, ...] = ("expert", "random")
    reference: str | None = None
    episodes: int = 100
    states: States = "development"
    out: Path = Path("runs/report")
    title: str | None = None
    num_envs: int = 16
    num_workers: int | None = None
    films: int = 2
    film_size: int = 240
    phrasing: Phrasing = "train"
    only: tuple[str, ...] = ()
    swap_instructions: bool = False
    blank_images: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    bf16: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("need at least one of --policies")
        require_numbers(self, at_least_1=("episodes", "num_envs", "num_workers"))
        if not 2 <= self.film_size <= _LARGEST_FILM or self.film_size % 2:
            raise ValueError(
                f"film_size must be even, as H.264 needs it, and 2 to {_LARGEST_FILM}: "
                f"{self.film_size}"
            )


def main(config: EvaluateConfig) -> int:
    """Evaluate, write the report, print its table."""
    require_device(config.device)
    candidates = [
        read_policy(text, config.device, config.task, config.bf16, config.compile)
        for text in config.policies
    ]
    reference = config.reference or candidates[0].name
    require_comparable(candidates, config.task, reference)
    seeds = choose_seeds(config.task, config.states, config.episodes, config.only)
    # Reads the logs and the machine's facts before it plays: a damaged run.json is refused here.
    evaluation = Evaluation(config, candidates, reference, seeds)
    _require_possible(config, seeds, [candidate.name for candidate in candidates])
    with lock_folder(config.out):
        _play_and_report(config, evaluation)
    return 0


def _play_and_report(config: EvaluateConfig, evaluation: Evaluation) -> None:
    with Progress() as progress:
        report = evaluation.run(progress)
    print_table(table(report), report.reference)
    # Printed before the films, whose drawing may fail or be interrupted.
    print(f"report: {config.out / 'report.html'}", flush=True)
    if config.films:
        from scripts.films import add_films  # only films need a video encoder

        with Progress() as progress:
            bar = progress.add_task("films", total=None)
            size, each = config.film_size, lambda: progress.advance(bar)
            results = add_films(report.results, config.task, config.films, size, each)
        # The same report once more, now with films.
        write_report(config.out, dataclasses.replace(report, results=tuple(results)))


def _require_possible(config: EvaluateConfig, seeds: Sequence[int], names: Sequence[str]) -> None:
    """Try whatever comes after the episodes, so that it cannot fail there.

    Raises:
        OSError: nothing can be written where the report goes.
        NoRendererError: films were asked for and nothing can be drawn.
        ValueError: there is no instruction to swap, films cannot have this size, or two rows of the
            table would have one name.
    """
    if config.swap_instructions:
        rows = [row for name in names for row in (name, original_row(name))]
        if len(set(rows)) != len(rows):
            raise ValueError(f"the table would have two rows of one name; rename a policy: {rows}")
        task = make_task(config.task)
        data = task.make_data()
        for seed in seeds:
            # Cheap next to an episode: two or more resets, no control step.
            swap_instruction(task, data, task.reset(data, seed), config.phrasing)
    if config.films:
        from scripts.films import try_film

        try_film(config.task, seeds[0], config.film_size)
    config.out.mkdir(parents=True, exist_ok=True)
    for name in REPORT_FILES:
        if (file := config.out / name).is_dir():
            raise IsADirectoryError(
                f"{file} is a folder, and the report writes a file of that name"
            )
    with tempfile.TemporaryFile(dir=config.out) as file:
        file.write(b"it can be written")


class Evaluation:
    """One comparison: everything that it needs is read before the first episode.

    Args:
        config: what was asked for.
        candidates: in the order of the table.
        reference: name of one of them.
        seeds: of the initial states.

    Raises:
        ValueError: a training's run.json or metrics.jsonl is damaged.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        candidates: Sequence[Candidate],
        reference: str,
        seeds: Sequence[int],
    ):
        self.config, self.candidates, self.seeds = config, candidates, seeds
        self.reference = reference
        folders = {c.name: c.run_folder for c in candidates}
        self._diagnoses = {
            name: diagnose_folder(folder)
            for name, folder in folders.items()
            # Runs of other programs have no metrics of ours.
            if folder and (folder / "metrics.jsonl").is_file()
        }
        self._runs = {name: read_run(folder) for name, folder in folders.items() if folder}
        self._logs = {
            n: read_log(folder) if folder else Log({}, {}) for n, folder in folders.items()
        }
        # Swapped goals are others than those of the seeds.
        self._goals = () if config.swap_instructions else goals_of(config.task, seeds)
        self._machine = machine_facts(config.device)

    def run(self, progress: Progress) -> Report:
        """Play every policy and write the report after each: what was played is never lost.

        An error, or Ctrl-C, in one policy is raised again after the report with what came before
        it, and with that policy's own episodes, has been written.
        """
        results: list[PolicyResult] = []
        for candidate in self.candidates:
            ended: list[Episode] = []
            bar = progress.add_task(escape(candidate.name), total=len(self.seeds))

            # Default arguments bind this candidate's list and bar: a closure would see the loop's
            # next ones.
            def note(episode: Episode, ended=ended, bar=bar) -> None:
                ended.append(episode)
                progress.advance(bar)

            try:
                results += self._results(candidate, note)
            # KeyboardInterrupt, too, is no `Exception`.
            except BaseException as error:
                if results or ended:
                    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                    unfinished = Unfinished(candidate.name, reason, tuple(ended))
                    write_report(self.config.out, self._report(results, unfinished))
                    print(f"played so far: {self.config.out / 'report.json'}", flush=True)
                raise
            write_report(self.config.out, self._report(results))
        return self._report(results)

    def _results(
        self, candidate: Candidate, on_episode: Callable[[Episode], None]
    ) -> list[PolicyResult]:
        """One for the policy; with swapped instructions a second one, by the original goals."""
        episodes, planning = play(candidate, self.config, self.seeds, on_episode)
        log = self._logs.get(candidate.name, Log({}, {}))
        result = PolicyResult(
            name=candidate.name,
            source=candidate.source,
            episodes=episodes,
            # Apart from the episodes: there decisions wait for the simulator and for each other.
            speed=measure_speed(candidate, self.config, self.seeds),
            planning_steps_per_decision=planning,
            ledger=candidate.ledger,
            curves=log.curves,
            distributions=log.distributions,
            diagnosis=self._diagnoses.get(candidate.name),
        )
        if not self.config.swap_instructions:
            return [result]
        original = PolicyResult(
            name=original_row(result.name),
            source="the same episodes",
            episodes=by_original_goal(self.config.task, episodes),
            ledger=candidate.ledger,
        )
        return [result, original]

    def _report(
        self, results: Sequence[PolicyResult], unfinished: Unfinished | None = None
    ) -> Report:
        config, names = self.config, [candidate.name for candidate in self.candidates]
        played = [result.name for result in results]
        # While the reference has not been played yet, the first policy that has stands in for it.
        reference = self.reference if self.reference in played or not played else played[0]
        commands = [run["command"] for run in self._runs.values() if run.get("command")]
        return Report(
            title=config.title or f"{config.task}: {', '.join(names)}",
            task=describe_task(config),
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            results=tuple(results),
            reference=reference,
            configuration={
                # Apart from our own key: a policy may have any name, "evaluate" too.
                "policies": {name: run["config"] for name, run in self._runs.items()},
                "evaluate": dataclasses.asdict(config),
            },
            commands=[*commands, command_line("evaluate", config)],
            machine=self._machine,
            goals=self._goals,
            unfinished=unfinished,
        )


def play(
    candidate: Candidate,
    config: EvaluateConfig,
    seeds: Sequence[int],
    on_episode: Callable[[Episode], None] | None = None,
) -> tuple[Episodes, float | None]:
    """All episodes of one policy, and the planning steps a decision of one that searches."""
    # A planner searches for one robot at a time: a single environment wastes no search on
    # episodes that have already ended.
    is_planner = candidate.kind.startswith("planner:")
    count = 1 if is_planner else min(config.num_envs, len(seeds))
    with _environment(candidate, config, count, config.num_workers) as env:
        policy = policy_for(candidate, env, config.seed)
        # Around the policy, so its own preprocessing still runs; isinstance below needs the
        # unwrapped one.
        shown = BlankImages(policy) if config.blank_images else policy
        episodes = rollout(env, shown, seeds, on_episode=on_episode)
    return episodes, policy.steps_per_decision if isinstance(policy, PlannerPolicy) else None


def measure_speed(candidate: Candidate, config: EvaluateConfig, seeds: Sequence[int]) -> Speed:
    """Latency for one observation and throughput for `num_envs` of them, alike for all policies."""
    seconds: dict[int, np.ndarray] = {}
    batch = min(config.num_envs, len(seeds))
    # A set: with one environment both measurements are the same.
    for count in {1, batch}:
        with _environment(candidate, config, count, workers=1) as env:
            # One policy for all rows, unlike `play`: throughput is what batching gives.
            made = candidate.make() if candidate.make is not None else None
            policy = made or make_built_in(candidate.kind, env, config.seed)
            env.reset(range(count), list(seeds[:count]))
            seconds[count] = time_decisions(policy, env.observe()[0])
    # Both float64 [decisions].
    return Speed.of(seconds[1], seconds[batch], batch)


def original_row(name: str) -> str:
    """The row of a policy whose instructions were swapped, judged by the scenes' own goals."""
    return f"{name}, original goal"


def by_original_goal(name: str, episodes: Episodes) -> Episodes:
    """The same episodes, judged by the goals that their scenes' seeds have of themselves."""
    task = make_task(name)
    judged = []
    for episode in episodes.episodes:
        # bool [steps], computed again from the executed actions.
        success = original_success(task, episode.seed, episode.actions)
        rewards = success.astype(np.float32)  # 1 at each step after which the goal holds
        judged.append(dataclasses.replace(episode, success=success, rewards=rewards))
    return Episodes(tuple(judged))


def _environment(
    candidate: Candidate, config: EvaluateConfig, count: int, workers: int | None
) -> CpuVecEnv:
    phrasing, swap = config.phrasing, config.swap_instructions
    return make_env(candidate, config.task, count, workers, phrasing, swap)


def describe_task(config: EvaluateConfig) -> str:
    """The task with its variations, for the page."""
    parts = [config.task, f"{config.states} states"]
    parts += [f"{'held-out' if config.phrasing == 'heldout' else 'training'} phrasing"]
    parts += [f"only {', '.join(config.only)}"] if config.only else []
    parts += ["instructions swapped"] if config.swap_instructions else []
    parts += ["black images"] if config.blank_images else []
    return ", ".join(parts)
