"""Curricula of `vla refine`, made for a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from policies.reinforcement.curriculum import (
    CURRICULA,
    Candidates,
    Curriculum,
    Frontier,
    FrontierConfig,
    ShrinkingGoal,
)
from policies.reinforcement.rewards import distance_to_goal
from policies.reinforcement.trainer import OnPolicyConfig
from scripts.choice import read_choice
from sim.seeds import training_seeds
from sim.tasks.base import TaskDeclarationError
from sim.tasks.registry import find_task, make_task, member_names


def make_curriculum(text: str, task: str, training: OnPolicyConfig) -> Curriculum:
    """A curriculum by `name:setting=value,...`.

    Raises:
        ValueError: no curriculum of that name, or the task has no cost, or its state no distance to
            a goal.
    """
    config = read_choice("curriculum", "--curriculum", text, CURRICULA)
    return _MAKERS[text.partition(":")[0]](config, task, training)


def _frontier(config: Any, task: str, training: OnPolicyConfig) -> Curriculum:
    def candidates(iteration: int, count: int) -> Sequence[int]:
        return training_seeds(training.seed, iteration, count)

    if len(members := member_names(task)) > 1:
        return _frontier_of_suite(config, task, members, training.episodes, candidates)
    difficulty = _difficulty(task)
    # Asked once: else the first collection would say it, after the clone was evaluated.
    try:
        difficulty(candidates(0, 1)[0])
    except TaskDeclarationError as error:
        raise ValueError(
            f"--curriculum frontier orders start states by the task's cost: {error}; radius needs "
            "none"
        ) from error
    return Frontier(config, training.episodes, candidates, difficulty)


def _frontier_of_suite(
    config: FrontierConfig,
    name: str,
    members: Sequence[str],
    episodes: int,
    candidates: Candidates,
) -> Frontier:
    """A level a task, since the costs of different tasks cannot be compared."""
    if config.levels not in (FrontierConfig.levels, len(members)):
        raise ValueError(
            f"--curriculum frontier: the levels of {name} are its {len(members)} tasks, so "
            f"levels={config.levels} is none; leave it out"
        )
    task = make_task(name)
    data = task.make_data()
    tasks = [find_task(member).variant for member in members]
    return Frontier(
        replace(config, levels=len(tasks)),
        episodes,
        candidates,
        lambda seed: float(tasks.index(task.labels(data, seed)["task"])),
    )


def _radius(config: Any, task: str, training: OnPolicyConfig) -> Curriculum:
    def seeds(iteration: int) -> Sequence[int]:
        return training_seeds(training.seed, iteration, training.episodes)

    return ShrinkingGoal(config, seeds, distance_to_goal(make_task(task).privileged_names))


_MAKERS: dict[str, Callable[[Any, str, OnPolicyConfig], Curriculum]] = {
    "frontier": _frontier,
    "radius": _radius,
}


def _difficulty(name: str) -> Callable[[int], float]:
    """What planners pay in a seed's initial state: for Fetch about the distance still to go."""
    task = make_task(name)
    data = task.make_data()
    # A reset without a control step: a hundredth of what an episode costs.
    return lambda seed: task.cost(data, task.reset(data, seed))
