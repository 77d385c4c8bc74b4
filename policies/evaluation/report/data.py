"""What a report holds: results first, charts and films of them second."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from policies.evaluation.habits.diagnosis import Diagnosis
from policies.evaluation.speed import Speed
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
        episode: what it shows.
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
class Distribution:
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
        speed: of its decisions; None where it was not measured.
        planning_steps_per_decision: simulator control steps searched for one chunk; None for a
            policy that does not search.
        ledger: what was spent on its weights, by name: see `LEDGER`. None where it is not known.
        films: episodes to look at.
        curves: tag → scalar that its run logged.
        distributions: tag → distribution that its run logged.
        diagnosis: how its run stands; None where it comes from no run.
    """

    name: str
    source: str
    episodes: Episodes
    speed: Speed | None = None
    planning_steps_per_decision: float | None = None
    ledger: Mapping[str, int] | None = None
    films: tuple[Film, ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True)
class Unfinished:
    """A policy that was stopped before its last episode.

    Attributes:
        name: as in the table.
        reason: the error, or that it was interrupted.
        episodes: those that ended, in the order of ending.
    """

    name: str
    reason: str
    episodes: tuple[Episode, ...]


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
        unfinished: what stopped the evaluation; the policies after it were not played.

    Raises:
        ValueError: no results and nothing unfinished, a name repeats, the reference is not among
            the results, seeds differ, or there is not one goal an episode.
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
    unfinished: Unfinished | None = None

    def __post_init__(self) -> None:
        # Names are keys of the table and of the films.
        names = [result.name for result in self.results]
        if len(set(names)) != len(names) or not (names or self.unfinished):
            raise ValueError(f"a report needs policies with different names: {names}")
        if names and self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is not one of {names}")
        for result in self.results:
            # In equal order too: paired tests compare outcomes by position.
            if seeds_of(result) != seeds_of(self.results[0]):
                raise ValueError(f"{result.name!r} was played on other seeds than {names[0]!r}")
        if self.goals and names and len(self.goals) != len(seeds_of(self.results[0])):
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
        speed, planning_steps_per_decision, ledger: see `PolicyResult`.
    """

    name: str
    source: str
    success_at_end: Interval
    success_ever: Interval
    difference: PairedDifference | None
    steps_to_success: float | None
    length: float
    total_reward: float
    speed: Speed | None
    planning_steps_per_decision: float | None
    ledger: Mapping[str, int] | None


LEDGER = {
    "demonstration_episodes": "demonstrations",
    "demonstration_frames": "demonstration frames",
    "grounding_frames": "grounding frames",
    "collection_steps": "collection steps",
    "selection_steps": "selection steps",
    "comparisons": "comparisons",
}
"""What trainings spend, and its heading: recorded episodes and their frames, frames labelled with
true positions, simulator control steps to learn from and to choose checkpoints by, and judgements
of two episodes."""


def seeds_of(result: PolicyResult) -> list[int]:
    """The initial states that a result was played on."""
    # In the order played, which is that of the outcomes.
    return [episode.seed for episode in result.episodes.episodes]


def table(report: Report) -> list[Row]:
    """One row per policy that was played to the end, in the report's order."""
    if not report.results:
        return []
    # By identity below: the reference gets no difference from itself.
    reference = next(result for result in report.results if result.name == report.reference)
    return [_row(result, reference) for result in report.results]


def _row(result: PolicyResult, reference: PolicyResult) -> Row:
    episodes = result.episodes.episodes
    # Bool [episodes] both, in the order of the seeds.
    at_end, ever = result.episodes.success_at_end, result.episodes.success_ever
    # Successes only, so a policy that solves only easy states looks fast: read it beside the rate.
    first = [e.first_success_step for e in episodes if e.first_success_step is not None]
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
        speed=result.speed,
        planning_steps_per_decision=result.planning_steps_per_decision,
        ledger=result.ledger,
    )


def to_json(report: Report) -> str:
    """Every number of the report, films aside; numbers that are not finite become null."""
    # Films are left out: megabytes of base64 that nobody parses.
    policies = [
        asdict(row)
        | {
            # Outcome by outcome, so that any other statistic can be computed from the file.
            "episodes": [_episode(episode) for episode in result.episodes.episodes],
            "curves": {
                tag: {"steps": list(curve.steps), "values": list(curve.values)}
                for tag, curve in result.curves.items()
            },
            "distributions": {
                tag: {"steps": list(one.steps), "quantiles": one.quantiles}
                for tag, one in result.distributions.items()
            },
            "habits": None if result.diagnosis is None else asdict(result.diagnosis),
        }
        for row, result in zip(table(report), report.results, strict=True)
    ]
    data = {
        "title": report.title,
        "task": report.task,
        "created": report.created,
        "reference": report.reference,
        "policies": policies,
        # Kept although it is in no table: an interrupted evaluation took hours as well.
        "unfinished": None
        if report.unfinished is None
        else {
            "name": report.unfinished.name,
            "reason": report.unfinished.reason,
            "episodes": [_episode(episode) for episode in report.unfinished.episodes],
        },
        "configuration": report.configuration,
        "commands": list(report.commands),
        "goals": list(report.goals),
        "machine": report.machine,
    }
    # A NaN that slipped through is an error here, not in the reader's parser.
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
        # JSON allows text keys only; levels of quantiles are floats.
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, float | np.floating):
        # JSON has neither NaN nor infinity.
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    # Paths, for instance, in a configuration.
    return str(value)
