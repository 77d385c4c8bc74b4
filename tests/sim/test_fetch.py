"""The Fetch tasks against gymnasium-robotics, and their experts, words and registry."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sim.tasks.base import Task
from sim.tasks.fetch import FetchReach
from sim.tasks.mujoco_task import pack_state, unpack_state
from sim.tasks.registry import index_by_name, make_task

FETCH = ("FetchReach", "FetchPush", "FetchSlide", "FetchPickAndPlace")


@pytest.fixture(scope="module", params=FETCH)
def task(request) -> Task:
    """One of the four tasks."""
    return make_task(request.param)


@pytest.fixture(scope="module")
def peer(task):
    """gymnasium-robotics' own environment of the same task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
        env = gymnasium.make(f"{task.name}-v4")
    yield env
    env.close()


def _gap(task, data, episode, peer, reading) -> float:
    theirs = peer.unwrapped.data
    pairs = (
        (data.qpos, theirs.qpos),
        (data.qvel, theirs.qvel),
        (task.observation(data), reading["observation"]),
        (task.achieved(data), reading["achieved_goal"]),
        (episode.goal, reading["desired_goal"]),
    )
    return max(float(np.abs(ours - other).max()) for ours, other in pairs)


@pytest.mark.parametrize("seed", [0, 1, 77])
def test_states_equal_gymnasium_robotics(task, peer, seed):
    """Same seed, same start; same 50 actions (beyond the range too), same states to 1e-9."""
    data = task.make_data()
    reading, _ = peer.reset(seed=seed)
    episode = task.reset(data, seed)
    assert _gap(task, data, episode, peer, reading) < 1e-9
    actions = np.random.default_rng(seed).uniform(-1.2, 1.2, (50, 4)).astype(np.float32)
    for action in actions:
        reading, _, _, _, info = peer.step(np.clip(action, -1, 1))
        task.step(data, episode, action)
        assert _gap(task, data, episode, peer, reading) < 1e-9
        assert task.is_success(data, episode) == bool(info["is_success"])


def test_grasps_equal_gymnasium_robotics(peer, task):
    """The expert's contacts, not only random flailing."""
    data = task.make_data()
    reading, _ = peer.reset(seed=5)
    episode = task.reset(data, 5)
    for _ in range(30):
        action = task.expert_action(data, episode)
        reading, *_ = peer.step(action)
        task.step(data, episode, action)
    assert _gap(task, data, episode, peer, reading) < 1e-9


def test_cameras_and_colours_leave_the_physics_alone(task, peer):
    """Cameras and colours have no mass and no contacts."""
    ours, theirs = task.model, peer.unwrapped.model
    assert ours.ncam == theirs.ncam + 3
    for field in ("body_mass", "body_pos", "geom_size", "geom_friction", "dof_damping", "eq_data"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


@pytest.mark.parametrize("name", ["FetchReach", "FetchPush"])
def test_expert_solves_the_first_episodes(name):
    """A dozen episodes without a failure."""
    assert _expert_success(name, range(12)) == 1


def test_pick_and_place_expert_solves_targets_on_the_table_and_in_the_air():
    """Both kinds occur and both are solved."""
    task = make_task("FetchPickAndPlace")
    data = task.make_data()
    heights = [task.reset(data, seed).goal[2] > 0.45 for seed in range(12)]
    assert any(heights)
    assert not all(heights)
    assert _expert_success("FetchPickAndPlace", range(12)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("FetchReach", 0.99), ("FetchPush", 0.99), ("FetchPickAndPlace", 0.99), ("FetchSlide", 0.4)],
)
def test_expert_success_over_200_seeds(name, least):
    """The figures that the documentation states, at the end of the episode."""
    assert _expert_success(name, range(200)) >= least


def _expert_success(name: str, seeds: range) -> float:
    task = make_task(name)
    data = task.make_data()
    solved = 0
    for seed in seeds:
        episode = task.reset(data, seed)
        for _ in range(task.episode_length):
            task.step(data, episode, task.expert_action(data, episode))
        solved += task.is_success(data, episode)
    return solved / len(seeds)


def test_expert_is_a_function_of_the_present_state_alone(task):
    """A state that is packed and rebuilt elsewhere gets the same label."""
    data, other = task.make_data(), task.make_data()
    episode = task.reset(data, 3)
    for _ in range(7):
        task.step(data, episode, task.expert_action(data, episode))
    rebuilt = unpack_state(task, other, pack_state(task, data, episode))
    np.testing.assert_allclose(
        task.expert_action(other, rebuilt), task.expert_action(data, episode), atol=0.1
    )


def test_packed_state_continues_bit_for_bit(task):
    """A planner that starts from a packed state predicts what happens."""
    data, other = task.make_data(), task.make_data()
    episode = task.reset(data, 8)
    rng = np.random.default_rng(0)
    for _ in range(9):
        task.step(data, episode, task.expert_action(data, episode))
    rebuilt = unpack_state(task, other, pack_state(task, data, episode))
    for action in rng.uniform(-1, 1, (10, 4)):
        task.step(data, episode, action)
        task.step(other, rebuilt, action)
        np.testing.assert_array_equal(data.qpos, other.qpos)
        assert task.cost(data, episode) == task.cost(other, rebuilt)
    assert rebuilt.steps == episode.steps == 19


def test_unpack_refuses_another_task_state(task):
    """A vector of the wrong length is no state."""
    with pytest.raises(ValueError, match="packed state"):
        unpack_state(task, task.make_data(), np.zeros(7))


def test_readings_have_one_name_a_number(task):
    """Names match the vector, in number and in place."""
    data = task.make_data()
    episode = task.reset(data, 0)
    privileged = task.privileged(data, episode)
    assert privileged.shape == (len(task.privileged_names),)
    assert len(set(task.privileged_names)) == len(task.privileged_names)
    assert privileged.dtype == np.float32
    points = task.points(data, episode)
    at = task.privileged_names.index
    np.testing.assert_allclose(privileged[at("gripper_x") :][:3], points["gripper"], atol=1e-6)
    np.testing.assert_allclose(privileged[at("goal_x") :][:3], points["target"], atol=1e-6)


def test_proprio_holds_positions_inside_its_stated_range(task):
    """The contract's range is true, and no velocity is felt."""
    data = task.make_data()
    episode = task.reset(data, 0)
    low, high = np.array(task.spec.proprio.low), np.array(task.spec.proprio.high)
    for _ in range(20):
        task.step(data, episode, task.expert_action(data, episode))
        proprio = task.proprio(data)
        assert proprio.dtype == np.float32
        assert (proprio >= low).all()
        assert (proprio <= high).all()
    assert not any("step" in name or "vel" in name for name in task.spec.proprio.names)


def test_markers_show_the_goal_and_compute_no_physics(task):
    """Drawing must not disturb an episode."""
    data = task.make_data()
    episode = task.reset(data, 4)
    task.step(data, episode, np.full(4, 0.3))
    before = pack_state(task, data, episode)
    task.place_markers(data, episode)
    np.testing.assert_array_equal(data.site("target0").xpos, episode.goal)
    np.testing.assert_array_equal(pack_state(task, data, episode), before)


def test_phrasings_differ_in_words_only(task):
    """Held-out words describe the same episodes."""
    assert not set(task.templates["train"]) & set(task.templates["heldout"])
    assert len(set(task.templates["train"])) >= 6
    assert len(set(task.templates["heldout"])) >= 3
    data = task.make_data()
    train, heldout = task.reset(data, 9, "train"), task.reset(data, 9, "heldout")
    np.testing.assert_array_equal(train.goal, heldout.goal)
    assert train.instruction in task.templates["train"]
    assert heldout.instruction in task.templates["heldout"]


def test_unknown_name_lists_the_valid_ones():
    """A typing error is answered with what exists."""
    with pytest.raises(ValueError, match=r"FetchPush.*FetchReach"):
        make_task("FetchPsuh")


def test_registry_refuses_a_name_twice():
    """Two tasks cannot share a name in silence."""
    with pytest.raises(ValueError, match="FetchReach"):
        index_by_name((FetchReach, FetchReach))
