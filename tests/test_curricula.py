"""Curricula for the simulator's tasks: what is near is easy, and seeds stay those of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from policies.reinforcement.curriculum import Frontier, ShrinkingGoal
from policies.reinforcement.trainer import OnPolicyConfig
from scripts.curricula import make_curriculum
from sim.seeds import TRAINING
from sim.tasks.base import Task
from sim.tasks.registry import make_task

TRAINED = OnPolicyConfig(episodes=20, seed=3)


def mean_distance_m(name: str, seeds: Sequence[int]) -> float:
    """From what must arrive to its goal, in initial states."""
    task = make_task(name)
    data = task.make_data()
    points = [task.points(data, task.reset(data, seed)) for seed in seeds]
    each = [math.dist(p.get("object", p["gripper"]), p["target"]) for p in points]
    return float(np.mean(each))


@pytest.mark.parametrize("task", ["FetchReach", "FetchPush"])
def test_what_is_known_to_be_easy_is_near(task: str) -> None:
    """Once the far ones are known to fail, those that begin are nearer than the task's own."""
    curriculum = make_curriculum("frontier:levels=3,uniform=0", task, TRAINED)
    assert isinstance(curriculum, Frontier)
    first = curriculum.seeds(0)
    assert all(seed in TRAINING for seed in first)
    assert len(first) == TRAINED.episodes
    # As if the nearest level were solved half the time, and the others never.
    curriculum._tried[:], curriculum._solved[:] = 100.0, (50.0, 0.0, 0.0)
    chosen = curriculum.seeds(1)
    assert not {*first} & {*chosen}
    drawn = curriculum._candidates(2, 60)
    assert mean_distance_m(task, chosen) < 0.75 * mean_distance_m(task, drawn)


def test_the_levels_of_a_suite_are_its_tasks() -> None:
    """Those that are mastered, and those that are hopeless, are hardly played any more."""
    training = OnPolicyConfig(episodes=40, seed=3)
    curriculum = make_curriculum("frontier:uniform=0", "MetaWorld/MT10@150", training)
    assert isinstance(curriculum, Frontier)
    first = curriculum.seeds(0)
    assert all(seed in TRAINING for seed in first)
    assert {seed % 10 for seed in first} == set(range(10))
    # Task 2 half the time, task 7 seldom, the others always or never.
    curriculum._tried[:], curriculum._solved[:] = 100.0, [100, 0, 50, 100, 0, 0, 0, 15, 100, 100]
    assert {seed % 10 for seed in curriculum.seeds(1)} == {2, 7}


def test_levels_that_are_not_the_tasks_of_a_suite_are_refused() -> None:
    """Costs of different tasks cannot be compared."""
    assert make_curriculum("frontier:levels=10", "MetaWorld/MT10", TRAINED)
    with pytest.raises(ValueError, match="the levels of MetaWorld/MT10 are its 10 tasks, so lev"):
        make_curriculum("frontier:levels=4", "MetaWorld/MT10", TRAINED)


def test_a_task_whose_start_states_cannot_be_ordered_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a clone is loaded and evaluated, and not as something about planning."""
    monkeypatch.setattr(type(make_task("FetchReach")), "cost", Task.cost)
    with pytest.raises(ValueError, match="orders start states by the task's cost: FetchReach has"):
        make_curriculum("frontier", "FetchReach", TRAINED)


def test_a_radius_is_measured_on_the_tasks_state() -> None:
    """Of the block where there is one; settings come with the name, and others are refused."""
    curriculum = make_curriculum("radius:start_m=0.3,factor=0.5", "FetchPush", TRAINED)
    assert isinstance(curriculum, ShrinkingGoal)
    assert curriculum.radius_m == 0.3
    assert [*curriculum.seeds(0)] != [*curriculum.seeds(1)]
    with pytest.raises(ValueError, match="no curriculum 'hardest'; valid: frontier, radius"):
        make_curriculum("hardest", "FetchPush", TRAINED)
