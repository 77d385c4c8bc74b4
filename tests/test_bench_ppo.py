"""The benchmark of PPO runs its learner on simulator state; speeds are not asserted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from scripts.bench.ppo import BenchPpoConfig, ours


def test_ours_learns_from_the_simulator_at_both_chunk_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration of two episodes, a decision each step and each five steps; nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = BenchPpoConfig("FetchReach", rollout=100, epochs=1, minibatch=50, num_envs=2)
    for chunk_length in (1, 5):
        contender = ours(config, chunk_length)
        try:
            assert contender.run(100) > 0
        finally:
            contender.close()
    assert not [*tmp_path.iterdir()]
