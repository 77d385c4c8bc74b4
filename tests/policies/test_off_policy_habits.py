"""What an off-policy run logs for its habits, and that the entropy in its values is no error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from off_policy_learners import EXPERT, make, vla_policy
from point_env import PointVecEnv

from policies.evaluation.habits.diagnosis import diagnose
from policies.evaluation.habits.run_metrics import RunMetrics
from policies.reinforcement.diagnostics import compare_prediction, entropy_ahead
from policies.reinforcement.dsrl import DSRLConfig
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.state_policy import StatePolicy
from vla.model.heads.flow import FlowHeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig


@pytest.mark.parametrize("kind", ["sac", "dsrl"])
def test_a_run_logs_what_its_habits_need(kind: str, tmp_path: Path) -> None:
    """Every habit: nothing is missing."""
    if kind == "sac":
        trainer = make(tmp_path, policy=vla_policy(GaussianHeadConfig(16)))
    else:
        method = DSRLConfig(hidden=16, batch_size=8, steering=16)
        trainer = make(tmp_path, method, vla_policy(FlowHeadConfig(EXPERT)))
    series: dict[str, dict[int, float]] = {}
    for iteration in (1, 2, 3, 4, 5):
        evaluated = {"success/end": 0.5, "success/return": 1.0}
        for name, value in (trainer.advance() | evaluated).items():
            series.setdefault(name, {})[iteration] = value
    found = {v.habit: v.state for v in diagnose(RunMetrics(series)).verdicts}
    assert "not recorded" not in found.values(), found
    assert series["policy/gradient_steps"] == {1: 0, 2: 0, **dict.fromkeys((3, 4, 5), 12)}
    assert series["policy/sample_spread"][4] > 0
    assert set(series["frozen_batch/explained_variance"]) <= {1}
    moved = series["policy/reference_kl"]
    assert moved[1] == moved[2] == 0 < moved[4]
    assert series["advantage/std"][5] > 0
    assert series["collect/input_rms"][5] > 0


def test_what_a_critic_predicts_is_compared_without_its_own_final_value() -> None:
    """A critic that is off by one everywhere explains all of it; one that is constant nothing."""
    earned = torch.tensor([0.0, 1.0, 2.0, 5.0])
    found = compare_prediction(earned + 1, earned)
    assert found["critic/earned_explained"] == pytest.approx(1)
    assert found["calibration/predicted_1"] - found["calibration/actual_1"] == pytest.approx(1)
    assert compare_prediction(torch.ones(4), earned)["critic/earned_explained"] == pytest.approx(0)


def test_the_entropy_that_values_hold_by_hand() -> None:
    """Of every decision after a step, or of every second one; a termination has nothing behind."""
    bonus, episode = torch.tensor([1.0, 2.0, 4.0, 8.0, 5.0, 3.0]), torch.tensor([7, 7, 7, 7, 2, 2])
    half = torch.full((6,), 0.5)
    # From behind: 0.5 * 8 = 4, 0.5 * (4 + 4) = 4, 0.5 * (2 + 4) = 3; another episode begins at 5.
    one = entropy_ahead(bonus, half, episode, 1)
    assert one.tolist() == [3.0, 4.0, 4.0, 0.0, 1.5, 0.0]
    two = entropy_ahead(bonus, half, episode, 2)
    assert two.tolist() == [0.5 * 4, 0.5 * 8, 0.0, 0.0, 0.0, 0.0]
    half[2] = 0.0
    assert entropy_ahead(bonus, half, episode, 1).tolist()[:4] == [2.0, 2.0, 0.0, 0.0]
    assert not entropy_ahead(bonus, half, episode, 9).any()


@pytest.mark.parametrize("n_step", [1, 2])
def test_right_values_of_a_soft_policy_are_calibrated(n_step: int, tmp_path: Path) -> None:
    """Critics that know rewards and entropy exactly explain all of what was earned."""
    env = PointVecEnv(3, episode_length=8)
    method = SACConfig(hidden=16, batch_size=8, temperature=0.5, n_step=n_step, critics=2)
    torch.manual_seed(0)
    trainer = make(tmp_path, method, StatePolicy(env, 1), env)
    trainer.advance()
    which = trainer.replay.newest(6)
    batch = trainer.replay.read(*which, trainer.replay.dims.length)
    bonus = trainer.sac.entropy_bonus(batch.features, trainer._probe())
    discount = trainer.replay.read(*which, n_step).discount
    ahead = entropy_ahead(bonus, discount, which[0], n_step)
    right = trainer.sac.targets(batch, trainer._probe()) + ahead
    assert ahead.abs().max() > 0.5

    class Knows:
        """An ensemble of two that gives the right values of what was played."""

        def __call__(self, critic_obs: Any, action: Any) -> torch.Tensor:
            """Whatever the action."""
            return right.expand(2, -1)

    trainer.sac.critic = Knows()  # type: ignore[assignment]
    found = trainer._describe_values(which, batch)
    assert found["critic/explained_variance"] == pytest.approx(1, abs=1e-4)
    assert found["critic/earned_explained"] == pytest.approx(1, abs=1e-4)
    assert found["advantage/std"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "habit", "state", "reason"),
    [
        ({"advantage/std": [0.0]}, "Advantages", "red", "tell no action from another"),
        ({"advantage/std": [0.5]}, "Advantages", "green", "0.5"),
        (
            {"critic/earned_explained": [-9.0] * 6, "calibration/std": [0.0] * 6},
            "Predicted and actual return",
            "amber",
            "returns do not vary",
        ),
    ],
)
def test_advantages_of_actions_are_no_returns(
    values: dict[str, list[float]], habit: str, state: str, reason: str
) -> None:
    """Critics that are blind to actions are found; where nothing was ever earned none is dead."""
    series = {name: dict(enumerate(each)) for name, each in values.items()}
    found = diagnose(RunMetrics(series | {"replay/steps": {0: 1.0}})).verdicts
    verdict = next(one for one in found if one.habit == habit)
    assert verdict.state == state, verdict
    assert reason in verdict.reason
