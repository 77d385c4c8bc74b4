"""All habits of a run: the list of checks, and the critic's calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from policies.evaluation.habits import learning_checks, task_checks
from policies.evaluation.habits.run_metrics import RunMetrics
from policies.evaluation.habits.verdict import Finding, Verdict, worst


@dataclass(frozen=True)
class Habit:
    """One check.

    Attributes:
        name: as a reader knows it.
        check: a run's findings; none where nothing was recorded.
        missing: what to say then.
    """

    name: str
    check: Callable[[RunMetrics], Iterator[Finding]]
    missing: str


HABITS = (
    Habit("Fixed policy", task_checks.fixed_policy, "nothing was collected"),
    Habit("KL", learning_checks.kl, "no distance between policies was logged"),
    Habit("Entropy", learning_checks.entropy, "neither entropy nor a standard deviation"),
    Habit("Greedy evaluation", task_checks.greedy_evaluation, "fewer than two evaluations"),
    Habit("Predicted and actual return", task_checks.prediction, "there is no critic"),
    Habit("Gradient norm", learning_checks.gradient, "no gradient norm was logged"),
    Habit("Advantages", learning_checks.advantage, "no advantages were logged"),
    Habit("Frozen batch", task_checks.frozen_batch, "no frozen batch was learned"),
    Habit("Curriculum", task_checks.curriculum, "nothing was collected"),
    Habit("Mode collapse", learning_checks.mode_collapse, "no spread of actions was logged"),
    Habit("Reward hacking", task_checks.reward_hacking, "fewer than two evaluations"),
)


@dataclass(frozen=True)
class Diagnosis:
    """How a run stands.

    Attributes:
        verdicts: one a habit, in the order of `HABITS`.
        calibration: see `RunMetrics.calibration`.
    """

    verdicts: tuple[Verdict, ...]
    calibration: tuple[tuple[float, float], ...] = ()


def diagnose(run: RunMetrics) -> Diagnosis:
    """Every habit of a run."""
    return Diagnosis(
        tuple(worst(habit.name, habit.check(run), habit.missing) for habit in HABITS),
        run.calibration(),
    )


def diagnose_folder(folder: Path) -> Diagnosis:
    """Every habit of the run in a folder; see `RunMetrics.read` for its errors."""
    return diagnose(RunMetrics.read(folder))
