"""The planner's model is the environment: predictions equal what then happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policies.planning.cem import Cem, CemConfig
from sim.dynamics import ExactDynamics
from sim.tasks.mujoco_task import pack_state
from sim.tasks.registry import make_task
from vla.contract import Dynamics

TASKS = ("FetchReach", "FetchPush", "FetchPickAndPlace", "Tabletop")
WARM_UP_STEPS = 12  # of the expert: afterwards the gripper touches the block


def begin(name: str, steps: int = WARM_UP_STEPS):
    """A task, its data and its episode after some steps of the expert."""
    task = make_task(name)
    data = task.make_data()
    episode = task.reset(data, seed=5)
    for _ in range(steps):
        task.step(data, episode, task.expert_action(data, episode))
    return task, data, episode


def sample(samples: int, planning_horizon: int, seed: int = 0) -> np.ndarray:
    """Actions, some beyond the limits: float64 [samples, planning_horizon, 4]."""
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (samples, planning_horizon, 4))


@pytest.mark.parametrize("name", TASKS)
def test_predicted_costs_equal_the_executed_ones(name: str) -> None:
    """In contact, after some steps: the planner sees what then happens."""
    task, data, episode = begin(name)
    dynamics = ExactDynamics(name, threads=2)
    actions = sample(4, 5)
    predicted = dynamics.rollout(pack_state(task, data, episode), actions)
    executed = []
    for step in range(5):
        task.step(data, episode, actions[2, step].astype(np.float32))
        executed.append(task.cost(data, episode))
    np.testing.assert_allclose(predicted[2], executed, rtol=0, atol=1e-9)
    assert not np.allclose(predicted[1], predicted[2])


def test_the_chosen_plans_cost_is_what_executing_it_costs() -> None:
    """The same through a planner, float32 actions included."""
    task, data, episode = begin("FetchPush")
    dynamics = ExactDynamics("FetchPush", threads=2)
    planner = Cem(CemConfig(planning_horizon=5, samples=8, iterations=2, elites=3))
    state = pack_state(task, data, episode)
    plan = planner.plan(dynamics, state, None, np.random.default_rng(0))
    executed = 0.0
    for step in range(5):
        task.step(data, episode, plan.actions[step].astype(np.float32))
        executed += task.cost(data, episode)
    assert abs(plan.cost - executed) < 1e-9


def test_results_do_not_depend_on_threads_or_on_what_ran_before() -> None:
    """A reused `MjData` carries nothing over."""
    state = pack_state(*begin("FetchPickAndPlace"))
    one, three = ExactDynamics("FetchPickAndPlace", 1), ExactDynamics("FetchPickAndPlace", 3)
    actions = sample(7, 3)
    first = one.rollout(state, actions)
    np.testing.assert_array_equal(three.rollout(state, actions), first)
    np.testing.assert_array_equal(one.rollout(state, actions[::-1])[::-1], first)


def test_a_broken_rollout_costs_infinity_from_where_it_broke_and_spoils_no_other() -> None:
    """A NaN action ends its own rollout alone."""
    state = pack_state(*begin("FetchReach", steps=0))
    dynamics = ExactDynamics("FetchReach", threads=1)
    actions = sample(3, 4)
    sound = dynamics.rollout(state, actions)
    actions[1, 2] = np.nan
    broken = dynamics.rollout(state, actions)
    np.testing.assert_array_equal(np.isinf(broken[1]), [False, False, True, True])
    np.testing.assert_array_equal(broken[[0, 2]], sound[[0, 2]])
    np.testing.assert_array_equal(broken[1, :2], sound[1, :2])


def test_a_simulation_that_diverges_is_noticed_though_mujoco_restarts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the restart the state looks sound; the cost must not."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning into the current folder
    task, data, episode = begin("FetchReach", steps=0)
    data.qvel[3] = 1e12  # beyond mjMAXVAL: MuJoCo warns, resets the world and goes on
    diverging = pack_state(task, data, episode)
    costs = ExactDynamics("FetchReach", threads=1).rollout(diverging, sample(2, 3))
    assert np.isinf(costs).all()


def test_contract_and_misuse() -> None:
    """The protocol holds; wrong shapes, counts and names are refused."""
    dynamics = ExactDynamics("FetchReach", threads=1)
    assert isinstance(dynamics, Dynamics)
    state = pack_state(*begin("FetchReach", steps=0))
    with pytest.raises(ValueError, match=r"expected \[samples, planning_horizon, 4\]"):
        dynamics.rollout(state, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="cannot have shape"):
        dynamics.rollout(state[:10], np.zeros((1, 1, 4)))
    with pytest.raises(ValueError, match="at least 1"):
        ExactDynamics("FetchReach", threads=0)
    with pytest.raises(ValueError, match=r"valid names: .*FetchReach"):
        ExactDynamics("FetchFly")


def test_threads_default_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every core works unless told otherwise."""
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert ExactDynamics("FetchReach").threads == 3


def test_rollouts_leave_the_environment_alone() -> None:
    """The planner has its own copy of the task."""
    task, data, episode = begin("FetchPush")
    before = pack_state(task, data, episode)
    ExactDynamics("FetchPush", threads=1).rollout(before, sample(2, 3))
    np.testing.assert_array_equal(pack_state(task, data, episode), before)
