"""One scripted demonstration, and what may be asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from line_task import LineTask, changed

from sim.demonstrate import RecordConfig, known_roles, play
from sim.tasks.base import TaskDeclarationError
from sim.tasks.registry import find_task, make_task


class NoCameras:
    """A renderer that renders nothing."""

    def images(self, data: object) -> dict[str, np.ndarray]:
        """No camera."""
        return {}


def play_blind(name: str, seed: int, **settings: Any) -> dict[str, np.ndarray] | None:
    """An episode without images."""
    config = RecordConfig(task=(name,), **settings)
    return play(make_task(name, 16), NoCameras(), seed, config)  # pyright: ignore[reportArgumentType]


def test_episode_ends_hold_steps_after_success_first_holds() -> None:
    """Staying is shown, but not for long."""
    episode = play_blind("FetchReach", 3, noisy_fraction=0.0, hold_steps=4)
    assert episode is not None
    first = int(episode["success"].argmax())
    assert episode["success"][first:].all()
    assert len(episode["success"]) == first + 1 + 4


def test_positions_are_those_of_what_the_words_name_at_every_frame() -> None:
    """Where a replay of the episode has them; a task without an object has it nowhere."""
    episode = play_blind("FetchPush", 3, noisy_fraction=0.0)
    assert episode is not None
    task = make_task("FetchPush", 16)
    data = task.make_data()
    state = task.reset(data, 3)
    for step, executed in enumerate(episode["executed"]):
        for name, position in task.points(data, state).items():
            recorded = episode[f"points.{name}"][step]
            np.testing.assert_array_equal(recorded, position.astype(np.float32))
        task.step(data, state, executed)
    reach = play_blind("FetchReach", 3)
    assert reach is not None
    assert np.isnan(reach["points.object"]).all()


def test_roles_are_those_that_any_of_the_tasks_has() -> None:
    """Blocks and zones that the words choose from are told by their role alone."""
    reach, table = make_task("FetchReach", 16), make_task("Tabletop", 16)
    assert known_roles([reach], 0) == ("gripper", "target")
    assert known_roles([reach, table], 0) == ("gripper", "object", "target")
    assert known_roles([LineTask(16)], 0) == ()


def test_label_is_clean_and_executed_is_noisy() -> None:
    """The noise moves the arm and not the label."""
    noisy = play_blind("FetchReach", 3, noisy_fraction=1.0, noise=0.2)
    clean = play_blind("FetchReach", 3, noisy_fraction=0.0, noise=0.2)
    assert noisy is not None
    assert clean is not None
    np.testing.assert_array_equal(clean["executed"], clean["action"])
    # the first state is the same, so is the expert's answer to it; then the noise leads elsewhere
    np.testing.assert_array_equal(noisy["action"][0], clean["action"][0])
    assert not np.array_equal(noisy["proprio"][1], clean["proprio"][1])
    disturbance = (noisy["executed"] - noisy["action"])[np.abs(noisy["action"]) < 0.3]
    assert 0.1 < disturbance.std() < 0.3


def test_noisy_label_is_the_expert_at_the_visited_state() -> None:
    """Replaying the executed actions meets the same labels."""
    episode = play_blind("FetchReach", 3, noisy_fraction=1.0, noise=0.2)
    assert episode is not None
    task = make_task("FetchReach", 16)
    data = task.make_data()
    state = task.reset(data, 3)
    for executed, label in zip(episode["executed"], episode["action"], strict=True):
        np.testing.assert_array_equal(task.expert_action(data, state).clip(-1, 1), label)
        task.step(data, state, executed)


def test_success_that_is_lost_again_is_kept_if_reaching_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The steps are counted from the first success; a task that never holds keeps nothing else."""
    task = find_task("FetchReach").task
    monkeypatch.setattr(task, "is_success", lambda self, data, episode: episode.steps == 5)
    assert play_blind("FetchReach", 3, hold_steps=4) is None
    kept = play_blind("FetchReach", 3, hold_steps=4, keep="reached")
    assert kept is not None
    assert kept["success"].tolist() == [False] * 4 + [True] + [False] * 4


def test_unsuccessful_episode_is_dropped() -> None:
    """Noise that no expert survives."""
    assert play_blind("FetchPush", 0, noisy_fraction=1.0, noise=50.0) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"expert_action": lambda *_: np.array([np.nan])}, r"expert_action is not finite in .'dx'"),
        ({"expert_action": lambda *_: np.zeros((1, 1))}, r"shape \(1, 1\).*has 1 numbers"),
        ({"expert_action": lambda *_: 0.0}, r"gives shape \(\)"),
        ({"proprio": lambda *_: np.array([np.inf])}, r"proprioception is not finite in .'x'"),
        ({"privileged": lambda *_: np.array([0.0, np.nan])}, r"privileged .* in .'goal_0'"),
    ],
)
def test_what_is_no_number_is_not_recorded(given: dict[str, Any], message: str) -> None:
    """Success or not: such an episode could not be trained on."""
    task = changed(**given, is_success=lambda *_: True)(16)
    with pytest.raises(TaskDeclarationError, match=message):
        play(task, NoCameras(), 0, RecordConfig(("Line",)))  # pyright: ignore[reportArgumentType]


def test_episode_is_a_function_of_its_seed() -> None:
    """Noise included."""
    first, second = (play_blind("FetchPush", 5, noisy_fraction=1.0) for _ in range(2))
    assert first is not None
    assert second is not None
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"task": ()}, "task needs"),
        ({"task": ("FetchPush", "FetchPush")}, "different names"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"noisy_fraction": 1.5}, "noisy_fraction must be at least 0 and at most 1"),
        ({"first_seed": 500_000}, "demonstrations range"),
        ({"first_seed": -1}, "first_seed must be at least 0"),
        ({"episodes": 60_000}, "fewer episodes"),
    ],
)
def test_refuses_settings(bad: dict[str, object], message: str) -> None:
    """Each message names what is wrong."""
    with pytest.raises(ValueError, match=message):
        RecordConfig(**({"task": ("FetchPush",)} | bad))  # pyright: ignore[reportArgumentType]
