"""The rollout: one episode per seed, whatever the number of environments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from point_env import STEP_M, PointVecEnv

from policies.evaluation.baselines import BlankImages, ExpertPolicy, RandomPolicy, ZeroPolicy
from policies.evaluation.evaluate import evaluate
from policies.rollout import rollout
from vla.contract import ContractMismatchError, Policy, VecEnv

SEEDS = list(range(100, 111))


class Right:
    """Always the same command."""

    def __init__(self, value: float = 1.0, chunk: int = 1) -> None:
        self.spec = PointVecEnv.spec
        self.value, self.chunk = value, chunk

    def reset(self, indices):
        """Nothing to forget."""

    def act(self, observation):
        """Float32 [n, chunk, 1]."""
        return torch.full((len(observation), self.chunk, 1), self.value)


def test_the_fakes_meet_the_protocols():
    """The fake environment and the baselines have every member that the contract asks for."""
    assert isinstance(PointVecEnv(1), VecEnv)
    for policy in (RandomPolicy(PointVecEnv.spec), ZeroPolicy(PointVecEnv.spec)):
        assert isinstance(policy, Policy)


@pytest.mark.parametrize("chunk", [1, 5])
def test_results_do_not_depend_on_the_number_of_environments(chunk):
    """A seed is an episode, in whichever environment and beside whichever others it is played."""
    reference = None
    for num_envs in (1, 3, 11, 16):
        policy = RandomPolicy(PointVecEnv.spec, chunk, seed=4)
        played = rollout(PointVecEnv(num_envs, episode_length=90), policy, SEEDS).episodes
        if reference is None:
            reference = played
            assert len({episode.length for episode in played}) > 1, "lengths must vary to refill"
        for ours, theirs in zip(played, reference, strict=True):
            assert ours.seed == theirs.seed
            assert ours.instruction == theirs.instruction
            assert (ours.terminated, ours.truncated) == (theirs.terminated, theirs.truncated)
            np.testing.assert_array_equal(ours.actions, theirs.actions)
            np.testing.assert_array_equal(ours.rewards, theirs.rewards)
            np.testing.assert_array_equal(ours.success, theirs.success)


def test_ended_environments_take_the_next_seed_in_order():
    """Refilling plays each seed once, in order, and results come back in that order."""
    env = PointVecEnv(3)
    played = rollout(env, Right(), SEEDS)
    assert [seed for _, seed in env.resets] == SEEDS
    assert [episode.seed for episode in played.episodes] == SEEDS
    assert all(episode.terminated != episode.truncated for episode in played.episodes)


def test_success_at_end_and_ever_are_told_apart():
    """Passing through the goal is "ever"; only staying there is "at the end"."""
    # Seeds whose goal lies well to the right of the start: the point passes it and falls off.
    starts = {seed: np.random.default_rng(seed).uniform(-0.8, 0.8, size=2) for seed in range(60)}
    passing = [s for s, (x, goal) in starts.items() if goal - x > 0.3 and goal < 0.7]
    assert len(passing) > 3
    through = rollout(PointVecEnv(2, episode_length=30), Right(), passing)
    assert through.success_ever.all()
    assert not through.success_at_end.any()
    for episode in through.episodes:
        x, goal = starts[episode.seed]
        assert episode.first_success_step == int((goal - x - STEP_M) / STEP_M) + 1
        assert episode.terminated

    env = PointVecEnv(2, episode_length=30)
    expert = rollout(env, ExpertPolicy(env.expert_actions, env.spec), passing)
    assert expert.success_at_end.all()
    assert all(episode.truncated and episode.length == 30 for episode in expert.episodes)

    never = rollout(PointVecEnv(2), Right(-1.0), passing).episodes
    assert {episode.first_success_step for episode in never} == {None}
    assert sum(episode.total_reward for episode in never) == 0


def test_a_trainer_gets_three_means_and_the_steps_that_they_took():
    """Two of three episodes reach the goal, none stays there; every control step is counted."""
    starts = {seed: np.random.default_rng(seed).uniform(-0.8, 0.8, size=2) for seed in range(60)}
    passing = [s for s, (x, goal) in starts.items() if goal - x > 0.3 and goal < 0.7][:2]
    away = next(s for s, (x, goal) in starts.items() if x - goal > 0.3)
    seeds = [*passing, away]
    metrics, steps = evaluate(PointVecEnv(2, episode_length=30), Right(), seeds)
    played = rollout(PointVecEnv(2, episode_length=30), Right(), seeds).episodes
    assert metrics["success/end"] == 0
    assert metrics["success/ever"] == pytest.approx(2 / 3)
    assert metrics["success/return"] == pytest.approx(sum(e.rewards.sum() for e in played) / 3)
    assert steps == sum(episode.length for episode in played)


def test_only_executed_steps_are_recorded():
    """A chunk that outlives its episode leaves no trace beyond the last executed step."""
    played = rollout(PointVecEnv(2, episode_length=12), Right(0.0, chunk=5), SEEDS[:3])
    for episode in played.episodes:
        assert episode.actions.shape == (12, 1)
        assert episode.actions.dtype == np.float32
        assert episode.rewards.shape == episode.success.shape == (12,)
    assert played.simulator_steps == 36


def test_an_error_in_a_later_episode_loses_no_earlier_one():
    """Every episode is handed over when it ends, exactly once, as the result holds it."""
    kept = []
    played = rollout(PointVecEnv(3), Right(0.5), SEEDS, on_episode=kept.append).episodes
    assert sorted(e.seed for e in kept) == SEEDS
    by_seed = {episode.seed: episode for episode in kept}
    for episode in played:
        np.testing.assert_array_equal(by_seed[episode.seed].actions, episode.actions)
        np.testing.assert_array_equal(by_seed[episode.seed].success, episode.success)

    class Failing(Right):
        decisions = 0

        def act(self, observation):
            self.decisions += 1
            if self.decisions == 30:
                raise RuntimeError("out of memory")
            return super().act(observation)

    kept.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        rollout(PointVecEnv(3), Failing(0.5), SEEDS, on_episode=kept.append)
    assert 0 < len(kept) < len(SEEDS)


def test_the_recorder_sees_every_macro_step_with_the_observation_before_and_after():
    """Transitions chain without a gap and hold every reward, so nothing needs a second loop."""
    recorded = []
    played = rollout(
        PointVecEnv(2), RandomPolicy(PointVecEnv.spec, 5, seed=1), SEEDS, recorded.append
    )
    x, rewards = {}, {index: [] for index in range(len(SEEDS))}
    for transition in recorded:
        for row, episode in enumerate(transition.episodes):
            if episode < 0:
                assert not transition.step.valid[row].any()
                continue
            before = transition.observation.proprio[row, 0]
            assert before == transition.privileged[row, 0]
            if episode in x:
                assert before == x[episode]
            moved = STEP_M * transition.chunks[row, transition.step.valid[row]].sum()
            x[episode] = transition.step.observation.proprio[row, 0]
            assert x[episode] == pytest.approx(float(before + moved), abs=1e-5)
            rewards[episode] += transition.step.rewards[row, transition.step.valid[row]].tolist()
    for index, episode in enumerate(played.episodes):
        assert rewards[index] == episode.rewards.tolist()


def test_a_second_rollout_forgets_the_first():
    """Used environments give what fresh ones give."""
    env = PointVecEnv(3)
    first = rollout(env, Right(0.3), SEEDS)
    again = rollout(env, Right(0.3), SEEDS)
    assert [e.total_reward for e in first.episodes] == [e.total_reward for e in again.episodes]


def test_bad_values_are_named():
    """Whatever is not finite or misshapen is refused by name before it can spread."""
    with pytest.raises(ContractMismatchError, match=r"action is not finite in \['x'\]"):
        rollout(PointVecEnv(2), Right(float("nan")), SEEDS)

    class Broken(PointVecEnv):
        def step(self, chunks):
            self._goal[0] = np.nan
            return super().step(chunks)

    with pytest.raises(ContractMismatchError, match=r"privileged is not finite in \['goal'\]"):
        rollout(Broken(2), Right(), SEEDS)

    class Unpaid(PointVecEnv):
        def step(self, chunks):
            step = super().step(chunks)
            step.rewards[1] = np.nan
            return step

    with pytest.raises(ContractMismatchError, match=r"reward is not finite in environments \[1\]"):
        rollout(Unpaid(2), Right(), SEEDS)
    policy = Right()
    policy.act = lambda observation: torch.zeros(len(observation), 1, 2)
    with pytest.raises(ContractMismatchError, match="action has 2 dimensions"):
        rollout(PointVecEnv(2), policy, SEEDS)
    policy.act = lambda observation: torch.zeros(len(observation), 1)
    with pytest.raises(ContractMismatchError, match="chunks of shape"):
        rollout(PointVecEnv(2), policy, SEEDS)
    policy.spec = replace(policy.spec, control_rate_hz=25.0)
    with pytest.raises(ContractMismatchError, match="control_rate_hz"):
        rollout(PointVecEnv(2), policy, SEEDS)


def test_an_environment_that_hangs_is_an_error():
    """A loop that could never end is refused."""

    class Stuck(PointVecEnv):
        def step(self, chunks):
            return super().step(chunks[:, :0])

    with pytest.raises(RuntimeError, match="seed 100"):
        rollout(Stuck(1), Right(), SEEDS)
    with pytest.raises(ValueError, match="at least one seed"):
        rollout(PointVecEnv(1), Right(), [])


def test_random_actions_fill_the_limits_and_blank_images_are_black():
    """Random actions use the whole range, and the blinded policy sees zeros."""
    actions = np.concatenate(
        [e.actions for e in rollout(PointVecEnv(4), RandomPolicy(PointVecEnv.spec), SEEDS).episodes]
    )
    assert -1 <= actions.min() < -0.8
    assert 0.8 < actions.max() <= 1

    class Brightness(Right):
        def act(self, observation):
            return observation.images["top"].float().mean() * torch.ones(len(observation), 1, 1)

    seeing = rollout(PointVecEnv(1), Brightness(), SEEDS[:1]).episodes[0]
    blind = rollout(PointVecEnv(1), BlankImages(Brightness()), SEEDS[:1]).episodes[0]
    assert seeing.actions[0, 0] == 9
    assert blind.actions[0, 0] == 0
