"""The benchmark of PPO runs its learner on simulator state; speeds are not asserted."""

from __future__ import annotations

from scripts.bench.ppo import BenchPpoConfig, ours


def test_ours_learns_from_the_simulator_at_both_chunk_lengths() -> None:
    """An iteration of two episodes, a decision each step and each five steps."""
    config = BenchPpoConfig("FetchReach", rollout=100, epochs=1, minibatch=50, num_envs=2)
    for chunk_length in (1, 5):
        contender = ours(config, chunk_length)
        try:
            assert contender.run(100) > 0
        finally:
            contender.close()
