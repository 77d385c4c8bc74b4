"""Decisions with a batch of one: results that no number of environments changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from point_env import PointVecEnv

from policies.evaluation.row_by_row import RowByRow
from policies.rollout import rollout

SEEDS = list(range(100, 111))


class Batchy:
    """Moves by how many rows it is given, by noise, and by how often it has decided."""

    spec = PointVecEnv.spec

    def __init__(self) -> None:
        self.decisions = 0

    def reset(self, indices):
        """A new episode."""
        assert list(indices) == [0]
        self.decisions = 0

    def act(self, observation):
        """Float32 [n, 2, 1]."""
        self.decisions += 1
        rows = len(observation)
        noise = 0.2 * torch.randn(rows, 2, 1)
        return (noise + 0.01 * self.decisions / rows).clamp(-1, 1)


def test_results_do_not_depend_on_the_number_of_environments():
    """Bit by bit, also for a policy that draws noise and remembers."""
    reference = None
    torch.manual_seed(3)
    for num_envs in (1, 3, 11, 16):
        torch.rand(num_envs)  # whatever others draw in between
        policy = RowByRow(Batchy, Batchy.spec, seed=7)
        played = rollout(PointVecEnv(num_envs, episode_length=30), policy, SEEDS).episodes
        reference = reference or played
        for ours, theirs in zip(played, reference, strict=True):
            np.testing.assert_array_equal(ours.actions, theirs.actions)
    assert reference is not None
    assert len({float(episode.actions[0, 0]) for episode in reference}) == len(SEEDS)
    other = rollout(PointVecEnv(2, episode_length=30), RowByRow(Batchy, Batchy.spec, seed=8), SEEDS)
    assert (other.episodes[0].actions[0] != reference[0].actions[0]).all()


def test_it_leaves_the_global_random_numbers_alone():
    """An evaluation amid a training changes nothing of it."""
    state = torch.get_rng_state()
    rollout(PointVecEnv(2), RowByRow(Batchy, Batchy.spec), SEEDS[:3])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_the_tiny_model_rounds_otherwise_and_its_rows_do_not():
    """The reason for all this, on real matrix products: a row's decision is that of one robot."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 257), torch.nn.Tanh(), torch.nn.Linear(257, 1), torch.nn.Tanh()
    )

    class Learned(Batchy):
        def act(self, observation):
            with torch.no_grad():
                return network(observation.proprio)[:, None]

    env = PointVecEnv(11)
    env.reset(range(11), SEEDS)
    observation = env.observe()[0]
    policy = RowByRow(Learned, Learned.spec)
    policy.reset(range(11))
    alone = torch.cat([network(observation.proprio[[row]])[:, None] for row in range(11)])
    assert torch.equal(policy.act(observation), alone)
    assert torch.allclose(network(observation.proprio)[:, None], alone, atol=1e-5)


@pytest.mark.parametrize("rows", [[0], [0, 2]])
def test_rows_that_play_nothing_get_some_decision(rows):
    """More environments than episodes: the rest are stepped, too."""
    env = PointVecEnv(3)
    env.reset(range(3), SEEDS[:3])
    policy = RowByRow(Batchy, Batchy.spec)
    policy.reset(rows)
    assert policy.act(env.observe()[0]).shape == (3, 2, 1)
