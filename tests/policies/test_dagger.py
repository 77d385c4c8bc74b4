"""DAgger's mixture and what it records, and the drift that it is against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from point_env import STEP_M, PointVecEnv
from torch import Tensor

from policies.evaluation.baselines import ExpertPolicy
from policies.evaluation.drift import measure_drift, nearest_distance
from policies.imitation.dagger import Mixture, play_labelled
from policies.rollout import rollout
from vla.contract import ObservationBatch, Policy, StepBatch

SPEC = PointVecEnv.spec


class Counting:
    """A learner in chunks of three that counts its decisions: 0.1, 0.2, 0.3, then 0.2, 0.3, 0.4."""

    spec = SPEC

    def __init__(self) -> None:
        self.decisions = 0

    def reset(self, indices: Sequence[int]) -> None:
        """A new episode."""
        self.decisions = 0

    def act(self, observation: ObservationBatch) -> Tensor:
        """One row at a time."""
        assert len(observation) == 1
        self.decisions += 1
        return (torch.arange(3.0) / 10 + self.decisions / 10)[None, :, None]


def mixture(env: PointVecEnv, beta: float, seed: int = 0) -> Mixture:
    """Of the point's expert and the learner above."""
    return Mixture(Counting, ExpertPolicy(env.expert_actions, SPEC), SPEC, beta, seed)


def test_the_learner_plays_its_chunks_and_the_teacher_labels_every_step() -> None:
    """Labels are the expert's at the state before each step, also where it did not act."""
    env = PointVecEnv(2, episode_length=5)
    for episode, seed in zip(
        play_labelled(env, mixture(env, 0.0), [7, 8, 9]), [7, 8, 9], strict=True
    ):
        start, goal = np.random.default_rng(seed).uniform(-0.8, 0.8, size=2)
        assert episode["executed"][:, 0] == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.3])
        visited = start + STEP_M * np.cumsum([0.0, 0.1, 0.2, 0.3, 0.2])
        assert episode["proprio"][:, 0] == pytest.approx(visited, abs=1e-5)
        assert episode["privileged"] == pytest.approx(
            np.stack([visited, np.full(5, goal)], 1), abs=1e-5
        )
        labels = np.clip((goal - visited) / STEP_M, -1, 1)
        assert episode["action"][:, 0] == pytest.approx(labels, abs=1e-4)
        reached = visited + STEP_M * episode["executed"][:, 0]
        assert episode["success"].tolist() == (abs(reached - goal) < STEP_M).tolist()
        assert episode["image.top"].shape == (5, 2, 2, 3)
        assert str(episode["instruction"]) == f"go to {goal:.2f}"


def test_a_mixture_is_drawn_a_chunk_at_a_time() -> None:
    """With one it is the teacher; between, whole chunks are either's, about as often as told."""
    env = PointVecEnv(2, episode_length=6)
    for episode in play_labelled(env, mixture(env, 1.0), [1, 2]):
        assert np.array_equal(episode["executed"], episode["action"])
    env = PointVecEnv(10, episode_length=6)
    taught = []
    for episode in play_labelled(env, mixture(env, 0.3), range(100)):
        # The learner counts also where the teacher acted in its place.
        learner = np.array([0.1, 0.2, 0.3, 0.2, 0.3, 0.4])
        own = np.isclose(episode["executed"][:, 0], learner).reshape(2, 3)
        labelled = np.isclose(episode["executed"], episode["action"])[:, 0].reshape(2, 3)
        assert (own.all(1) | labelled.all(1)).all()
        taught += (~own.all(1)).tolist()
    assert np.mean(taught) == pytest.approx(0.3, abs=0.08)


def test_draws_belong_to_the_episode() -> None:
    """Whichever row plays it, the same chunks are the teacher's."""
    played = []
    for num_envs in (1, 3):
        env = PointVecEnv(num_envs, episode_length=6)
        played.append(play_labelled(env, mixture(env, 0.5), [1, 2, 3]))
    for one, other in zip(*played, strict=True):
        assert np.array_equal(one["executed"], other["executed"])
    env = PointVecEnv(3, episode_length=6)
    others = play_labelled(env, mixture(env, 0.5, seed=1), [1, 2, 3])
    assert any(
        not np.array_equal(a["executed"], b["executed"])
        for a, b in zip(others, played[0], strict=True)
    )


class Nearest:
    """The label of the nearest state that was shown, in chunks of one."""

    spec = SPEC

    def __init__(self, env: PointVecEnv, states: np.ndarray, labels: np.ndarray):
        self._env, self._states, self._labels = env, states, labels

    def reset(self, indices: Sequence[int]) -> None:
        """Nothing to forget."""

    def act(self, observation: ObservationBatch) -> Tensor:
        """From the environment's state; the row that is asked for is found by its position."""
        states = self._env.observe()[1].numpy()
        rows = [int(np.argmin(abs(states[:, 0] - float(x)))) for x in observation.proprio[:, 0]]
        gaps = np.linalg.norm(self._states[None] - states[rows, None], axis=2)  # [n, shown]
        return torch.from_numpy(self._labels[gaps.argmin(1)].astype(np.float32))[:, None, None]


def error_of(policy: Policy, env: PointVecEnv, seeds: Sequence[int]) -> float:
    """Mean distance from the goal at the end."""
    rollout(env, policy, seeds)
    state = env.observe()[1]
    return float((state[:, 0] - state[:, 1]).abs().mean())


def test_aggregating_mends_a_learner_that_errs_where_nothing_was_shown() -> None:
    """Shown one side of the goal alone, it runs away on the other; three rounds mend it.

    The expert brings every start within a millimetre of its goal: the known optimum.
    """
    env = PointVecEnv(12, episode_length=17)  # long enough for every start
    seeds = range(12)
    expert = ExpertPolicy(env.expert_actions, SPEC)
    assert error_of(expert, env, seeds) < 1e-3
    rng = np.random.default_rng(0)
    states = rng.uniform(-0.8, 0.8, (300, 2))
    states = states[states[:, 0] > states[:, 1]]
    labels = np.clip((states[:, 1] - states[:, 0]) / STEP_M, -1, 1)
    demonstrated = torch.from_numpy(states.astype(np.float32))
    learner: Policy = Nearest(env, states, labels)
    before = error_of(learner, env, seeds)
    far = measure_drift(env, learner, seeds, demonstrated).distance[-1]
    for number in range(3):
        mixture = Mixture(lambda p=learner: p, expert, SPEC, 0.0, number)
        played = play_labelled(env, mixture, range(100, 200))
        states = np.concatenate([states, *(episode["privileged"] for episode in played)])
        labels = np.concatenate([labels, *(episode["action"][:, 0] for episode in played)])
        learner = Nearest(env, states, labels)
    after = error_of(learner, env, seeds)
    assert before > 0.3
    assert after < 0.2 * before
    assert measure_drift(env, learner, seeds, demonstrated).distance[-1] < 0.5 * far


def test_distances_by_hand() -> None:
    """In standard deviations of the demonstrations, a constant dimension left out."""
    demonstrated = torch.tensor([[0.0, 5.0, 0.0], [2.0, 5.0, 0.0], [4.0, 5.0, 6.0]])
    std = demonstrated.std(0)  # 2, 0, 3.4641
    visited = torch.tensor([[2.0, 9.0, 0.0], [2.0, 5.0, 3.0], [8.0, 5.0, 6.0]])
    found = nearest_distance(visited, demonstrated)
    assert found.tolist() == pytest.approx(
        [0.0, 3.0 / float(std[2]) / 2**0.5, 4.0 / 2.0 / 2**0.5], abs=1e-5
    )


def test_drift_is_measured_by_the_steps_since_the_beginning() -> None:
    """Of the expert to a goal that it reaches; the first entry is the initial state."""
    env = PointVecEnv(2, episode_length=7)
    demonstrated = torch.tensor([[x / 10, g / 10] for x in range(-10, 11) for g in range(-8, 9)])
    expert = ExpertPolicy(env.expert_actions, SPEC)
    drift = measure_drift(env, expert, range(5), demonstrated)
    assert drift.steps == list(range(8))
    assert max(drift.distance) < 0.2
    assert drift.success[0] == 0
    assert drift.success == sorted(drift.success)
    # In chunks of three: after 3, 6 and 7 steps.
    chunks = measure_drift(env, _InChunks(), range(5), demonstrated)
    assert chunks.steps == [0, 3, 6, 7]
    assert chunks.distance[0] == pytest.approx(drift.distance[0], abs=1e-6)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), the environment's have 2 dimensions"):
        measure_drift(env, expert, range(5), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least two"):
        measure_drift(env, expert, range(5), torch.zeros(1, 2))


def test_an_episode_that_success_has_ended_still_counts() -> None:
    """Else the curve would show those alone that have failed so far, and fall."""
    env = _EndsAtItsGoal(2, episode_length=20)
    expert = ExpertPolicy(env.expert_actions, SPEC)
    drift = measure_drift(env, expert, range(5), torch.rand(20, 2))
    assert drift.success[0] == 0
    assert drift.success == sorted(drift.success)
    assert drift.success[-1] == 1


class _EndsAtItsGoal(PointVecEnv):
    def step(self, chunks: Tensor) -> StepBatch:
        """Reaching the goal terminates."""
        step = super().step(chunks)
        reached = step.success.any(1)
        self._ended |= reached.numpy()
        return replace(
            step, terminated=step.terminated | reached, truncated=step.truncated & ~reached
        )


class _InChunks(Counting):
    def act(self, observation: ObservationBatch) -> Tensor:
        """Nothing, three steps long."""
        return torch.zeros(len(observation), 3, 1)
