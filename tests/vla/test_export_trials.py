"""What an export is compared on: frames of a data set, initial states of a task, or chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_folder import made_up_episode, write_folder
from vla_runtime.contract import ActionChunk, ContractMismatchError, Observation, RobotSpec

from scripts.export_trials import Trials
from sim.tasks.registry import make_task
from vla.deploy.parity import ParityError

SPEC = make_task("FetchReach", 16).spec


class Steady:
    """Commands the same value for ever; its memory counts decisions."""

    chunk_length = 5

    def __init__(self, value: float, spec: RobotSpec = SPEC):
        self._value, self.spec = value, spec

    def initial_state(self) -> object:
        """No decision."""
        return 0

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """A chunk of that value."""
        observation.validate(self.spec)
        assert isinstance(state, int)
        return ActionChunk(np.full((5, self.spec.action.dim), self._value, np.float32)), state + 1


def test_frames_of_a_data_set(tmp_path: Path) -> None:
    """Each is one that was recorded, image and words and numbers; no more than there are."""
    task = write_folder(tmp_path / "data", [5, 4])
    episodes = [made_up_episode(task, seed, length) for seed, length in ((0, 5), (1, 4))]
    proprio = np.concatenate([episode["proprio"] for episode in episodes])
    camera = task.spec.cameras[0].name
    images = np.concatenate([episode[f"image.{camera}"] for episode in episodes])
    seen, origin = Trials(Path("clone"), task.spec, tmp_path / "data", None, 3, 1).observe()
    assert len(seen) == 3
    assert "--data" in origin
    for observation in seen:
        (row,) = np.flatnonzero((proprio == observation.proprio).all(axis=1))
        np.testing.assert_array_equal(observation.images[camera], images[row])
        assert observation.instruction == f"do thing {int(row >= 5)}"
    everything, _ = Trials(Path("clone"), task.spec, tmp_path / "data", None, 99, 1).observe()
    assert len(everything) == 9


def test_data_of_another_robot_are_refused(tmp_path: Path) -> None:
    """Before anything is exported; a policy may look at fewer cameras than were recorded."""
    task = write_folder(tmp_path / "data", [4])
    other = replace(task.spec, control_rate_hz=10.0)
    with pytest.raises(ContractMismatchError, match=r"control_rate_hz: 10\.0 != 25\.0"):
        Trials(Path("clone"), other, tmp_path / "data", None, 3, 1).observe()
    blind = replace(task.spec, cameras=task.spec.cameras[:1])
    seen, _ = Trials(Path("clone"), blind, tmp_path / "data", None, 2, 1).observe()
    assert list(seen[0].images) == [task.spec.cameras[0].name]


def test_without_data_or_task_there_is_chance() -> None:
    """Numbers lie within the bounds, by default the contract's, and nothing is played."""
    trials = Trials(Path("clone"), SPEC, None, None, 20, 1)
    low, high = np.full(SPEC.proprio.dim, 2.0), np.full(SPEC.proprio.dim, 3.0)
    seen, origin = trials.observe((low.tolist(), high.tolist()))
    proprio = np.array([observation.proprio for observation in seen])
    assert ((proprio >= 2) & (proprio <= 3)).all()
    assert "random" in origin
    trials.observe()[0][0].validate(SPEC)
    assert trials.shadow(Steady(0.0), Steady(0.0)) == "not played: no simulated task was named"


@pytest.mark.render
def test_a_task_gives_states_and_episodes() -> None:
    """Initial states differ; every decision of the episodes is compared."""
    trials = Trials(Path("clone"), SPEC, None, "FetchReach", 2, 2)
    seen, origin = trials.observe()
    assert origin == "initial states of FetchReach"
    assert not np.array_equal(seen[0].images["front"], seen[1].images["front"])
    found = trials.shadow(Steady(0.1), Steady(0.1 + 5e-5))
    assert isinstance(found, dict)
    assert found["episodes"] == 2
    assert found["decisions"] == 2 * make_task("FetchReach").episode_length // 5
    assert max(found["largest_difference"].values()) == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(ParityError, match="closed loop: at decision 1 "):
        trials.shadow(Steady(0.1), Steady(0.1 + 2e-4))


def test_a_task_of_another_robot_is_refused() -> None:
    """Also where observations come from elsewhere."""
    other = replace(SPEC, control_rate_hz=10.0)
    with pytest.raises(ContractMismatchError, match="task FetchReach"):
        Trials(Path("clone"), other, None, "FetchReach", 1, 1).observe()
