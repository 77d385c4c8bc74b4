"""Kitchen, Adroit, the Shadow hand and PointMaze: the originals' states, seen and named."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from sim.tasks.kitchen import THINGS
from sim.tasks.point_maze import shortest_way
from sim.tasks.registry import TASKS, find_task, make_task

FAMILIES = ("Kitchen", "Adroit", "ShadowHand", "PointMaze")
ALL = [f"{family}/{variant}" for family in FAMILIES for variant in TASKS[family].variants]
# One of each kind of reset; all of them in the slow test.
FEW = (
    *("Kitchen/microwave", "Adroit/door", "Adroit/relocate", "ShadowHand/reach"),
    *("ShadowHand/block", "PointMaze/UMaze"),
)
# What the originals are made with, where that differs from their defaults.
ARGUMENTS = {
    "Kitchen": {"terminate_on_tasks_completed": False, "remove_task_when_completed": False},
    "PointMaze": {"continuing_task": True, "reset_target": False},
}


def numbers(observation: object) -> np.ndarray:
    """All of an observation."""
    if isinstance(observation, dict):
        return np.concatenate([numbers(observation[key]) for key in sorted(observation)])
    return np.ravel(observation)


def original(name: str, seed: int, steps: int) -> list[np.ndarray]:
    """Observations of a new environment of gymnasium-robotics."""
    choice = find_task(name)
    arguments = ARGUMENTS.get(choice.task.name, {})
    if choice.task.name == "Kitchen":
        arguments = arguments | {"tasks_to_complete": list(THINGS[choice.variant])}
    env = gymnasium.make(
        f"gymnasium_robotics:{choice.task.env_ids[choice.variant]}",
        **arguments,
    )
    seen = [numbers(env.reset(seed=seed)[0])]
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        seen.append(numbers(env.step(action.astype(env.action_space.dtype))[0]))
    env.close()
    return seen


def ours(name: str, seed: int, steps: int) -> list[np.ndarray]:
    """The same as a task, after another episode."""
    task = make_task(name, 16)
    data = task.make_data()
    for before in (seed + 5, seed):
        episode = task.reset(data, before)
        seen = [numbers(data.observation)]
        rng = np.random.default_rng(before)
        for _ in range(steps):
            task.step(data, episode, rng.uniform(-1, 1, task.spec.action.dim).astype(np.float32))
            seen.append(numbers(data.observation))
    return seen


@pytest.mark.parametrize("name", FEW)
def test_states_are_the_originals(name: str) -> None:
    """To the last bit, also where the original's depend on the episode before."""
    np.testing.assert_array_equal(np.array(ours(name, 3, 6)), np.array(original(name, 3, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_states_are_the_originals(name: str) -> None:
    """Of every variant."""
    np.testing.assert_array_equal(np.array(ours(name, 4, 20)), np.array(original(name, 4, 20)))


@pytest.mark.render
@pytest.mark.parametrize("name", FEW)
def test_what_is_seen_moves_and_looking_changes_nothing(name: str) -> None:
    """Images of both kinds, and bit-equal states with and without drawing."""
    task = make_task(name, 48)
    names = [camera.name for camera in task.spec.cameras]
    renderer = task.make_renderer(names, 48)
    states, images = [], []
    for draws in (True, False):
        data = task.make_data()
        episode = task.reset(data, 2)
        rng = np.random.default_rng(0)
        for _ in range(8):
            if draws:
                task.place_markers(data, episode)
                images.append(renderer.images(data))
            task.step(data, episode, rng.uniform(-1, 1, task.spec.action.dim).astype(np.float32))
        states.append(numbers(data.observation))
    renderer.close()
    np.testing.assert_array_equal(states[0], states[1])
    for camera in names:
        assert images[0][camera].std() > 10, camera
    assert any((images[0][camera] != images[-1][camera]).any() for camera in names)


@pytest.mark.render
@pytest.mark.parametrize("name", ["ShadowHand/reach", "ShadowHand/block", "PointMaze/UMaze"])
def test_the_goal_is_seen(name: str) -> None:
    """The same state with another goal looks otherwise."""
    task = make_task(name, 64)
    camera = task.spec.cameras[0].name
    renderer = task.make_renderer([camera], 64)
    data = task.make_data()
    episode = task.reset(data, 1)
    task.place_markers(data, episode)
    first = renderer.images(data)[camera].astype(int)
    env = data.env.unwrapped
    env.goal = env.goal + 0.05  # pyright: ignore[reportAttributeAccessIssue]
    if name.startswith("PointMaze"):
        env.update_target_site_pos()  # pyright: ignore[reportAttributeAccessIssue]
        task.step(data, episode, np.zeros(2, np.float32))
    task.place_markers(data, episode)
    second = renderer.images(data)[camera].astype(int)
    renderer.close()
    assert (np.abs(first - second).max(axis=2) > 20).sum() > 8


def test_joints_have_names_and_the_goal_is_no_proprioception() -> None:
    """Positions of the driven joints, in the order of the commands."""
    task = make_task("Adroit/door", 16)
    assert task.spec.action.names == task.spec.proprio.names
    assert task.spec.proprio.names[0] in ("WRJ1", "ARTz")
    data = task.make_data()
    task.reset(data, 0)
    joint = task.spec.proprio.names.index("FFJ2")
    data.data.joint("FFJ2").qpos[0] = 0.25
    assert task.proprio(data)[joint] == 0.25
    hand = make_task("ShadowHand/reach", 16)
    assert (hand.spec.action.dim, hand.spec.proprio.dim) == (20, 24)
    assert hand.spec.proprio.names[:2] == ("WRJ1", "WRJ0")


def test_a_kitchen_of_four_things_wants_all_of_them_now() -> None:
    """One that is moved back is not done."""
    task = make_task("Kitchen/complete", 16)
    data = task.make_data()
    episode = task.reset(data, 0)
    achieved = {name: np.array(goal) for name, goal in data.observation["desired_goal"].items()}
    data.observation = data.observation | {"achieved_goal": achieved}
    assert task.is_success(data, episode)
    achieved["microwave"] = achieved["microwave"] + 0.4
    assert not task.is_success(data, episode)


def test_the_ball_finds_its_way() -> None:
    """Around the wall; and the way of a maze without one is where it is."""
    maze = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert shortest_way(maze, (1, 1), (2, 2)) == [(1, 1), (2, 1), (2, 2)]
    assert shortest_way(maze, (1, 1), (1, 1)) == [(1, 1)]
    task = make_task("PointMaze/UMaze", 16)
    data = task.make_data()
    reached = 0
    for seed in range(5):
        episode = task.reset(data, seed)
        while episode.steps < task.episode_length:
            task.step(data, episode, task.expert_action(data, episode))
        reached += task.is_success(data, episode)
    assert reached == 5
