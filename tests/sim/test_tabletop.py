"""The tabletop: one scene, twelve instructions, and words that decide which one is solved."""

from __future__ import annotations

from itertools import pairwise

import mujoco
import numpy as np
import pytest

from sim.tasks.base import Phrasing
from sim.tasks.mujoco_task import pack_state, unpack_state
from sim.tasks.registry import make_task
from sim.tasks.tabletop import INSTRUCTIONS, VERBS, Instruction, Tabletop
from sim.tasks.tabletop_scene import (
    BLOCKS,
    REST_HEIGHT_M,
    TABLE_HEIGHT_M,
    ZONES,
    SceneConfig,
    sample_scene,
)

PUSH = Instruction("push", "red block", "blue zone")
LIFT = Instruction("lift", "green block")


@pytest.fixture(scope="module")
def task() -> Tabletop:
    """One compiled task for the whole file; it holds no episode state."""
    built = make_task("Tabletop")
    assert isinstance(built, Tabletop)
    return built


@pytest.fixture
def data(task: Tabletop) -> mujoco.MjData:
    """New data for every test."""
    return task.make_data()


def play(task: Tabletop, data: mujoco.MjData, seed: int, instruction: Instruction) -> list[bool]:
    """Success after each step of the expert's episode."""
    episode = task.reset_with(data, seed, instruction)
    outcomes = []
    for _ in range(task.episode_length):
        task.step(data, episode, task.expert_action(data, episode))
        outcomes.append(task.is_success(data, episode))
    assert episode.steps == task.episode_length
    return outcomes


def put(task: Tabletop, data: mujoco.MjData, block: str, position: np.ndarray) -> None:
    """Place a block's centre by hand."""
    data.joint(f"{block}:joint").qpos[:3] = position
    mujoco.mj_forward(task.model, data)


def test_instructions() -> None:
    """There are twelve distinct instructions, of both verbs."""
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS) == 12
    assert {instruction.verb for instruction in INSTRUCTIONS} == set(VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("throw", "red block", None), "push, lift"),
        (("push", "blue zone", "blue zone"), "red block, green block, yellow block"),
        (("push", "red block", None), "takes a zone out of"),
        (("lift", "red block", "blue zone"), "takes a zone out of"),
    ],
)
def test_wrong_instruction(words: tuple[str, str, str | None], message: str) -> None:
    """A wrong word is refused with the valid ones."""
    with pytest.raises(ValueError, match=message):
        Instruction(*words)  # pyright: ignore[reportArgumentType]


def test_equal_seeds(task: Tabletop) -> None:
    """An equal seed is an equal episode bit for bit, whatever came before."""
    first, second = task.make_data(), Tabletop().make_data()
    task.reset(first, seed=3)  # what came before must not matter
    task.step(first, task.reset(first, seed=8), np.ones(4))
    episodes = task.reset(first, seed=5), task.reset(second, seed=5)
    assert episodes[0].instruction == episodes[1].instruction
    np.testing.assert_array_equal(episodes[0].goal, episodes[1].goal)
    for _ in range(5):
        action = task.expert_action(first, episodes[0])
        for data, episode in zip((first, second), episodes, strict=True):
            task.step(data, episode, action)
    np.testing.assert_array_equal(first.qpos, second.qpos)
    np.testing.assert_array_equal(first.qvel, second.qvel)
    np.testing.assert_array_equal(first.mocap_pos, second.mocap_pos)


def test_seeds_mean_what_they_meant_in_published_results(
    task: Tabletop, data: mujoco.MjData
) -> None:
    """Drawn numbers are equal on every machine; other ones would silently be another benchmark."""
    scene = sample_scene(SceneConfig(), 1_000_000)
    blocks = [[1.190537, 0.610122], [1.196472, 0.715172], [1.203525, 0.837059]]
    zones = [[1.46124, 0.590473], [1.412701, 0.717957], [1.451003, 0.841966]]
    np.testing.assert_allclose(scene.blocks, blocks, atol=1e-6)
    np.testing.assert_allclose(scene.zones, zones, atol=1e-6)
    said = [task.reset(data, seed).instruction for seed in (0, 1, 1_000_000)]
    assert said == [
        "bring the yellow block to the blue zone with a push",
        "move the yellow block onto the blue zone by pushing it",
        "push the red block to the blue zone",
    ]


def test_other_seeds(task: Tabletop, data: mujoco.MjData) -> None:
    """Seeds draw different scenes and, together, every instruction."""
    episodes = [task.reset(data, seed) for seed in range(120)]
    assert len({tuple(episode.goal[:2]) for episode in episodes}) == 120
    assert {tuple(episode.labels.values()) for episode in episodes} == {
        tuple(instruction.labels.values()) for instruction in INSTRUCTIONS
    }


def test_one_scene_for_all_instructions(task: Tabletop, data: mujoco.MjData) -> None:
    """The scene is the seed's; the goal is the instruction's."""
    states, goals = [], set()
    for instruction in INSTRUCTIONS:
        episode = task.reset_with(data, 4, instruction)
        states.append(np.concatenate([data.qpos, data.mocap_pos.ravel()]))
        goals.add(tuple(episode.goal))
        assert not task.is_success(data, episode)
        assert episode.labels == instruction.labels
        assert instruction.block in episode.instruction
    assert len(goals) == len(INSTRUCTIONS)
    for first, second in pairwise(states):
        np.testing.assert_array_equal(first, second)


def test_scene_spacing() -> None:
    """Blocks and zones lie apart, and no block stands in another one's way to any zone."""
    config = SceneConfig()
    for seed in range(40):
        scene = sample_scene(config, seed)
        for first in range(3):
            for second in range(first):
                assert np.linalg.norm(scene.blocks[first] - scene.blocks[second]) >= 0.09
                assert np.linalg.norm(scene.zones[first] - scene.zones[second]) >= 0.1
        for block in scene.blocks:
            assert (np.linalg.norm(scene.zones - block, axis=1) >= 0.09 + 0.05).all()
        for pushed in range(3):
            others = np.delete(scene.blocks, pushed, axis=0)
            for zone in scene.zones:
                way = np.linspace(scene.blocks[pushed], zone, 50)
                gaps = np.linalg.norm(way[:, None] - others, axis=-1)
                assert gaps.min() > 0.067


def test_impossible_scene() -> None:
    """Ranges that leave no scene are an error, not an endless search."""
    with pytest.raises(RuntimeError, match="widen its ranges"):
        sample_scene(SceneConfig(lane_m=1.0), 0)


def test_heldout_templates(task: Tabletop) -> None:
    """Held-out paraphrases are new sentences of words that training contains."""
    train, heldout = task.templates["train"], task.templates["heldout"]
    assert not set(train) & set(heldout)
    known = {word for template in train for word in template.split()}
    assert {word for template in heldout for word in template.split()} <= known
    for templates in (train, heldout):
        assert len(set(templates)) == len(templates)
        assert all("{object}" in template for template in templates)
        assert {"{zone}" in template for template in templates} == {True, False}


@pytest.mark.parametrize("phrasing", ["train", "heldout"])
def test_words_match_labels(task: Tabletop, data: mujoco.MjData, phrasing: Phrasing) -> None:
    """The sentence is one of the verb's templates, filled with the labels."""
    sentences = set()
    for seed in range(60):
        episode = task.reset(data, seed, phrasing)
        filled = {
            template.format(**episode.labels)
            for template in task.templates[phrasing]
            if ("{zone}" in template) == ("zone" in episode.labels)
        }
        assert episode.instruction in filled
        sentences.add(episode.instruction)
    assert len(sentences) > 25


def test_points(task: Tabletop, data: mujoco.MjData) -> None:
    """Every phrase points at its body, and a lift goal at where its block stood at reset."""
    episode = task.reset_with(data, 1, PUSH)
    named = task.points(data, episode)
    goals = {f"lift goal of the {block}": block for block in BLOCKS}
    assert set(named) == {*BLOCKS, *goals, *ZONES, "gripper", "object", "target"}
    for phrase, block in goals.items():
        np.testing.assert_allclose(named[phrase] - named[block], (0, 0, task.lift_m), atol=1e-12)
    for phrase in (*BLOCKS, *ZONES):
        np.testing.assert_allclose(named[phrase], data.body(phrase).xpos, atol=1e-12)
    np.testing.assert_array_equal(named["object"], named["red block"])
    np.testing.assert_array_equal(named["target"][:2], named["blue zone"][:2])
    np.testing.assert_allclose(named["gripper"], task.home_m, atol=5e-3)
    lifting = task.points(data, task.reset_with(data, 1, LIFT))
    np.testing.assert_allclose(lifting["target"] - lifting["object"], [0, 0, task.lift_m])
    named["red block"][:] = 0.0  # a copy: spoiling it leaves the world alone
    assert data.body("red block").xpos[2] > TABLE_HEIGHT_M


def test_the_lift_goal_stays_where_the_block_stood(task: Tabletop, data: mujoco.MjData) -> None:
    """In points, cost and privileged state alike, also once the block has been carried away."""
    episode = task.reset_with(data, 1, LIFT)
    goal = task.points(data, episode)["target"]
    at = task.privileged_names.index
    for offset in ((0.0, 0.0, 0.1), (0.1, -0.05, 0.2)):
        put(task, data, "green block", np.array([*goal[:2], REST_HEIGHT_M]) + offset)
        named = task.points(data, episode)
        np.testing.assert_array_equal(named["target"], goal)
        np.testing.assert_array_equal(named["lift goal of the green block"], goal)
        privileged = task.privileged(data, episode)
        np.testing.assert_allclose(privileged[at("target_x") :][:3], goal, atol=1e-6)
        assert task.is_success(data, episode)  # the height alone
    away = task.cost(data, episode)
    put(task, data, "green block", goal)
    assert task.is_success(data, episode)  # to be at the goal is to have succeeded
    assert task.cost(data, episode) < away - 0.1
    rebuilt = unpack_state(task, task.make_data(), pack_state(task, data, episode))
    np.testing.assert_array_equal(task.points(data, rebuilt)["target"], goal)


def test_push_success(task: Tabletop, data: mujoco.MjData) -> None:
    """Only the named block, in the named zone, on the table."""
    episode = task.reset_with(data, 2, PUSH)
    zone = np.append(data.body("blue zone").xpos[:2], REST_HEIGHT_M)
    for offset, solved in [
        ((0.049, 0, 0), True),
        ((0, -0.049, 0), True),
        ((0.04, 0.04, 0), False),
        ((0.051, 0, 0), False),
        ((0, 0, 0.02), False),
    ]:
        put(task, data, "red block", zone + offset)
        assert task.is_success(data, episode) is solved, offset
    put(task, data, "red block", data.body("cyan zone").xpos)
    put(task, data, "green block", zone)
    assert not task.is_success(data, episode)  # another block, another zone


def test_lift_success(task: Tabletop, data: mujoco.MjData) -> None:
    """Only the named block, 5 cm up or more."""
    episode = task.reset_with(data, 2, LIFT)
    start = data.body("green block").xpos.copy()
    for height, solved in [(0.0, False), (0.049, False), (0.051, True), (0.2, True)]:
        put(task, data, "green block", np.add(start, (0, 0, height)))
        assert task.is_success(data, episode) is solved, height
    put(task, data, "green block", start)
    put(task, data, "red block", np.add(start, (0.1, 0, 0.2)))
    assert not task.is_success(data, episode)


@pytest.mark.parametrize("index", range(len(INSTRUCTIONS)))
def test_expert_solves_only_its_own(task: Tabletop, data: mujoco.MjData, index: int) -> None:
    """The expert ends with its own instruction solved and none of the other eleven."""
    seed = 100 + index
    outcomes = play(task, data, seed, INSTRUCTIONS[index])
    assert outcomes[-1]
    assert outcomes.index(True) < task.episode_length - 10  # slack for open-loop chunks
    for other in INSTRUCTIONS:
        if other != INSTRUCTIONS[index]:
            goal = task.reset_with(task.make_data(), seed, other)
            assert not task.is_success(data, goal), other


def test_expert_leaves_others(task: Tabletop, data: mujoco.MjData) -> None:
    """Blocks that were not named stay where they were."""
    for seed, instruction in ((0, PUSH), (1, LIFT)):
        task.reset_with(data, seed, instruction)
        others = [name for name in BLOCKS if name != instruction.block]
        before = {name: data.body(name).xpos.copy() for name in others}
        play(task, data, seed, instruction)
        for name in others:
            assert np.linalg.norm(data.body(name).xpos - before[name]) < 5e-3


def test_expert_recovers(task: Tabletop, data: mujoco.MjData) -> None:
    """Noise of 0.15 on every action rarely spoils an episode."""
    random, solved = np.random.default_rng(0), 0
    for seed in range(10):
        episode = task.reset(data, seed)
        for _ in range(task.episode_length):
            action = task.expert_action(data, episode)
            task.step(data, episode, action + random.normal(0, [0.15, 0.15, 0.15, 0.03]))
        solved += task.is_success(data, episode)
    assert solved >= 9


@pytest.mark.parametrize("instruction", [PUSH, LIFT])
def test_cost(task: Tabletop, data: mujoco.MjData, instruction: Instruction) -> None:
    """The expert's way brings the planners' cost to about zero."""
    episode = task.reset_with(data, 6, instruction)
    values = [task.cost(data, episode)]
    for _ in range(task.episode_length):
        task.step(data, episode, task.expert_action(data, episode))
        values.append(task.cost(data, episode))
    assert values[0] > 0.1
    assert min(values) >= 0.0
    assert values[-1] < 0.03


@pytest.mark.parametrize("instruction", [PUSH, LIFT])
def test_packed_state(task: Tabletop, data: mujoco.MjData, instruction: Instruction) -> None:
    """Planners rebuild episodes from states without labels."""
    episode = task.reset_with(data, 11, instruction)
    for _ in range(8):
        task.step(data, episode, task.expert_action(data, episode))
    copy = task.make_data()
    rebuilt = unpack_state(task, copy, pack_state(task, data, episode))
    for _ in range(25):
        action = task.expert_action(data, episode)
        task.step(data, episode, action)
        task.step(copy, rebuilt, action)
    assert task.is_success(copy, rebuilt)
    assert task.is_success(data, episode)
    assert task.cost(copy, rebuilt) == task.cost(data, episode)
    np.testing.assert_array_equal(task.privileged(copy, rebuilt), task.privileged(data, episode))
    np.testing.assert_array_equal(
        task.expert_action(copy, rebuilt), task.expert_action(data, episode)
    )


def test_privileged(task: Tabletop, data: mujoco.MjData) -> None:
    """Every dimension holds what its name says."""
    episode = task.reset_with(data, 7, PUSH)
    task.step(data, episode, np.array([0.5, 0.0, 0.0, 1.0]))
    state = task.privileged(data, episode)
    assert state.dtype == np.float32
    assert state.shape == (len(task.privileged_names),)
    named = dict(zip(task.privileged_names, state, strict=True))
    assert len(named) == len(state)
    assert named["red block_x"] == named["object_x"] == np.float32(data.body("red block").xpos[0])
    assert named["target_y"] == np.float32(data.body("blue zone").xpos[1])
    assert named["gripper_velocity_x"] > 0.1
    said = {name for name, value in named.items() if name.startswith("says_") and value == 1.0}
    assert said == {"says_push", "says_red block", "says_blue zone"}
    without = task.privileged(data, task.reset_with(data, 7, LIFT))
    assert without.shape == state.shape
    assert without[-3:].sum() == 0.0  # no zone was said


def test_only_words_tell_the_goal(task: Tabletop) -> None:
    """Equal scenes with other instructions give the actor equal images and proprioception."""
    first, second = task.make_data(), task.make_data()
    one, other = task.reset_with(first, 9, PUSH), task.reset_with(second, 9, LIFT)
    task.place_markers(first, one)
    task.place_markers(second, other)
    np.testing.assert_array_equal(first.geom_xpos, second.geom_xpos)
    np.testing.assert_array_equal(first.site_xpos, second.site_xpos)
    np.testing.assert_array_equal(task.proprio(first), task.proprio(second))


@pytest.mark.render
def test_images(task: Tabletop, data: mujoco.MjData) -> None:
    """Every block and zone shows in both fixed views when an episode begins."""
    from sim.render import CameraRenderer

    renderer = CameraRenderer(task.model, ("front", "side"), 96)
    for seed in range(5):
        task.reset(data, seed)
        for view in renderer.images(data).values():
            for name in (*BLOCKS, *ZONES):
                red, green, blue = task.model.geom(name).rgba[:3] > 0.35
                bright = view.astype(int) > 90
                alike = (bright == np.array([red, green, blue])).all(axis=-1)
                assert alike.sum() >= 25, (seed, name)
    renderer.close()
