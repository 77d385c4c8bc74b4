"""`vla doctor --task`: sound tasks pass, and each kind of fault is named with its mend."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from line_task import Line, LineTask, changed

from scripts import cli, doctor_task
from scripts.doctor import Check
from sim.tasks.base import Task, TaskDeclarationError


def faults(monkeypatch: pytest.MonkeyPatch, task: type[LineTask]) -> dict[str, Check]:
    """Subject → check, of those that found something."""
    monkeypatch.setattr(doctor_task, "make_task", lambda name, size: task(size))
    return {check.subject: check for check in doctor_task.check_task("Line") if check.fix}


def test_a_sound_task_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """And its contract is printed; the task is found by where its class stands."""
    assert cli.main(["doctor", "--task", "line_task:LineTask"]) == 0
    said = capsys.readouterr().out
    assert "1: dx -0.1 to 0.1 (m)" in said
    assert "the expert reaches it in 10 of 10 episodes" in said
    assert "FAIL" not in said
    assert said.endswith("ready\n")


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"make_env": lambda self: Line(leak=True)}, "seeding", "nothing kept from the episode"),
        ({"is_success": lambda self, data, episode: False}, "success", "mend expert_action"),
        ({"is_success": lambda *_: True}, "success at the start", "other initial states"),
        ({"expert_action": lambda *_: np.zeros(1, np.float32)}, "success", "mend expert_action"),
        ({"expert_action": lambda *_: np.full(1, np.nan)}, "success", "mend expert_action"),
    ],
)
def test_each_fault_is_named(
    changes: dict[str, Any], subject: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what mends it."""
    found = faults(monkeypatch, changed(**changes))
    assert words in found[subject].fix


def test_images_that_show_nothing_or_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two faults of a camera."""

    class Blind(Line):
        def render(self) -> np.ndarray:
            return np.full((20, 20, 3), 7, np.uint8)

    found = faults(monkeypatch, changed(make_env=lambda self: Blind()))
    assert "one colour" in found["camera rendered"].fix
    assert "point a camera at the robot" in found["cameras"].fix


def test_equal_initial_states_and_numbers_that_are_not_finite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fixed start is a warning; a NaN at the edge of the actions is a fault."""

    class Fixed(Line):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.x = 0.0
            return self._seen(), {}

        def step(self, action: np.ndarray) -> Any:
            outcome = super().step(action)
            self.x = self.x if abs(self.x) < 0.5 else float("nan")
            return self._seen(), *outcome[1:]

    found = faults(monkeypatch, changed(make_env=lambda self: Fixed()))
    assert not found["initial states"].essential
    assert "['x', 'robot_x_0']" in found["limits"].finding


def test_success_that_is_nowhere_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys that there are."""
    with pytest.raises(TaskDeclarationError, match=r"has \['success'\]; set success_key"):
        faults(monkeypatch, changed(success_key="solved"))


def test_an_episode_that_ends_early_is_found_without_an_expert(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At its twentieth step, where the other checks have long ended."""
    limited = {"make_env": lambda self: gymnasium.wrappers.TimeLimit(Line(), 20)}
    with pytest.raises(TaskDeclarationError, match="after 20 steps, but episode_length is 30"):
        faults(monkeypatch, changed(**limited, expert_action=Task.expert_action))


def test_a_task_without_an_expert_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can still be learned from demonstrations."""
    found = faults(monkeypatch, changed(expert_action=Task.expert_action))
    assert not found["success"].essential
    assert "nobody knows whether it can be reached" in found["success"].finding
