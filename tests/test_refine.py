"""`vla refine` refuses what an off-policy algorithm has no use for, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policies.reinforcement.refinement import RefinementConfig
from policies.reinforcement.trainer import OnPolicyConfig
from scripts.refine import RefineConfig, _off_policy_settings, main


def test_settings_of_on_policy_methods_are_refused() -> None:
    """With their flags, and where the algorithm's own ones are shown."""
    training = OnPolicyConfig(critic_epochs=3, log_std_end=-1.0)
    with pytest.raises(ValueError, match=r"--critic-epochs, --log-std-end belongs.*sac:help"):
        main(RefineConfig(algorithm="sac:tau=0.01", training=training))


def test_settings_that_all_algorithms_share_are_passed_on() -> None:
    """And nothing else."""
    training = OnPolicyConfig(iterations=7, episodes=30, critic="features", seed=4)
    shared = _off_policy_settings(RefineConfig(algorithm="sac", training=training))
    assert shared == RefinementConfig(iterations=7, episodes=30, critic="features", seed=4)
    assert type(shared) is RefinementConfig


def test_demonstrations_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Without a replay buffer, or of another task."""
    with pytest.raises(ValueError, match="only the off-policy algorithms sac, dsrl have"):
        main(RefineConfig(demonstrations=tmp_path))
    (tmp_path / "meta").mkdir()
    journal = {"settings": {"task": ["FetchSlide"]}}
    (tmp_path / "meta" / "recording.json").write_text(json.dumps(journal))
    config = RefineConfig("FetchPush", algorithm="sac", demonstrations=tmp_path)
    with pytest.raises(ValueError, match="are of FetchSlide, not of FetchPush alone"):
        main(config)


def test_an_unknown_algorithm_is_answered_with_all_there_are() -> None:
    """On-policy and off-policy."""
    with pytest.raises(ValueError, match=r"no algorithm 'td4'; valid: ppo, a2c, .*sac, dsrl"):
        main(RefineConfig(algorithm="td4"))
