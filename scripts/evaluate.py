"""`vla evaluate`: play several policies on the same held-out initial states and report on them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from policies.evaluation.baselines import BlankImages
from policies.evaluation.report.curves import Log, read_log
from policies.evaluation.report.data import Curve, Film, PolicyResult, Report, Row, table
from policies.evaluation.report.page import write_report
from policies.evaluation.report.selection import choose_episodes
from policies.evaluation.statistics import Interval
from policies.planning.receding import PlannerPolicy
from policies.rollout import Episode, Transition, rollout
from scripts.policy_loading import (
    Entrant,
    make_built_in,
    make_env,
    other_instruction,
    read_entrant,
    require_comparable,
)
from scripts.provenance import command_line, machine_facts
from sim.film import replay, write_mp4
from sim.tasks.base import Phrasing
from sim.tasks.registry import make_task


@dataclass(frozen=True)
class EvaluateConfig:
    """What to compare, and on which episodes.

    Attributes:
        task: registry name.
        policies: each `name=checkpoint folder` (ours or LeRobot's), or one of expert, random, zero,
            planner:cem and planner:mppi, which `name=` may rename. A checkpoint of ours executes
            whole chunks unless @receding:STEPS, @ensemble or @realtime:STEPS:DELAY follows it; one
            for several robots controls the one that fits the task, unless #NAME follows its folder.
        reference: name of the policy that the others are compared with; default the first.
        episodes: initial states, the same for every policy.
        first_seed: of the first one; the others follow it. Held-out states begin at 1,000,000.
        out: folder for report.html and report.json.
        title: of the page; default made from the task and the names.
        num_envs: environments stepped together; 1 gives the time per decision of a single robot.
        num_workers: simulator processes; None is one per CPU core.
        films: filmed successes, and as many failures, of each policy.
        film_size: pixels a side.
        phrasing: instruction templates.
        only: only initial states whose goal names all of these, such as "red block".
        swap_instructions: tell the actor another instruction that its scene also allows, and judge
            it by the original goal.
        blank_images: show the actor black pictures.
        device: of the checkpoints.
        bf16: LeRobot's policies compute in bfloat16: faster, slightly other actions. Our embedded
            model decides by itself.
        compile: compile our policies, which takes minutes and pays in long evaluations.
        seed: of random actions and planners.
    """

    task: str = "FetchPush"
    policies: tuple[str, ...] = ("expert", "random")
    reference: str | None = None
    episodes: int = 100
    first_seed: int = 1_000_000
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
        if min(self.episodes, self.num_envs, len(self.policies)) < 1 or self.films < 0:
            raise ValueError("need policies, episodes >= 1, num_envs >= 1 and films >= 0")


def main(config: EvaluateConfig) -> int:
    """Evaluate, write the report, print its table."""
    entrants = [
        read_entrant(text, config.device, config.task, config.bf16, config.compile)
        for text in config.policies
    ]
    reference = config.reference or entrants[0].name
    require_comparable(entrants, config.task, reference)
    if config.swap_instructions:
        other_instruction(make_task(config.task), config.first_seed)  # or is there nothing to swap?
    seeds = _seeds(config)
    results = []
    with Progress() as progress:
        for entrant in entrants:
            results.append(play(entrant, config, seeds, progress))
        results = _add_films(results, config, progress)
    runs = {
        entrant.name: json.loads((entrant.run_folder / "run.json").read_text())
        for entrant in entrants
        if entrant.run_folder
    }
    report = Report(
        title=config.title or f"{config.task}: {', '.join(entrant.name for entrant in entrants)}",
        task=_describe_task(config),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        results=tuple(results),
        reference=reference,
        configuration={
            "evaluate": dataclasses.asdict(config),
            **{name: run["config"] for name, run in runs.items()},
        },
        commands=[
            *(run["command"] for run in runs.values() if "command" in run),
            command_line("evaluate", config),
        ],
        machine=machine_facts(config.device),
        goals=goals_of(config.task, seeds),
    )
    write_report(config.out, report)
    _print(table(report), reference)
    print(f"report: {config.out / 'report.html'}")
    return 0


def _seeds(config: EvaluateConfig) -> Sequence[int]:
    """Of the initial states, in order.

    Raises:
        ValueError: hardly any state has such a goal; the message lists those that there are.
    """
    tried = range(config.first_seed, config.first_seed + config.episodes)
    if not config.only:
        return tried
    tried = range(config.first_seed, config.first_seed + 100 * config.episodes)
    goals = goals_of(config.task, tried)
    found = [s for s, g in zip(tried, goals, strict=True) if all(word in g for word in config.only)]
    if len(found) < config.episodes:
        raise ValueError(
            f"{len(found)} of {len(tried)} initial states of {config.task} name all of "
            f"{list(config.only)}; goals there: {'; '.join(sorted(set(goals)))}"
        )
    return found[: config.episodes]


def play(
    entrant: Entrant, config: EvaluateConfig, seeds: Sequence[int], progress: Progress
) -> PolicyResult:
    """All episodes of one policy, in an environment that draws what it looks at."""
    with make_env(
        entrant,
        config.task,
        min(config.num_envs, len(seeds)),
        config.num_workers,
        config.phrasing,
        config.swap_instructions,
    ) as env:
        policy = entrant.policy or make_built_in(entrant.kind, env, config.seed)
        bar = progress.add_task(entrant.name, total=len(seeds))

        def count(transition: Transition) -> None:
            ended = (transition.step.terminated | transition.step.truncated).cpu().numpy()
            progress.advance(bar, int((ended & (transition.episodes >= 0)).sum()))

        shown = BlankImages(policy) if config.blank_images else policy
        episodes = rollout(env, shown, seeds, on_step=count)
    if isinstance(policy, PlannerPolicy):
        seconds, planning = policy.seconds / policy.decisions, policy.steps_per_decision
    else:
        seconds, planning = episodes.seconds_per_decision, 0.0
    log = read_log(entrant.run_folder) if entrant.run_folder else Log({}, {})
    return PolicyResult(
        name=entrant.name,
        source=entrant.source,
        episodes=episodes,
        seconds_per_decision=seconds,
        planning_steps_per_decision=planning,
        training_steps=_training_steps(entrant, log.curves),
        curves=log.curves,
        spreads=log.spreads,
    )


def goals_of(name: str, seeds: Sequence[int]) -> tuple[str, ...]:
    """What each episode is about: the words that fill its instruction; "" where there are none."""
    task = make_task(name)
    data = task.make_data()
    return tuple(", ".join(task.reset(data, seed).labels.values()) for seed in seeds)


def _training_steps(entrant: Entrant, curves: dict[str, Curve]) -> int | None:
    """Simulator steps that were logged up to the checkpoint; nothing built in was trained."""
    if entrant.policy is None:
        return 0
    counted = [curve for tag, curve in curves.items() if tag.endswith("simulator_steps")]
    if not counted:
        return None
    end = _iteration(entrant.checkpoint.name, curves)
    points = [point for curve in counted for point in zip(curve.steps, curve.values, strict=True)]
    return int(max((count for step, count in points if step <= end), default=0))


def _iteration(checkpoint: str, curves: dict[str, Curve]) -> float:
    """Of `step_<n>`, or of `best`: where greedy success was highest, of several the last."""
    if number := re.fullmatch(r"step_(\d+)", checkpoint):
        return int(number[1])
    if checkpoint != "best" or (success := curves.get("success/end")) is None:
        return math.inf
    return max(zip(success.values, success.steps, strict=True))[1]


def _add_films(
    results: Sequence[PolicyResult], config: EvaluateConfig, progress: Progress
) -> list[PolicyResult]:
    chosen = choose_episodes({result.name: result.episodes for result in results}, config.films)
    bar = progress.add_task("films", total=sum(map(len, chosen.values())))
    filmed = []
    for result in results:
        films = []
        for position in chosen[result.name]:
            films.append(film(config.task, result.episodes.episodes[position], config.film_size))
            progress.advance(bar)
        filmed.append(dataclasses.replace(result, films=tuple(films)))
    return filmed


def film(task: str, episode: Episode, size: int) -> Film:
    """Replay an episode's actions and draw them."""
    frames = replay(task, episode.seed, episode.actions, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(path, frames, fps=round(make_task(task).spec.control_rate_hz))
        return Film(episode, path.read_bytes())


def _describe_task(config: EvaluateConfig) -> str:
    parts = [config.task, f"{'held-out' if config.phrasing == 'heldout' else 'training'} phrasing"]
    parts += [f"only {', '.join(config.only)}"] if config.only else []
    parts += ["instructions swapped"] if config.swap_instructions else []
    parts += ["black pictures"] if config.blank_images else []
    return ", ".join(parts)


def _print(rows: Sequence[Row], reference: str) -> None:
    listed = Table("policy", "at the end", "ever", f"against {reference}", "s/decision", box=None)
    for row in rows:
        compared = "reference"
        if row.difference is not None:
            compared = f"{_percent(row.difference.difference, '+')} p={row.difference.p_value:.2g}"
        listed.add_row(
            row.name,
            _percent(row.success_at_end),
            f"{100 * row.success_ever.value:.1f}%",
            compared,
            f"{row.seconds_per_decision:.2g}",
        )
    Console().print(listed)


def _percent(interval: Interval, sign: str = "") -> str:
    low, high = (f"{100 * bound:{sign}.0f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.value:{sign}.1f}% [{low}, {high}]"
