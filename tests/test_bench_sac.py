"""The benchmark of SAC runs both of its learners; neither speed nor success is asserted."""

from __future__ import annotations

from scripts.bench.sac import BenchSacConfig, learn_ours, ours_updates


def test_ours_learns_from_the_simulator() -> None:
    """Two short iterations, counted in control steps, and a few gradient steps."""
    config = BenchSacConfig(
        most_steps=200, evaluate_every=100, evaluation_episodes=2, hidden=8, num_envs=2
    )
    learned = learn_ours(config, 0)
    assert 100 <= learned.steps <= 200
    assert learned.wall_s > 0
    contender = ours_updates(config, 1)
    try:
        assert contender.run(10) > 0
    finally:
        contender.close()
