"""`vla refine` refuses what an off-policy algorithm has no use for, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policies.reinforcement.refinement import RefinementConfig
from policies.reinforcement.trainer import OnPolicyConfig
from scripts.refine import RefineConfig, _off_policy_settings, _require_exploration, main
from vla.model.heads.base import HeadDims
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.gaussian import GaussianHead, GaussianHeadConfig
from vla.model.heads.l1 import L1Head, L1HeadConfig
from vla.model.heads.registry import NoLikelihoodError
from vla.model.heads.token import TokenHead, TokenHeadConfig


def test_settings_of_on_policy_methods_are_refused() -> None:
    """With their flags, and where the algorithm's own ones are shown."""
    training = OnPolicyConfig(critic_epochs=3, log_std_end=-1.0)
    with pytest.raises(ValueError, match=r"--critic-epochs, --log-std-end belongs.*sac:help"):
        main(RefineConfig(algorithm="sac:tau=0.01", training=training))


@pytest.mark.parametrize("algorithm", ["reinforce", "grpo", "rloo"])
def test_settings_of_a_critic_that_there_is_none_of_are_refused(algorithm: str) -> None:
    """They would change nothing."""
    training = OnPolicyConfig(critic="features", warmup_iterations=5)
    message = f"--critic, --warmup-iterations: {algorithm} has no critic; ppo, a2c, trpo have one"
    with pytest.raises(ValueError, match=message):
        main(RefineConfig(algorithm=algorithm, training=training))


def test_settings_of_another_head_s_exploration_are_refused() -> None:
    """A standard deviation of tokens, a temperature of a Gaussian."""
    dims = HeadDims(4, 4, 2, 1)
    tokens = TokenHead(dims, TokenHeadConfig(ExpertConfig(16, 1, 2), bins=8))
    gaussian = GaussianHead(dims, GaussianHeadConfig(8))
    config = RefineConfig(training=OnPolicyConfig(log_std_end=-2.0))
    _require_exploration(config, gaussian)
    with pytest.raises(ValueError, match=r"--log-std-end: TokenHead is sampled at a temperature"):
        _require_exploration(config, tokens)
    config = RefineConfig(training=OnPolicyConfig(temperature_start=2.0))
    _require_exploration(config, tokens)
    with pytest.raises(ValueError, match="--temperature-start: GaussianHead has no temperature"):
        _require_exploration(config, gaussian)
    with pytest.raises(NoLikelihoodError, match="ppo needs the likelihood of sampled actions"):
        _require_exploration(config, L1Head(dims, L1HeadConfig(ExpertConfig(16, 1, 2))))


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
