"""What planners minimise: small when solved, falling along the way there."""

from __future__ import annotations

import numpy as np
import pytest

from sim import planner_costs
from sim.tasks.registry import make_task

BLOCK = np.array([1.3, 0.7, 0.425])
TARGET = np.array([1.3, 0.9, 0.425])
OPEN, AROUND = np.full(2, 0.05), np.full(2, 0.024)


def offset(*metres: float) -> np.ndarray:
    """A displacement."""
    return np.array(metres)


def test_push_by_hand() -> None:
    """In place, lifted from its place, and solved."""
    behind = BLOCK - offset(0, 0.05, 0)
    assert planner_costs.push(behind, BLOCK, TARGET) == pytest.approx(0.2)
    higher = planner_costs.push(behind + offset(0, 0, 0.1), BLOCK, TARGET)
    assert higher == pytest.approx(0.2 + 0.2 * 0.1)
    assert planner_costs.push(behind + offset(1, 1, 1), TARGET, TARGET) == 0.0


def test_push_wants_the_gripper_on_the_far_side_of_the_block() -> None:
    """From the near side it could only push away."""
    far, near = BLOCK - offset(0, 0.05, 0), BLOCK + offset(0, 0.05, 0)
    assert planner_costs.push(far, BLOCK, TARGET) < planner_costs.push(near, BLOCK, TARGET)


def test_pick_and_place_falls_from_stage_to_stage() -> None:
    """Open, above, around, closed, lifted, there."""
    aside = BLOCK + offset(0.1, 0, 0.2)
    above = BLOCK + offset(0, 0, 0.08)
    lifted = BLOCK + offset(0, 0.1, 0.1)
    goal = TARGET + offset(0, 0.1, 0.1)
    stages = [
        (aside, np.zeros(2), BLOCK),
        (aside, OPEN, BLOCK),
        (above, OPEN, BLOCK),
        (BLOCK, OPEN, BLOCK),
        (BLOCK, AROUND, BLOCK),
        (lifted, AROUND, lifted),
        (goal, AROUND, goal),
    ]
    values = [planner_costs.pick_and_place(grip, f, block, goal) for grip, f, block in stages]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert values[-1] == pytest.approx(0.0, abs=1e-12)


def test_coming_from_the_side_at_the_blocks_height_costs_more_than_from_above() -> None:
    """The side knocks the block over."""
    side = BLOCK + offset(0.06, 0, 0)
    above = BLOCK + offset(0.06, 0, 0.08)
    assert planner_costs.pick_and_place(side, OPEN, BLOCK, TARGET) > planner_costs.pick_and_place(
        above, OPEN, BLOCK, TARGET
    )


@pytest.mark.parametrize("name", ["FetchPush", "FetchPickAndPlace"])
def test_the_experts_way_brings_the_tasks_cost_to_about_zero(name: str) -> None:
    """The tasks use these costs with the right arguments."""
    task = make_task(name)
    data = task.make_data()
    episode = task.reset(data, seed=2)
    before = task.cost(data, episode)
    for _ in range(task.episode_length):
        task.step(data, episode, task.expert_action(data, episode))
    assert task.is_success(data, episode)
    assert task.cost(data, episode) < 0.06 < before
