"""Meta-World as tasks: the original's states and views, suites by seed, words, experts."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from sim import gymnasium_render
from sim.tasks import metaworld
from sim.tasks.base import TaskDeclarationError
from sim.tasks.metaworld import DIFFICULTY, MT10, SUITES, TASK_NAMES, MetaWorld
from sim.tasks.metaworld_words import WORDS
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv

FEW = ("reach", "button-press-topdown", "door-open")
"""One whose goal moves, one whose box does, one whose goal is no site of the step."""


def original(member: str, seed: int, actions: np.ndarray) -> list[np.ndarray]:
    """Observations of Meta-World's own environment as LeRobot makes it, goal included."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{member}-v3-goal-observable"](seed=0)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.seed(seed)
    seen = [env.reset()[0]]
    return seen + [env.step(action)[0] for action in actions]


@pytest.mark.parametrize("member", FEW)
def test_states_are_the_originals_to_the_last_bit(member: str) -> None:
    """After other episodes and other tasks in the same state object, too."""
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32)
    expected = original(member, 7, actions)
    task = MetaWorld(16, member)
    data = task.make_data()
    for seed in (3, 7):
        episode = task.reset(data, seed)
        seen = [data.observation]
        for action in actions:
            task.step(data, episode, action)
            seen.append(data.observation)
    np.testing.assert_array_equal(np.array(seen), np.array(expected))
    # The actor has the hand and the gripper; the goal is the critics' alone.
    np.testing.assert_array_equal(task.proprio(data), expected[-1][:4].astype(np.float32))
    privileged = dict(zip(task.privileged_names, task.privileged(data, episode), strict=True))
    assert privileged["goal_x"] == np.float32(expected[-1][36])
    assert any(expected[-1][36:])
    assert privileged[f"is_{member}"] == 1
    assert sum(privileged[f"is_{name}"] for name in TASK_NAMES) == 1


def test_a_suite_plays_each_task_equally_often() -> None:
    """By the seed alone, whatever was played before; labels without a reset are the same."""
    task = MetaWorld(16, "ML45-test")
    data = task.make_data()
    first = {}
    for seed in (0, 1, 0):
        episode = task.reset(data, seed)
        assert episode.labels == task.labels(data, seed)
        assert episode.instruction in WORDS[episode.labels["task"]]["train"]
        state = np.concatenate([task.proprio(data), task.privileged(data, episode)])
        np.testing.assert_array_equal(state, first.setdefault(seed, state))
    asked = Counter(MetaWorld(16, "MT10").labels(data, seed)["task"] for seed in range(50))
    assert asked == dict.fromkeys(MT10, 5)
    assert MetaWorld(16, "reach").labels(data, 3) == {}


def test_the_splits_are_those_that_are_published() -> None:
    """Of the package itself, and the groups' sizes."""
    from metaworld.env_dict import ML45_V3, MT10_V3, MT50_V3

    def plain(envs: dict) -> set[str]:
        return {name.removesuffix("-v3") for name in envs}

    assert set(SUITES["MT10"]) == plain(MT10_V3)
    assert set(SUITES["MT50"]) == plain(MT50_V3)
    assert set(SUITES["ML45-train"]) == plain(ML45_V3["train"])
    assert set(SUITES["ML45-test"]) == plain(ML45_V3["test"])
    sizes = {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    assert Counter(DIFFICULTY.values()) == sizes


def test_no_sentence_belongs_to_two_tasks() -> None:
    """LeRobot's texts repeat; and held-out ones are other words than those of training."""
    said = Counter(s for words in WORDS.values() for one in words.values() for s in one)
    assert [sentence for sentence, count in said.items() if count > 1] == []
    assert all(len(words["train"]) >= 4 and len(words["heldout"]) >= 2 for words in WORDS.values())


def test_experts_press_a_button_and_open_a_door() -> None:
    """Within the default horizon; without warnings of commands beyond the limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for member in ("button-press-topdown", "door-open"):
            task = MetaWorld(16, member)
            data = task.make_data()
            episode = task.reset(data, 1)
            while not task.is_success(data, episode):
                action = task.expert_action(data, episode)
                assert np.abs(action).max() <= 1
                task.step(data, episode, action)
                assert episode.steps < 200


def test_an_episode_may_be_longer_than_the_original_allows() -> None:
    """The horizon is the name's, not the environment's 500."""
    task = make_task("MetaWorld/reach@600", 16)
    data = task.make_data()
    episode = task.reset(data, 0)
    for _ in range(501):
        task.step(data, episode, np.zeros(4, np.float32))
    assert task.episode_length == 600


def test_a_missing_package_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the extra, without its dependencies."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="metaworld")

    monkeypatch.setattr(metaworld.importlib, "import_module", missing)
    with pytest.raises(TaskDeclarationError, match=r"pip install --no-deps metaworld==3\.1\.1"):
        MetaWorld(16, "reach").make_data()


@pytest.mark.render
def test_images_are_lerobots_view_and_the_wrists() -> None:
    """Equal to Meta-World's own image, moved and turned as LeRobot does, but for shadows."""
    task = make_task("MetaWorld/button-press-topdown", 96)
    data = task.make_data()
    task.reset(data, 4)
    env = data.env
    names = [camera.name for camera in task.spec.cameras]
    assert names == ["corner2", "wrist"]
    renderer = task.make_renderer(names, 96, antialias=True)
    images = renderer.images(data)
    renderer.close()
    env.width = env.height = 96
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    for name, source, turned in (("corner2", "corner2", True), ("wrist", "gripperPOV", False)):
        theirs = MujocoRenderer(data.model, data.data, width=96, height=96, camera_name=source)
        image = theirs.render("rgb_array")
        theirs.close()
        image = image[::-1, ::-1] if turned else image
        away = np.abs(image.astype(float) - images[name])
        # Theirs have shadows and reflections.
        assert away.mean() < 16, name
        mirrored = np.abs(image[::-1, ::-1].astype(float) - images[name]).mean()
        assert mirrored > 1.5 * away.mean()


@pytest.mark.render
def test_several_tasks_share_a_vector_environment() -> None:
    """Each row has its own task, words and image; a reset may change the task of a row."""
    with CpuVecEnv("MetaWorld/ML45-test@20", 3, 2, image_size=32) as env:
        env.reset(range(3), [0, 1, 3])
        observation, privileged = env.observe()
        tasks = [labels["task"] for labels in env.labels()]
        assert tasks == ["bin-picking", "box-close", "door-lock"]
        for words, name in zip(observation.instructions, tasks, strict=True):
            assert words in WORDS[name]["train"]
        image = observation.images["corner2"].float()
        assert (image[0] - image[1]).abs().mean() > 3
        batch = env.step(env.expert_actions()[:, None])
        assert not torch.equal(batch.observation.proprio, observation.proprio)
        env.reset([0], [1])
        again, again_privileged = env.observe()
        torch.testing.assert_close(again.images["corner2"][0], observation.images["corner2"][1])
        torch.testing.assert_close(again_privileged[0], privileged[1], rtol=0, atol=0)


@pytest.mark.render
def test_what_no_state_shows_any_longer_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of fifty tasks would fill the memory; one that is in use is never made anew."""
    monkeypatch.setattr(gymnasium_render, "_CONTEXTS", 1)
    task = MetaWorld(16, "ML45-test")
    renderer = task.make_renderer(["wrist"], 16)
    one, other = task.make_data(), task.make_data()
    task.reset(other, 1)
    renderer.images(one)
    renderer.images(other)
    kept = dict(renderer._contexts)
    renderer.images(one)
    assert renderer._contexts == kept
    task.reset(one, 1)
    renderer.images(one)
    task.reset(one, 2)
    renderer.images(one)
    assert set(renderer._contexts) == {"box-close", "hand-insert"}
    with pytest.raises(RuntimeError, match="closed"):
        kept["bin-picking"].images(one.data)
    renderer.close()


@pytest.mark.slow
@pytest.mark.parametrize("member", TASK_NAMES)
def test_experts_succeed(member: str) -> None:
    """In most of five episodes; the rates stand in docs/tasks/metaworld.md."""
    task = make_task(f"MetaWorld/{member}")
    data = task.make_data()
    reached = 0
    for seed in range(5):
        episode = task.reset(data, seed)
        while episode.steps < task.episode_length:
            task.step(data, episode, task.expert_action(data, episode))
            if task.is_success(data, episode):
                reached += 1
                break
    assert reached >= 3
