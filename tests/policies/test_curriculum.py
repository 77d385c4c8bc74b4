"""Curricula: they find the frontier, resume exactly, and solve what uniform collection does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learners import files, make_trainer, same, weights
from lock_env import LENGTH, LockVecEnv, start_of, turns_left
from point_env import PointVecEnv
from torch import Tensor

from policies.checkpoints import ResumeError
from policies.evaluation.habits.diagnosis import diagnose_folder
from policies.reinforcement.curriculum import (
    Frontier,
    FrontierConfig,
    ShrinkingGoal,
    ShrinkingGoalConfig,
)
from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.rollout import Episode, Episodes
from policies.run_folder import RunFolder

EPISODES = 64
SETTINGS = FrontierConfig(levels=4, uniform=0.0)


def played(success: Sequence[bool], seeds: Sequence[int] | None = None) -> Episodes:
    """Episodes of one step that ended so; by default with any seeds."""
    return Episodes(
        tuple(
            Episode(
                seed=seed,
                instruction="",
                actions=np.zeros((1, 1), np.float32),
                rewards=np.array([good], np.float32),
                success=np.array([good]),
                terminated=True,
                truncated=False,
            )
            for seed, good in zip(seeds or range(len(success)), success, strict=True)
        )
    )


def consecutive(iteration: int, count: int) -> range:
    """Candidates whose difficulty, below, is their number modulo 40."""
    return range(iteration * count, (iteration + 1) * count)


def frontier(config: FrontierConfig = SETTINGS, episodes: int = 40) -> Frontier:
    """Difficulties 0 to 39, equally frequent."""
    return Frontier(config, episodes, consecutive, lambda seed: float(seed % 40))


def level_of(seed: int) -> int:
    """Of the four levels of equal width of these difficulties."""
    return int((seed % 40) / 39 * 4 - 1e-9)


def play(curriculum: Frontier, iteration: int, solved: Sequence[float]) -> list[int]:
    """One iteration in which levels are solved with these chances; the levels it began at."""
    rng = np.random.default_rng(iteration)
    seeds = curriculum.seeds(iteration)
    levels = [level_of(seed) for seed in seeds]
    episodes = played([rng.random() < solved[level] for level in levels], seeds)
    curriculum.learn(episodes, np.zeros(len(levels)))
    return levels


def test_at_first_nothing_is_known_and_all_levels_are_tried() -> None:
    """Each about as often."""
    count = np.bincount([level_of(seed) for seed in frontier().seeds(0)], minlength=4)
    assert (count >= 4).all()


def test_episodes_begin_at_the_frontier() -> None:
    """Neither where all succeed nor where none does."""
    curriculum = frontier()
    begun = [play(curriculum, iteration, [1.0, 0.5, 0.0, 0.0]) for iteration in range(10)]
    share = np.bincount(np.concatenate(begun[4:]), minlength=4) / (6 * 40)
    assert share[1] > 0.5
    assert share[2] < 0.2
    assert share[3] < 0.2
    assert curriculum.success[0] > 0.8 > curriculum.success[1] > 0.25 > curriculum.success[2]


def test_the_frontier_moves_with_success() -> None:
    """What was hopeless is tried again once what comes before it is mastered."""
    curriculum = frontier(replace(SETTINGS, uniform=0.2))
    for iteration in range(6):
        play(curriculum, iteration, [1.0, 0.5, 0.0, 0.0])
    for iteration in range(6, 16):
        levels = play(curriculum, iteration, [1.0, 1.0, 0.5, 0.0])
    assert np.mean(np.array(levels) == 2) > 0.6


def test_a_share_begins_as_the_task_begins() -> None:
    """With `uniform` 1 all of them, in the order of the candidates."""
    assert frontier(replace(SETTINGS, uniform=1.0)).seeds(0) == list(range(40))


def test_rare_start_states_are_found_among_the_candidates() -> None:
    """One in 64 begins beyond the middle, a third of what is collected does."""
    curriculum = Frontier(
        FrontierConfig(levels=3, candidates=16),
        EPISODES,
        consecutive,
        lambda seed: 0.0 if seed % 64 == 7 else 1.0,
    )
    assert np.mean([seed % 64 == 7 for seed in curriculum.seeds(0)]) > 0.2


def test_groups_that_begin_alike_count_by_their_own_level() -> None:
    """A method that compares plays a part of the start states, each several times."""
    curriculum = frontier()
    easy = next(seed for seed in curriculum.seeds(0) if level_of(seed) == 0)
    curriculum.learn(played([True] * 40, [easy] * 40), np.zeros(40))
    assert curriculum.success[0] > 0.95
    assert curriculum.success[1:].tolist() == [0.5] * 3


def test_what_succeeds_and_does_not_stay_counts_half() -> None:
    """It has earned something, and can earn more, so it is neither hopeless nor mastered."""
    curriculum = frontier()
    seeds = [seed for seed in curriculum.seeds(0) if level_of(seed) == 0][:1] * 40
    (episode, *_) = played([True], seeds[:1]).episodes
    left = replace(
        episode,
        actions=np.zeros((2, 1), np.float32),
        rewards=np.array([1.0, 0.0], np.float32),
        success=np.array([True, False]),
    )
    curriculum.learn(Episodes((left,) * 40), np.zeros(40))
    assert curriculum.success[0] == 0.5


def test_what_is_known_is_part_of_the_state() -> None:
    """A restored one chooses the same, and goes on alike."""
    one, other = frontier(), frontier()
    for iteration in range(3):
        play(one, iteration, [1.0, 0.5, 0.0, 0.0])
    other.load_state_dict(one.state_dict())
    assert one.seeds(3) == other.seeds(3)
    assert np.array_equal(one.success, other.success)
    play(one, 3, [1.0] * 4)
    assert not np.array_equal(one.success, other.success)  # a copy, not a view


def test_a_radius_shrinks_by_success_to_the_tasks_own() -> None:
    """From dense to sparse; what lies on the way is paid within the radius alone."""
    config = ShrinkingGoalConfig(start_m=0.2, end_m=0.1, factor=0.6, solved=0.5)
    curriculum = ShrinkingGoal(config, lambda iteration: [iteration], lambda state: state[:, 0])
    few, many = np.array([1.0, 0, 0, 0]), np.array([1.0, 1, 0, 0])
    radii = []
    for returns in (few, many, few, many, many):
        curriculum.learn(played([True] * 4), returns)
        radii.append(curriculum.radius_m)
    assert radii == pytest.approx([0.2, 0.12, 0.12, 0.1, 0.1])
    again = ShrinkingGoal(config, lambda iteration: [iteration], lambda state: state[:, 0])
    again.load_state_dict(curriculum.state_dict())
    assert again.radius_m == curriculum.radius_m
    assert curriculum.seeds(3) == [3]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FrontierConfig, {"levels": 1}, "levels must be at least 2, got 1"),
        (FrontierConfig, {"uniform": 1.5}, "uniform must be at least 0 and at most 1, got 1.5"),
        (FrontierConfig, {"candidates": 0}, "candidates must be at least 1, got 0"),
        (ShrinkingGoalConfig, {"end_m": 0.3}, "end_m must be above 0 and at most 0.2, got 0.3"),
        (ShrinkingGoalConfig, {"factor": 1.0}, "factor must be above 0 and at most 0.99, got 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind: Any, settings: Any, message: str) -> None:
    """With the range."""
    with pytest.raises(ValueError, match=message):
        kind(**settings)


# In a run


def near_goal(state: Tensor) -> Tensor:
    """Distance of the point to its goal, [n]."""
    return (state[:, 0] - state[:, 1]).abs()


def lock_trainer(folder: Path, with_curriculum: bool, iterations: int) -> OnPolicyTrainer[Any]:
    """PPO on the lock: the same method and the same states, chosen or as they come."""
    env = LockVecEnv(EPISODES)
    torch.manual_seed(0)
    policy = StatePolicy(env, 1)
    config = OnPolicyConfig(
        iterations=iterations,
        episodes=EPISODES,
        critic_minibatch_size=EPISODES,
        critic_epochs=5,
        warmup_iterations=1,
        evaluate_every=iterations,
        log_std_start=-0.5,
        log_std_end=-0.5,
    )
    method = PPOConfig(learning_rate=1e-3, minibatch_size=EPISODES, epochs=5, target_kl=0.2)
    chosen = Frontier(
        FrontierConfig(levels=LENGTH, candidates=8), EPISODES, consecutive, turns_left
    )

    def seeds(iteration: int) -> range:
        return consecutive(iteration, EPISODES)

    curriculum = chosen if with_curriculum else None
    run = RunFolder(folder, config)
    return OnPolicyTrainer(policy, env, config, method, run, seeds, curriculum=curriculum)


def test_a_curriculum_solves_what_the_same_method_does_not_solve_without_it(
    tmp_path: Path,
) -> None:
    """A lock of twelve turns, from its start: always open with it, never without."""
    from_the_start = [seed for seed in range(10**6, 10**6 + 60) if start_of(seed) == 0]
    scores = {}
    for with_curriculum in (True, False):
        folder = tmp_path / str(with_curriculum)
        trainer = lock_trainer(folder, with_curriculum, iterations=24)
        trainer.run(from_the_start)
        scores[with_curriculum] = trainer.checkpoints.best_score
    assert scores == {True: 1.0, False: 0.0}
    (habit,) = [v for v in diagnose_folder(tmp_path / "True").verdicts if v.habit == "Curriculum"]
    assert habit.state == "green"
    assert "of the difficulties are mastered" in habit.reason
    (habit,) = [v for v in diagnose_folder(tmp_path / "False").verdicts if v.habit == "Curriculum"]
    assert habit.state == "red"
    assert "--curriculum frontier" in habit.advice


def resumable(folder: Path, iterations: int, curriculum: Any = None) -> OnPolicyTrainer[Any]:
    """A run on the point whose curriculum pays within a radius."""
    config = ShrinkingGoalConfig(start_m=1.0, solved=0.3)
    made = curriculum or ShrinkingGoal(config, lambda i: range(6 * i, 6 * i + 6), near_goal)
    env = PointVecEnv(3, episode_length=4)
    # The ceiling of exploration would depend on the run's length.
    return make_trainer(folder, env=env, iterations=iterations, curriculum=made, log_std_end=-1.2)


def test_a_resumed_run_goes_on_with_its_curriculum(tmp_path: Path) -> None:
    """Stopped after two of four iterations, it ends with the weights of one that was not."""
    whole = resumable(tmp_path / "whole", 4)
    whole.run([0, 1])
    resumable(tmp_path / "cut", 2).run([0, 1])
    cut = resumable(tmp_path / "cut", 4)
    cut.run([0, 1])
    logged = [
        [json.loads(line).get("curriculum/radius_m") for line in file.read_text().splitlines()]
        for file in (tmp_path / "whole/metrics.jsonl", tmp_path / "cut/metrics.jsonl")
    ]
    assert logged[0] == logged[1]
    assert logged[0][-1] < 1.0  # it has shrunk on the way
    assert same(weights(whole), weights(cut))


def test_a_run_is_not_resumed_with_another_curriculum(tmp_path: Path) -> None:
    """Nothing is written, and both are named."""
    resumable(tmp_path, 1).run([0, 1])
    before = files(tmp_path)
    other = Frontier(SETTINGS, 6, lambda i, n: range(n * i, n * i + n), float)
    with pytest.raises(ResumeError, match=r"curriculum\.levels: nothing in the run, 4 now"):
        resumable(tmp_path, 2, other).run([0, 1])
    assert files(tmp_path) == before
