"""What a report holds: results first, pictures of them second."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from policies.evaluation.statistics import (
    Interval,
    PairedDifference,
    paired_difference,
    wilson_interval,
)
from policies.rollout import Episode, Episodes


@dataclass(frozen=True)
class Film:
    """One filmed episode.

    Attributes:
        episode: what is seen.
        mp4: H.264 in an MP4 container, as browsers play it.
    """

    episode: Episode
    mp4: bytes


@dataclass(frozen=True)
class Curve:
    """One logged scalar over training; steps as they were logged."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Spread:
    """One logged distribution over training.

    Attributes:
        steps: as they were logged, [times].
        quantiles: level between 0 and 1 → its value at each step, [times].
    """

    steps: Sequence[float]
    quantiles: Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class PolicyResult:
    """One policy's episodes on the shared initial states.

    Attributes:
        name: as in the table.
        source: where it came from: a run folder, or what is built in.
        episodes: in the order of the shared seeds.
        seconds_per_decision: wall seconds until one action chunk was ready, batches divided.
        planning_steps_per_decision: simulator control steps searched for one chunk.
        training_steps: simulator control steps used to train it; None where unknown.
        films: episodes to look at.
        curves: tag → scalar that its run logged.
        spreads: tag → distribution that its run logged.
    """

    name: str
    source: str
    episodes: Episodes
    seconds_per_decision: float
    planning_steps_per_decision: float = 0.0
    training_steps: int | None = None
    films: tuple[Film, ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    spreads: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that `write_report` writes.

    Attributes:
        title: one line.
        task: what was evaluated, with its variations ("FetchPush, held-out phrasing").
        created: date and time, ISO 8601.
        results: one per policy, on equal seeds in equal order.
        reference: name of the policy that the others are compared with.
        configuration: what was asked for, as plain data.
        commands: shell lines that repeat it, in order.
        machine: label → value: commit, versions, hardware.
        goals: what each episode asks for, in words that are equal for an equal goal; or nothing.

    Raises:
        ValueError: no results, a name repeats, the reference is not among them, seeds differ, or
            there is not one goal an episode.
    """

    title: str
    task: str
    created: str
    results: tuple[PolicyResult, ...]
    reference: str
    configuration: Mapping[str, Any]
    commands: Sequence[str]
    machine: Mapping[str, str]
    goals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [result.name for result in self.results]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a report needs policies with different names: {names}")
        if self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is not one of {names}")
        for result in self.results:
            if seeds_of(result) != seeds_of(self.results[0]):
                raise ValueError(f"{result.name!r} was played on other seeds than {names[0]!r}")
        if self.goals and len(self.goals) != len(seeds_of(self.results[0])):
            raise ValueError(f"{len(self.goals)} goals for {len(seeds_of(self.results[0]))} seeds")


@dataclass(frozen=True)
class Row:
    """One policy's line of the table.

    Attributes:
        success_at_end: with its Wilson interval.
        success_ever: with its Wilson interval.
        difference: in success at the end, against the reference; None for the reference itself.
        steps_to_success: median control steps until the first success, successes only.
        length: mean control steps.
        total_reward: mean undiscounted return.
        decisions_per_second: how often it could decide.
    """

    name: str
    source: str
    success_at_end: Interval
    success_ever: Interval
    difference: PairedDifference | None
    steps_to_success: float | None
    length: float
    total_reward: float
    seconds_per_decision: float
    decisions_per_second: float
    planning_steps_per_decision: float
    training_steps: int | None


def seeds_of(result: PolicyResult) -> list[int]:
    """The initial states that a result was played on."""
    return [episode.seed for episode in result.episodes.episodes]


def table(report: Report) -> list[Row]:
    """One row per policy, in the report's order."""
    reference = next(result for result in report.results if result.name == report.reference)
    return [_row(result, reference) for result in report.results]


def _row(result: PolicyResult, reference: PolicyResult) -> Row:
    episodes = result.episodes.episodes
    at_end, ever = result.episodes.success_at_end, result.episodes.success_ever
    first = [e.first_success_step for e in episodes if e.first_success_step is not None]
    seconds = result.seconds_per_decision
    return Row(
        name=result.name,
        source=result.source,
        success_at_end=wilson_interval(int(at_end.sum()), len(episodes)),
        success_ever=wilson_interval(int(ever.sum()), len(episodes)),
        difference=None
        if result is reference
        else paired_difference(at_end, reference.episodes.success_at_end),
        steps_to_success=float(np.median(first)) if first else None,
        length=float(np.mean([e.length for e in episodes])),
        total_reward=float(np.mean([e.total_reward for e in episodes])),
        seconds_per_decision=seconds,
        decisions_per_second=1 / seconds if seconds > 0 else math.inf,
        planning_steps_per_decision=result.planning_steps_per_decision,
        training_steps=result.training_steps,
    )


def to_json(report: Report) -> str:
    """Every number of the report, films aside; numbers that are not finite become null."""
    policies = [
        asdict(row)
        | {
            "episodes": [_episode(episode) for episode in result.episodes.episodes],
            "curves": {
                tag: {"steps": list(curve.steps), "values": list(curve.values)}
                for tag, curve in result.curves.items()
            },
            "spreads": {
                tag: {"steps": list(spread.steps), "quantiles": spread.quantiles}
                for tag, spread in result.spreads.items()
            },
        }
        for row, result in zip(table(report), report.results, strict=True)
    ]
    data = {
        "title": report.title,
        "task": report.task,
        "created": report.created,
        "reference": report.reference,
        "policies": policies,
        "configuration": report.configuration,
        "commands": list(report.commands),
        "goals": list(report.goals),
        "machine": report.machine,
    }
    return json.dumps(_plain(data), indent=1, allow_nan=False)


def _episode(episode: Episode) -> dict[str, Any]:
    return {
        "seed": episode.seed,
        "instruction": episode.instruction,
        "success_at_end": episode.success_at_end,
        "success_ever": episode.success_ever,
        "first_success_step": episode.first_success_step,
        "length": episode.length,
        "return": episode.total_reward,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
    }


def _plain(value: Any) -> Any:
    """JSON types only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
