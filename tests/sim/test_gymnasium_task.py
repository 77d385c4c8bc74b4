"""A gymnasium environment as a task: what a declaration makes of it, and what it is refused for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from line_task import Line, LineTask, Reacher, changed

from sim.demonstrate import RecordConfig, play
from sim.scenes import ScenesConfig, make_scenes
from sim.tasks.base import TaskDeclarationError
from sim.tasks.gymnasium_task import RENDERED, GymnasiumTask, Part, whole_observation
from sim.tasks.registry import TaskChoice, find_task, make_task, member_names, short_name
from sim.vector import CpuVecEnv
from vla.contract import GoalSpec

LINE = "line_task:LineTask"


class Saying(Line):
    """Its `info` is what it is given."""

    def __init__(self, info: dict[str, Any]):
        super().__init__()
        self._info = info

    def step(self, action: np.ndarray) -> Any:
        """Move, and say so."""
        return *super().step(action)[:4], self._info


class Telling(Line):
    """Its observation has one entry more."""

    def __init__(self, mission: Any):
        super().__init__()
        self._mission = mission

    def _seen(self) -> Any:
        return {**super()._seen(), "mission": self._mission}


def test_the_contract_is_what_was_declared() -> None:
    """Names, units and limits; critics see the whole observation by default."""
    task = LineTask(24)
    assert task.spec.action.names == ("dx",)
    np.testing.assert_allclose((*task.spec.action.low, *task.spec.action.high), (-0.1, 0.1))
    assert task.spec.proprio.names == ("x",)
    assert [(c.name, c.width) for c in task.spec.cameras] == [(RENDERED, 24)]
    assert task.spec.control_rate_hz == 20
    assert task.privileged_names == ("robot_x_0", "goal_0")


def test_it_is_a_vector_environment() -> None:
    """In worker processes that know the task by where its class stands; the images are its own."""
    with CpuVecEnv(f"{LINE}@12", 3, 2, image_size=20) as env:
        assert env.episode_length == 12
        env.reset(range(3), [0, 1, 2])
        first, privileged = env.observe()
        assert first.instructions == ["go to the goal"] * 3
        torch.testing.assert_close(first.proprio[:, 0], privileged[:, 0])
        image = first.images[RENDERED]
        assert image.shape == (3, 20, 20, 3)
        # The middle of the wide image, so the column is still white.
        assert (image.amax((1, 2, 3)) > 100).all()
        for _ in range(12):
            batch = env.step(env.expert_actions()[:, None])
        assert batch.success.all()
        assert batch.truncated.all()
        assert not batch.terminated.any()
        assert (batch.observation.images[RENDERED] != image).any()


def test_an_end_inside_the_task_ends_the_episode() -> None:
    """Within a chunk; then nothing is executed until the reset."""
    with CpuVecEnv(LINE, 2, 1, render=False) as env:
        env.reset([0, 1], [0, 1])
        chunk = torch.stack([torch.full((25, 1), 0.1), torch.zeros(25, 1)])
        batch = env.step(chunk)
        assert batch.terminated.tolist() == [True, False]
        assert not batch.truncated.any()
        executed = int(batch.valid[0].sum())
        assert 5 < executed < 15
        assert batch.valid[0, :executed].all()
        assert batch.observation.proprio[0, 0] > 1
        again = env.step(chunk)
        assert not again.valid[0].any()
        assert again.terminated.tolist() == [True, False]
        assert again.truncated.tolist() == [False, True]
        env.reset([0], [0])
        assert env.step(chunk[:, :1]).valid.tolist() == [[True], [False]]


PIXELS = (Part(("x",), ("m",)),)


class Looking(Line):
    """It shows an image, and says nothing else."""

    def _seen(self) -> Any:
        return self.render()


class Closing(Line):
    """Its file says that it was closed; the first one of a folder fails at it."""

    folder = Path()

    def close(self) -> None:
        """Let go of what would outlive the process."""
        path = self.folder / f"{id(self)}"
        path.touch()
        if len([*self.folder.iterdir()]) == 1:
            raise OSError("no such process")


class ClosingTask(LineTask):
    """For worker processes, which are told the folder by the environment."""

    def make_env(self) -> gymnasium.Env:
        """In the folder of the test."""
        Closing.folder = Path(os.environ["CLOSING"])
        return Closing()


def test_environments_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have processes of their own; each one is, also after one that fails."""
    monkeypatch.setenv("CLOSING", str(tmp_path))
    with CpuVecEnv("test_gymnasium_task:ClosingTask", 3, 1, render=False) as env:
        env.reset(range(3), [0, 1, 2])
        assert not [*tmp_path.iterdir()]
    assert len([*tmp_path.iterdir()]) == 3


def test_each_demonstration_closes_what_it_has_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One environment an episode, closed before the next one is made."""
    monkeypatch.setenv("CLOSING", str(tmp_path))
    (tmp_path / "earlier").touch()
    task = ClosingTask(16)
    for seed in range(3):
        renderer = task.make_renderer([RENDERED], 16)
        assert play(task, renderer, seed, RecordConfig(("Line",), noise=0.0)) is not None
        closed = len([*tmp_path.iterdir()]) - 1
        assert 1 <= closed <= seed + 1  # by identity, which may be that of one before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success_key": "done"}, r"success is not in info\['done'\], which has \['success'\]"),
        ({"make_env": lambda self: Line(np.inf)}, r"\['dx'\] have no limits.*action_limits"),
        ({"action_names": ("dx", "dy")}, "2 action_names, 1 action_units and 1 action_limits for"),
        ({"camera_list": ("front",)}, "no camera 'front', since the environment has no MuJoCo"),
        ({"proprio_parts": (Part(("x",), ("m",), "arm"),)}, r"key 'arm'.*\['robot/x', 'goal'\]"),
        ({"proprio_parts": (Part(("x", "y"), ("m", "m"), "goal"),)}, "2 numbers.*which has 1"),
        ({"make_env": lambda self: Line(np.finfo(np.float32).max)}, r"\['dx'\] have no limits"),
        ({"make_env": lambda self: Line(0.0)}, r"\['dx'\] have a low limit that is not below"),
        ({"camera_list": RENDERED}, "camera_list is 'rendered', not a tuple.*comma"),
        ({"camera_list": (RENDERED, RENDERED)}, r"two of cameras have one name: \['rendered'\]"),
        ({"proprio_parts": ()}, "proprio_parts are none"),
        ({"proprio_parts": Part(("x",), ("m",))}, "proprio_parts is .*, not a tuple"),
        ({"proprio_parts": (Part(("x",), ("m",)),)}, r"key '' .*\['robot/x', 'goal'\]"),
        ({"templates": {"train": ("go",)}}, "no instruction for heldout"),
        ({"templates": {"train": "go", "heldout": ("on",)}}, r"templates\['train'\] is 'go', not"),
        ({"templates": {"train": ("go", " "), "heldout": ("on",)}}, "template of train is no text"),
        ({"episode_length": 0}, "episode_length is 0"),
        ({"control_rate_hz": -5.0}, "control_rate_hz is -5.0"),
        ({"grip_actions": ("hand",)}, r"grip_actions names \['hand'\].*it has \['dx'\]"),
        ({"goals": GoalSpec(("x",), ("goal_0",), 0.1)}, r"goals names \['x'\].*'robot_x_0'"),
        ({"make_env": lambda self: Saying({"success": None})}, "is None, which says neither"),
        ({"make_env": lambda self: Saying({"success": np.nan})}, "is nan, which says neither"),
        ({"make_env": lambda self: Saying({"success": 0.5})}, "is 0.5, which says neither"),
        ({"action_limits": (-1.0, 1.0)}, r"action_limits are \(-1.0, 1.0\); every dimension"),
        ({"make_env": lambda self: Saying({"success": "False"})}, "is 'False', which says neither"),
        ({"make_env": lambda self: Saying({"success": np.zeros(0)})}, "says neither yes nor no"),
        ({"make_env": lambda self: Telling("go left")}, "name mission, which holds 'go left' and"),
        ({"words": lambda *_: "go left"}, "words is 'go left', not a tuple"),
        ({"make_env": lambda self: Looking(), "proprio_parts": PIXELS}, "images alone; define"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_mend(
    changes: dict[str, Any], message: str
) -> None:
    """Before anything is recorded; success as soon as it is asked for."""

    def play() -> None:
        task = TaskChoice("Line", changed(**changes)).make(16)
        data = task.make_data()
        episode = task.reset(data, 0)
        task.step(data, episode, np.zeros(1, np.float32))
        task.is_success(data, episode)

    with pytest.raises(TaskDeclarationError, match=message):
        play()


def test_what_is_not_declared_is_named() -> None:
    """All of it at once."""

    class Nothing(GymnasiumTask):
        name = "Nothing"
        env_id = "Reacher-v5"

    with pytest.raises(
        TaskDeclarationError, match=r"robot.*templates.*action_names.*proprio_parts"
    ):
        Nothing()


def test_an_environment_that_gymnasium_does_not_know_is_named() -> None:
    """With how an id of a package is written."""
    kind = type("Typo", (Reacher,), {"env_id": "Reecher-v5"})
    with pytest.raises(TaskDeclarationError, match=r"cannot make 'Reecher-v5'.*module:Id"):
        kind(16)


def test_a_discrete_action_space_is_refused() -> None:
    """A policy's actions are numbers."""

    class Buttons(Line):
        def __init__(self):
            super().__init__()
            self.action_space = gymnasium.spaces.Discrete(3)

    with pytest.raises(TaskDeclarationError, match="wrap the environment so that it takes a Box"):
        changed(make_env=lambda self: Buttons())(16)


def test_success_may_be_any_kind_of_number() -> None:
    """One flag, or one of each thing, all of which have to hold."""
    for said, expected in (
        (np.bool_(True), True),
        (0.0, False),
        (np.array([True, False]), False),
        (np.array([1]), True),
    ):
        task = changed(make_env=lambda self, said=said: Saying({"success": said}))(16)
        data = task.make_data()
        episode = task.reset(data, 0)
        assert not task.is_success(data, episode)
        task.step(data, episode, np.zeros(1, np.float32))
        assert task.is_success(data, episode) is expected


def test_whole_numbers_are_commanded_rounded() -> None:
    """A cast would cut 2.6 to 2, and -0.9 to 0."""
    taken = []

    class Steps(Line):
        def __init__(self):
            super().__init__()
            self.action_space = gymnasium.spaces.Box(-3, 3, (1,), np.int64)

        def step(self, action: np.ndarray) -> Any:
            taken.append(action)
            return super().step(action)

    task = changed(make_env=lambda self: Steps())(16)
    data = task.make_data()
    episode = task.reset(data, 0)
    for wanted in (2.6, -0.9, 9.0):
        task.step(data, episode, np.array([wanted], np.float32))
    assert [a.tolist() for a in taken] == [[3], [-1], [3]]
    assert taken[0].dtype == np.int64


class Bare(gymnasium.Env):
    """Nobody can ask it for images; `gravity` is its one argument."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "render_fps": 10}

    def __init__(self, gravity: float = 1.0):
        self.gravity = gravity

    def reset(self, *, seed=None, options=None):
        """At rest."""
        return np.zeros(1), {}


def test_an_environment_is_asked_for_images_only_where_they_are_its_own() -> None:
    """And what is declared for it counts, also what would be given by default."""
    gymnasium.register("Bare-v0", Bare)
    declared = {"make_env": GymnasiumTask.make_env, "env_id": "Bare-v0", "camera_list": ()}
    declared |= {"proprio_parts": (Part(("x",), ("m",)),)}
    given = {"gravity": 2.0, "max_episode_steps": 7}
    env = changed(**declared, env_arguments=given)(16).make_data().env
    assert env.unwrapped.gravity == 2.0
    assert env.spec.max_episode_steps == 7
    said = {"env_id": "Pendulum-v1", "env_arguments": {"render_mode": "rgb_array"}}
    assert changed(**declared | said)(16).make_data().env.render_mode == "rgb_array"
    with pytest.raises(TaskDeclarationError, match=r"cannot make 'Bare-v0'.*'render_mode'"):
        changed(**declared | {"camera_list": (RENDERED,)})(16)
    with pytest.raises(TaskDeclarationError, match=r"cannot make 'Bare-v0'.*'wind'"):
        changed(**declared, env_arguments={"wind": 1})(16)


def test_a_model_without_data_is_not_taken_for_mujoco() -> None:
    """Another library may keep its state elsewhere."""

    class Half(Line):
        model = mujoco.MjModel.from_xml_string("<mujoco/>")

    task = changed(make_env=lambda self: Half())(16)
    data = task.make_data()
    assert not data.has_mujoco
    task.reset(data, 0)


def test_a_shorter_time_limit_of_the_environment_is_refused() -> None:
    """It would end episodes that learners take for unfinished."""
    limited = changed(make_env=lambda self: gymnasium.wrappers.TimeLimit(Line(), 5))
    task = limited(16)
    data = task.make_data()
    episode = task.reset(data, 0)
    for _ in range(4):
        task.step(data, episode, np.zeros(1, np.float32))
    with pytest.raises(TaskDeclarationError, match="after 5 steps, but episode_length is 30"):
        task.step(data, episode, np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.tasks:Mine", "no module 'nowhere'; install its package, or call the command"),
        ("line_task:Line", r"line_task.py\) is no class derived from sim.tasks.base.Task"),
        (":LineTask", "'' is no module's name; a task of yours"),
        (".line_task:LineTask", "'.line_task' is no module's name"),
        ("line_task:Nothing", "no class derived"),
        ("sim.tasks.base:Task", "the class lacks .*is_success"),
        ("FetchPush@soon", "the number of control steps, as in @100"),
        ("FetchPush@0", "the number of control steps"),
        ("FetchPush/left", "valid names: FetchPush"),
        ("MetaWorld/juggle", "MetaWorld/MT10"),
        ("MetaWorld", "MetaWorld/MT10"),
        ("FetchNothing", "valid names:.*MetaWorld/.*my_package.my_task:MyTask"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_is_valid(name: str, message: str) -> None:
    """Modules, classes, variants and lengths."""
    with pytest.raises(ValueError, match=message):
        find_task(name)


def test_names_of_suites_lengths_and_folders() -> None:
    """A suite stands for its tasks, each with the length that was asked for."""
    assert member_names("FetchPush@20") == ("FetchPush@20",)
    assert member_names("MetaWorld/ML45-test@100")[0] == "MetaWorld/bin-picking@100"
    assert len(member_names("MetaWorld/MT50")) == 50
    assert short_name("my_package.my_task:MyTask@20") == "MyTask@20"
    assert make_task("FetchReach@20").episode_length == 20
    assert find_task("FetchReach") == TaskChoice("FetchReach", find_task("FetchReach").task)


def test_every_number_of_an_observation_has_a_name() -> None:
    """Nested dictionaries, arrays of any shape, and plain arrays."""
    parts = whole_observation({"a": {"b": np.zeros((2, 2))}, "c": np.zeros(1)})
    names = [name for part in parts for name in part.names]
    assert names == ["a_b_0", "a_b_1", "a_b_2", "a_b_3", "c_0"]
    assert whole_observation(np.zeros(2))[0].names == ("observation_0", "observation_1")
    # Keys with a slash of their own, as dm_control's are; and tuples.
    # Images are left out: cameras show the same.
    seen = {"pixels": np.zeros((4, 4, 3), np.uint8), "poses": np.zeros((2, 1, 3))}
    assert [part.key for part in whole_observation(seen)] == ["poses"]
    slashed = {"arm/x": np.arange(2.0), "deep": ({"arm/x": 7}, np.zeros(1))}
    parts = whole_observation(slashed)
    assert [part.key for part in parts] == ["arm/x", "deep/0/arm/x", "deep/1"]
    assert [part.read(slashed).tolist() for part in parts] == [[0, 1], [7], [0]]


def test_cameras_that_the_model_lacks_are_refused_with_those_it_has() -> None:
    """Of a MuJoCo environment."""

    class Wrong(Reacher):
        camera_list = (*Reacher.camera_list, "front")

    with pytest.raises(TaskDeclarationError, match=r"no camera 'front'; it has \[.*view="):
        Wrong()


@pytest.mark.render
def test_the_environments_own_images_and_ours_do_not_disturb_each_other() -> None:
    """Both libraries have a GL context in one process."""

    class Both(Reacher):
        camera_list = (*Reacher.camera_list, RENDERED)

    task = Both(48)
    data = task.make_data()
    episode = task.reset(data, 0)
    # Before we draw the same model in another size, without shadows.
    theirs = data.env.render()
    alone, both = (task.make_renderer(names, 48) for names in (["top"], ["top", RENDERED]))
    other = task.make_data()
    task.reset(other, 0)
    first = both.images(data)[RENDERED]
    assert first.std() > 5
    # 480 pixels, cut and scaled: each 10 x 10 of theirs is one of ours.
    blocks = theirs.reshape(480, -1, 3)[:, :480].reshape(48, 10, 48, 10, 3).mean((1, 3))
    assert np.abs(first - blocks).max() <= 1
    np.testing.assert_array_equal(both.images(other)[RENDERED], first)
    np.testing.assert_array_equal(both.images(data)[RENDERED], first)
    for _ in range(3):
        task.step(data, episode, np.ones(2, np.float32))
        images = both.images(data)
        np.testing.assert_array_equal(alone.images(data)["top"], images["top"])
        assert images[RENDERED].std() > 5
    alone.close()
    both.close()


@pytest.mark.render
def test_a_mujoco_environment_with_points_is_grounded(tmp_path: Path) -> None:
    """What its words name lies in the images where its points are projected."""
    config = ScenesConfig(("line_task:Reacher",), 20, tmp_path, image_size=64, workers=1)
    [scenes] = make_scenes(config)
    assert (tmp_path / "Reacher" / "scenes.json").is_file()
    for image, points in zip(scenes.images[:, 0], scenes.image_points[:, :, 0], strict=True):
        red, green, blue = np.moveaxis(image.astype(int), -1, 0)
        ys, xs = np.nonzero((red > 2 * green) & (red > 2 * blue))
        x, y = points[scenes.phrases.index("target")]
        if len(xs) > 5:  # not under the arm
            away = np.abs([xs.mean() + 0.5 - 32 * (x + 1), ys.mean() + 0.5 - 32 * (y + 1)])
            assert away.max() < 2
    with pytest.raises(TaskDeclarationError, match="LineTask cannot be grounded: define points"):
        make_scenes(ScenesConfig((LINE,), 10, tmp_path, workers=1))
