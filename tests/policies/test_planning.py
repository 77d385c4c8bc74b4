"""Planners on problems whose optimum is known, and the policy that runs them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.planning.cem import Cem, CemConfig
from policies.planning.mppi import Mppi, MppiConfig, path_weights
from policies.planning.plan import NoFiniteRolloutError, Plan, coloured_noise, rollout_costs
from policies.planning.receding import PlannerPolicy, shift
from vla.contract import (
    CameraSpec,
    ContractMismatchError,
    ObservationBatch,
    Policy,
    RobotSpec,
    VectorSpec,
)

SPEC = RobotSpec(
    robot="point",
    action=VectorSpec(("x", "y"), ("1", "1"), (-1.0, -0.5), (1.0, 0.5)),
    proprio=VectorSpec(("x",), ("m",), (-1.0,), (1.0,)),
    cameras=(CameraSpec("front", 4, 4),),
    control_rate_hz=10.0,
)
TARGET = np.array([0.3, -0.2])
PLANNERS = [
    pytest.param(Cem(CemConfig(samples=64, iterations=8, elites=8)), id="cem"),
    pytest.param(Mppi(MppiConfig(samples=64, iterations=8)), id="mppi"),
]


class Quadratic:
    """Cost |action - target|² + |state|²; samples whose first action is in `broken` cost NaN."""

    spec = SPEC

    def __init__(self, target: np.ndarray = TARGET, broken: float = np.inf) -> None:
        self.target, self.broken = target, broken
        self.sampled: list[np.ndarray] = []

    def rollout(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Costs float64 [samples, horizon]."""
        self.sampled.append(actions)
        costs = ((actions - self.target) ** 2).sum(axis=-1) + (state**2).sum()
        costs[actions[:, 0, 0] > self.broken] = np.nan
        return costs


class Integrator:
    """A point moved by 0.1 action a step; its cost is the distance to a goal 0.6 away."""

    spec = SPEC
    goal = np.array([0.6, 0.2])

    def rollout(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Costs float64 [samples, horizon]."""
        positions = state + 0.1 * np.cumsum(actions, axis=1)
        return np.linalg.norm(positions - self.goal, axis=-1)


def rng(seed: int = 0) -> np.random.Generator:
    """A generator of its own for each use."""
    return np.random.default_rng(seed)


def observations(count: int) -> ObservationBatch:
    """Observations of which the planner reads the count alone."""
    return ObservationBatch(
        images={"front": torch.zeros(count, 4, 4, 3, dtype=torch.uint8)},
        proprio=torch.zeros(count, 1),
        instructions=["go"] * count,
        time_s=torch.zeros(count),
    )


def converged(planner, dynamics, decisions: int = 6) -> np.ndarray:
    """The plan after several decisions from one state, each warm-started by the one before."""
    generator = rng()
    actions = planner.plan(dynamics, np.zeros(1), None, generator).actions
    for _ in range(decisions - 1):
        actions = planner.plan(dynamics, np.zeros(1), actions, generator).actions
    return actions


@pytest.mark.parametrize("planner", PLANNERS)
def test_reaches_the_optimum_of_a_quadratic(planner) -> None:
    """A few warm-started decisions find the known optimum."""
    actions = converged(planner, Quadratic())
    assert actions.shape == (10, 2)
    assert np.abs(actions - TARGET).max() < 0.08


@pytest.mark.parametrize("planner", PLANNERS)
def test_nan_costs_are_never_ranked_best(planner) -> None:
    """The optimum lies where rollouts break: the plan stays at the border."""
    # Everything beyond 0.1 breaks, the optimum at 0.3 with it: the best valid value is 0.1.
    actions = converged(planner, Quadratic(broken=0.1))
    assert actions[0, 0] <= 0.1
    assert actions[0, 0] > -0.1
    assert np.abs(actions[:, 1] - TARGET[1]).max() < 0.12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_step_makes_the_rollout_infinitely_costly(value: float) -> None:
    """NaN and both infinities, -inf above all, must not win."""

    class Broken(Quadratic):
        def rollout(self, state, actions):
            """All sound but for one step of sample 1."""
            costs = np.ones(actions.shape[:2])
            costs[1, 2] = value
            return costs

    costs = rollout_costs(Broken(), np.zeros(1), np.zeros((3, 4, 2)))
    np.testing.assert_array_equal(costs, [4.0, np.inf, 4.0])


def test_costs_of_a_wrong_shape_are_refused() -> None:
    """A model that sums over the horizon itself is refused."""

    class Summed(Quadratic):
        def rollout(self, state, actions):
            """The horizon is lost."""
            return np.ones(len(actions))

    with pytest.raises(ValueError, match="expected"):
        rollout_costs(Summed(), np.zeros(1), np.zeros((3, 4, 2)))


@pytest.mark.parametrize("planner", PLANNERS)
def test_all_broken_falls_back_to_the_earlier_plan_or_says_so(planner) -> None:
    """Nothing finite: the earlier plan, or an error without one."""
    dynamics = Quadratic(broken=-2.0)
    earlier = np.full((10, 2), 0.25)
    plan = planner.plan(dynamics, np.zeros(1), earlier, rng())
    np.testing.assert_array_equal(plan.actions, earlier)
    assert plan.cost == np.inf
    with pytest.raises(NoFiniteRolloutError, match="no earlier plan"):
        planner.plan(dynamics, np.zeros(1), None, rng())


@pytest.mark.parametrize("planner", PLANNERS)
def test_seeds_reproduce(planner) -> None:
    """An equal seed is an equal plan, another seed another plan."""
    first, same, other = (
        planner.plan(Quadratic(), np.zeros(1), None, rng(seed)).actions for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("planner", PLANNERS)
def test_action_limits_are_respected(planner) -> None:
    """An optimum outside: neither samples nor plan leave the limits."""
    dynamics = Quadratic(target=np.array([5.0, -5.0]))
    actions = planner.plan(dynamics, np.zeros(1), None, rng()).actions
    for sampled in (*dynamics.sampled, actions):
        assert np.all(sampled >= SPEC.action.low)
        assert np.all(sampled <= SPEC.action.high)
    assert actions[:, 0].mean() > 0.8
    assert actions[:, 1].mean() < -0.4


@pytest.mark.parametrize("keep_elites", [0, 2])
def test_cem_never_returns_a_plan_worse_than_its_warm_start(keep_elites: int) -> None:
    """Hopelessly few samples around the optimum return the optimum, also if no elite is kept."""
    # With several iterations, the second of which does not try the warm start again.
    planner = Cem(CemConfig(samples=4, iterations=3, elites=2, keep_elites=keep_elites))
    optimum = np.broadcast_to(TARGET, (10, 2))
    plan = planner.plan(Quadratic(), np.ones(1), optimum, rng())
    np.testing.assert_array_equal(plan.actions, optimum)
    assert plan.cost == pytest.approx(10.0)  # ten steps of |state|² = 1


def test_path_weights_by_hand() -> None:
    """Three costs, one broken, weighed on paper."""
    # Costs 0 and 2 have mean 1 and deviation 1; at temperature 2 their weights are 1 : exp(-1).
    weights = path_weights(np.array([0.0, np.inf, 2.0]), temperature=2.0)
    np.testing.assert_allclose(weights, np.array([1, 0, np.exp(-1)]) / (1 + np.exp(-1)))
    np.testing.assert_allclose(path_weights(np.ones(4), temperature=0.1), 0.25)


def test_coloured_noise_has_unit_variance_and_its_colour() -> None:
    """White noise is uncorrelated; coloured noise is not, at equal variance."""

    def lag_one(exponent: float) -> float:
        """Correlation of neighbouring steps."""
        noise = coloured_noise(rng(), exponent, 20_000, 10, 2)
        assert noise.shape == (20_000, 10, 2)
        np.testing.assert_allclose(noise.var(axis=0), 1.0, atol=0.05)
        return float((noise[:, 1:] * noise[:, :-1]).mean())

    assert abs(lag_one(0.0)) < 0.02
    assert lag_one(2.5) > 0.85


@pytest.mark.parametrize(
    "wrong",
    [
        {"elites": 99},
        {"keep_elites": 7},
        {"planning_horizon": 1},
    ],
)
def test_cem_refuses_impossible_settings(wrong: dict[str, float]) -> None:
    """At construction, not in the middle of an episode."""
    with pytest.raises(ValueError, match="need"):
        replace(CemConfig(), **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "above 0"),
        ({"std_decay": 1.5}, "at most 1"),
        ({"samples": 1}, "need"),
    ],
)
def test_mppi_refuses_impossible_settings(wrong: dict[str, float], message: str) -> None:
    """At construction, not in the middle of an episode."""
    with pytest.raises(ValueError, match=message):
        replace(MppiConfig(), **wrong)


class Recorder:
    """A planner that counts upwards and remembers what it was warm-started with."""

    planning_horizon = 4

    def __init__(self) -> None:
        self.warm_starts: list[np.ndarray | None] = []

    def plan(self, dynamics, state, warm_start, rng) -> Plan:
        """The same plan every time, displaced by the state."""
        self.warm_starts.append(warm_start)
        return Plan(np.arange(8.0).reshape(4, 2) + state[0], 0.0, simulator_steps=12)


def make_policy(planner, environments: int, execute_steps: int = 2) -> PlannerPolicy:
    """A policy over environments whose states are 0, 100, 200 and so on."""
    states = 100.0 * np.arange(environments)[:, None]
    return PlannerPolicy(Quadratic(), planner, lambda: states, SPEC, execute_steps)


def test_shift_drops_what_was_executed_and_rests_or_repeats_the_last_action() -> None:
    """Four steps by hand: repeated in both dimensions, then at rest in the first."""
    actions, repeat = np.arange(8.0).reshape(4, 2), np.full(2, np.nan)
    np.testing.assert_array_equal(shift(actions, 3, repeat), actions[[3, 3, 3, 3]])
    np.testing.assert_array_equal(shift(actions, 1, repeat), actions[[1, 2, 3, 3]])
    resting = shift(actions, 2, np.array([0.0, np.nan]))
    np.testing.assert_array_equal(resting, [[4, 5], [6, 7], [0, 7], [0, 7]])


def test_policy_warm_starts_each_environment_until_it_is_reset() -> None:
    """Each environment has its own shifted plan; a reset forgets that one."""
    planner = Recorder()
    policy = make_policy(planner, 2)
    assert isinstance(policy, Policy)
    policy.reset([0, 1])
    chunk = policy.act(observations(2))
    assert chunk.shape == (2, 2, 2)
    assert chunk.dtype == torch.float32
    np.testing.assert_array_equal(chunk[1], [[100, 101], [102, 103]])
    policy.act(observations(2))
    policy.reset([1])
    policy.act(observations(2))
    shifted = np.array([[4.0, 5], [6, 7], [6, 7], [6, 7]])
    expected = [None, None, shifted, shifted + 100, shifted, None]
    for got, want in zip(planner.warm_starts, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_ledger_by_hand() -> None:
    """Five calls for three environments are fifteen decisions."""
    policy = make_policy(Recorder(), 3)
    assert np.isnan(policy.decision_rate_hz)
    policy.reset([0, 1, 2])
    for _ in range(5):
        policy.act(observations(3))
    assert policy.decisions == 15
    assert policy.simulator_steps == 15 * 12
    assert policy.steps_per_decision == 12
    assert policy.decision_rate_hz == pytest.approx(15 / policy.seconds)


@pytest.mark.parametrize("planner", PLANNERS)
def test_simulator_steps_are_the_steps_that_the_dynamics_ran(planner) -> None:
    """The count reported is the count simulated."""
    dynamics = Quadratic()
    plan = planner.plan(dynamics, np.zeros(1), None, rng())
    assert plan.simulator_steps == sum(a.shape[0] * a.shape[1] for a in dynamics.sampled)


@pytest.mark.parametrize("planner", PLANNERS)
def test_closed_loop_reaches_a_goal_and_reproduces_from_its_seed(planner) -> None:
    """Planning again and again brings a moving point to its goal."""

    def drive(seed: int) -> np.ndarray:
        """Where 16 executed steps bring the point."""
        position = np.zeros(2)
        policy = PlannerPolicy(Integrator(), planner, lambda: position[None], SPEC, 2, seed)
        policy.reset([0])
        for _ in range(8):
            chunk = policy.act(observations(1))[0].numpy()
            position = position + 0.1 * chunk.sum(axis=0)
        return position

    assert np.linalg.norm(drive(0) - Integrator.goal) < 0.03
    np.testing.assert_array_equal(drive(0), drive(0))
    assert not np.array_equal(drive(0), drive(1))


def test_plans_do_not_depend_on_how_many_environments_run_at_once() -> None:
    """An episode has one random stream, whichever row plays it."""
    planner = Cem(CemConfig(iterations=1))
    alone, crowded = (
        PlannerPolicy(Quadratic(), planner, lambda n=n: np.zeros((n, 1)), SPEC, 2) for n in (1, 2)
    )
    crowded.reset([0, 1])
    together = crowded.act(observations(2))
    for episode in range(2):
        alone.reset([0])
        torch.testing.assert_close(alone.act(observations(1))[0], together[episode])
    assert not torch.equal(together[0], together[1])


def test_an_environment_without_an_episode_costs_nothing() -> None:
    """Rows that were never reset are not planned for."""
    policy = make_policy(Recorder(), 3)
    policy.reset([1])
    chunk = policy.act(observations(3))
    assert policy.decisions == 1
    assert chunk[0].eq(0).all()
    assert chunk[1].ne(0).all()


def test_policy_refuses_misuse() -> None:
    """A chunk beyond the horizon, and a model of another robot."""
    with pytest.raises(ValueError, match="valid is 1 to planning_horizon, 4"):
        make_policy(Recorder(), 1, execute_steps=5)
    with pytest.raises(ContractMismatchError, match="control_rate_hz"):
        PlannerPolicy(
            Quadratic(),
            Recorder(),
            lambda: np.zeros((1, 1)),
            replace(SPEC, control_rate_hz=5.0),
            execute_steps=1,
        )


def test_rest_is_named_by_dimension() -> None:
    """The policy's warm start rests where it was told to; an unknown name is refused."""
    planner, states = Recorder(), np.zeros((1, 1))
    policy = PlannerPolicy(Quadratic(), planner, lambda: states, SPEC, 3, rest_action={"y": 0.5})
    policy.reset([0])
    for _ in range(2):
        policy.act(observations(1))
    np.testing.assert_array_equal(planner.warm_starts[1], [[6, 7], [6, 0.5], [6, 0.5], [6, 0.5]])
    with pytest.raises(
        ValueError, match=r"rest_action names \['z'\], valid names are \['x', 'y'\]"
    ):
        PlannerPolicy(Quadratic(), planner, lambda: states, SPEC, 3, rest_action={"z": 0.0})


def test_policy_needs_no_agreement_on_cameras() -> None:
    """State-only environments have none."""
    blind = replace(SPEC, cameras=())
    policy = PlannerPolicy(Quadratic(), Recorder(), lambda: np.zeros((1, 1)), blind, 1)
    assert policy.spec == blind
