"""The habits of a run: every planted fault is found in a real run, and a healthy one is green."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from point_env import PointVecEnv
from torch import Tensor

from policies.evaluation.habits.diagnosis import HABITS, Diagnosis, diagnose, diagnose_folder
from policies.evaluation.habits.run_metrics import RunMetrics
from policies.evaluation.habits.verdict import Finding, Verdict, worst
from policies.evaluation.proxy import parted
from policies.reinforcement.diagnostics import describe_actions
from policies.reinforcement.experience import Batch
from policies.reinforcement.ppo import PPO, PPOConfig
from policies.reinforcement.reinforce import ReinforceConfig
from policies.reinforcement.state_policy import NoMemory, StatePolicy
from policies.reinforcement.trainer import OnPolicyConfig, OnPolicyTrainer
from policies.rollout import Episode, Episodes, Transition
from policies.run_folder import RunFolder
from scripts.cli import main as vla
from scripts.doctor import DoctorConfig
from vla.contract import ObservationBatch, StepBatch, VectorSpec
from vla.model.features import Features
from vla.model.heads.gaussian import GaussianHeadConfig

METHOD = PPOConfig(gamma=0.9, learning_rate=1e-3, minibatch_size=100, epochs=8)
CONFIG = OnPolicyConfig(
    iterations=15,
    episodes=48,
    critic_learning_rate=3e-3,
    critic_minibatch_size=48,
    warmup_iterations=2,
    log_std_start=-0.5,
    log_std_end=-1.2,
    evaluate_every=3,
)
SELECTION = range(10_000, 10_060)


def make(
    folder: Path,
    method: Any = METHOD,
    env: PointVecEnv | None = None,
    policy: StatePolicy | None = None,
    reward: Any = None,
    **changes: Any,
) -> OnPolicyTrainer[Any]:
    """A run of the point that takes a second or two."""
    env = env or PointVecEnv(48, episode_length=12)
    if policy is None:
        torch.manual_seed(0)
        policy = StatePolicy(env, 2)
    config = replace(CONFIG, **changes)
    run = RunFolder(folder, config)

    def seeds(iteration: int) -> range:
        return range(iteration * config.episodes, (iteration + 1) * config.episodes)

    return OnPolicyTrainer(policy, env, config, method, run, seeds, reward)


def diagnosed(folder: Path, **changes: Any) -> dict[str, Verdict]:
    """The verdicts of a run, by habit; a fault shows in a few iterations."""
    make(folder, **{"iterations": 6, **changes}).run(SELECTION[:20])
    return by_habit(diagnose_folder(folder))


def by_habit(diagnosis: Diagnosis) -> dict[str, Verdict]:
    """Verdicts by the habit's name."""
    return {verdict.habit: verdict for verdict in diagnosis.verdicts}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a fault."""
    folder = tmp_path_factory.mktemp("healthy")
    make(folder).run(SELECTION)
    return folder


def test_a_healthy_run_is_green(healthy: Path) -> None:
    """In every habit: nothing is missing either."""
    verdicts = diagnose_folder(healthy).verdicts
    assert {v.habit: v.state for v in verdicts} == {habit.name: "green" for habit in HABITS}, (
        verdicts
    )
    assert not any(verdict.advice for verdict in verdicts)


def test_what_is_logged_describes_the_run(healthy: Path) -> None:
    """Calibration rises along its groups, quantiles are in order, and the batch was fitted."""
    diagnosis = diagnose_folder(healthy)
    predicted, actual = zip(*diagnosis.calibration, strict=True)
    assert list(predicted) == sorted(predicted)
    assert actual[-1] > actual[0]
    run = RunMetrics.read(healthy)
    quantiles = [run.last(f"advantage/q{level}") for level in ("05", "25", "50", "75", "95")]
    assert quantiles == sorted(quantiles, key=lambda value: value or 0)
    assert run.last("success/episodes") == len(SELECTION)
    assert run.last("advantage/used_std") == pytest.approx(1, abs=1e-3)
    # Once: the batch of the first collection.
    assert [*run.series["frozen_batch/likelier"]] == [1]


# Planted faults: what is wrong in a run, and the habits that must not be green


def negated(transition: Transition) -> Tensor:
    """The reward of the wrong sign."""
    return -transition.step.rewards


def huge(transition: Transition) -> Tensor:
    """Rewards in thousands."""
    return 1e5 * transition.step.rewards


class TerminatesAtItsLimit(PointVecEnv):
    """Takes its time limit for a termination."""

    def step(self, chunks: Tensor) -> StepBatch:
        """As before, with the flags swapped."""
        step = super().step(chunks)
        ended = step.terminated | step.truncated
        return replace(step, terminated=ended, truncated=torch.zeros_like(ended))


class InMillimetres(StatePolicy):
    """Reads a state in another unit than it was normalised for."""

    def features(self, observation: ObservationBatch, state: NoMemory) -> tuple[Features, NoMemory]:
        """The state times 1000."""
        features, state = super().features(observation, state)
        return replace(features, proprio=1000 * features.proprio), state


class OtherLimits(StatePolicy):
    """Decodes actions by the statistics of another robot, with far smaller steps."""

    def decode(self, chunk: Tensor) -> Tensor:
        """A thousandth of it."""
        return super().decode(chunk / 1000)


def negative_entropy() -> PPOConfig:
    """An entropy bonus of the wrong sign, which settings refuse."""
    method = replace(METHOD, log_std_learning_rate=0.3, target_kl=None)
    object.__setattr__(method, "entropy", -1.0)
    return method


FAULTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "dead critic": (
        {"critic_learning_rate": 0.0},
        {
            "Predicted and actual return": "the critic is dead",
            "Frozen batch": "the critic explains",
        },
    ),
    "reward of the wrong sign": (
        {"reward": negated},
        {"Fixed policy": "return goes against its success"},
    ),
    "exploding KL": (
        {"method": replace(METHOD, learning_rate=0.1, target_kl=None)},
        {"KL": "nats a control step"},
    ),
    "frozen actor": (
        {"method": replace(METHOD, learning_rate=0.0, log_std_learning_rate=0.0)},
        {"KL": "the actor is frozen", "Frozen batch": "nothing moves"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    """Red, with a reason that names it and something to try."""
    changes, expected = FAULTS[fault]
    verdicts = diagnosed(tmp_path, **changes)
    for habit, reason in expected.items():
        assert verdicts[habit].state == "red", verdicts[habit]
        assert reason in verdicts[habit].reason
        assert verdicts[habit].advice


def test_advantages_that_are_not_normalised_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their scale, and by the gradient's."""
    monkeypatch.setattr(Batch, "standardised", lambda self: self)
    verdicts = diagnosed(tmp_path, reward=huge)
    assert verdicts["Advantages"].state == "red", verdicts["Advantages"]
    assert "standardise" in verdicts["Advantages"].advice
    assert verdicts["Gradient norm"].state == "red"


def test_collapsed_entropy_is_found(tmp_path: Path) -> None:
    """Also as samples that hardly differ."""
    environment = PointVecEnv(48, episode_length=12)
    policy = StatePolicy(environment, 2, GaussianHeadConfig(log_std_min=-10))
    verdicts = diagnosed(tmp_path, method=negative_entropy(), env=environment, policy=policy)
    assert verdicts["Entropy"].state == "red", verdicts["Entropy"]
    assert verdicts["Mode collapse"].state == "red", verdicts["Mode collapse"]


def test_a_time_limit_taken_for_a_termination_is_found(tmp_path: Path) -> None:
    """All episodes terminate, and all after equally many steps."""
    verdict = diagnosed(tmp_path, env=TerminatesAtItsLimit(48, 12), iterations=3)["Fixed policy"]
    assert verdict.state == "red"
    assert "a time limit is taken for a termination" in verdict.reason


@pytest.mark.parametrize(
    ("kind", "reason"), [(InMillimetres, "inputs have size"), (OtherLimits, "actions have size")]
)
def test_mismatched_normalisation_is_found(
    kind: type[StatePolicy], reason: str, tmp_path: Path
) -> None:
    """Of what goes in, and of what comes out."""
    env = PointVecEnv(48, episode_length=12)
    verdict = diagnosed(tmp_path, env=env, policy=kind(env, 2), iterations=3)["Fixed policy"]
    assert verdict.state == "red"
    assert reason in verdict.reason
    assert "statistics" in verdict.advice


def test_an_optimizer_of_other_weights_is_found(tmp_path: Path) -> None:
    """The copy learns, the actor that acts does not."""
    trainer = make(tmp_path, iterations=6)
    trainer.update = PPO(deepcopy(trainer.policy.actor), METHOD)
    trainer.run(SELECTION)
    verdicts = by_habit(diagnose_folder(tmp_path))
    assert verdicts["KL"].state == "red"
    assert "the actor is frozen" in verdicts["KL"].reason


def test_an_actor_in_training_mode_is_found(tmp_path: Path) -> None:
    """With dropout the same weights do not give the same likelihood twice."""
    env = PointVecEnv(48, episode_length=12)
    trainer = make(tmp_path, env=env, policy=StatePolicy(env, 2, GaussianHeadConfig(dropout=0.5)))
    trainer.policy.actor.train()
    _, metrics = trainer.iterate()
    assert metrics["policy/ratio_error"] > 0.1
    state = diagnose(RunMetrics({"policy/ratio_error": {1: metrics["policy/ratio_error"]}}))
    assert by_habit(state)["Fixed policy"].state == "red"


# What was not recorded, and what cannot be read


def test_nothing_recorded_is_never_green() -> None:
    """An empty run, and a method without a critic."""
    assert {v.state for v in diagnose(RunMetrics({})).verdicts} == {"not recorded"}


def test_a_method_without_a_critic_has_no_verdict_on_it(tmp_path: Path) -> None:
    """And none of its other habits is red."""
    verdicts = diagnosed(tmp_path, method=ReinforceConfig())
    assert verdicts["Predicted and actual return"].state == "not recorded"
    assert "there is no critic" in verdicts["Predicted and actual return"].reason
    assert "red" not in {verdict.state for verdict in verdicts.values()}, verdicts


def test_the_worst_finding_decides() -> None:
    """With all reasons of that state, and each advice once."""
    findings = [Finding("green", "a"), Finding("red", "b", "x"), Finding("red", "c", "x")]
    assert worst("habit", findings, "") == Verdict("habit", "red", "b; c", "x")
    assert worst("habit", [], "nothing").state == "not recorded"


def test_a_resumed_run_counts_what_was_logged_last(tmp_path: Path) -> None:
    """Steps repeat; null was not finite; a line that a kill has cut is left out."""
    lines = ['{"step": 1, "a": 1.0}', '{"step": 2, "a": 2.0}', '{"step": 2, "a": null}', '{"step"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = RunMetrics.read(tmp_path)
    assert run.series["a"][1] == 1.0
    assert run.series["a"][2] != run.series["a"][2]
    assert run.late("a") == 1.0


@pytest.mark.parametrize(
    ("metrics", "settings", "message"),
    [
        (None, None, "holds no metrics.jsonl: give a run folder"),
        ("3\n{}", None, "line 1, is no line of metrics"),
        ('{"step": 1}', "{", "run.json is not readable as JSON"),
    ],
)
def test_doctor_refuses_what_is_no_run(
    metrics: str | None,
    settings: str | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, with what is wrong."""
    for name, text in (("metrics.jsonl", metrics), ("run.json", settings)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert vla(["doctor", "--run", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_doctor_checks_one_thing_at_a_time() -> None:
    """A task and a run together are refused."""
    with pytest.raises(ValueError, match="--task and --run check different things"):
        DoctorConfig(task="FetchPush", run=Path("runs"))


def test_doctor_prints_every_habit(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 for a healthy run; 1 where one is red, with what to try."""
    assert vla(["doctor", "--run", str(healthy)]) == 0
    printed = capsys.readouterr().out
    assert all(habit.name in printed for habit in HABITS)
    row = {"step": 1, "policy/kl": 3.0, "collect/success_end": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row))
    assert vla(["doctor", "--run", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "wrong: KL" in printed
    assert "try: a smaller learning_rate" in printed


def test_actions_are_measured_by_their_limits() -> None:
    """By hand: of two dimensions one has limits, in units of its own."""
    chosen = np.array([[0.0, 5.0], [2.0, -7.0], [1.0, 0.0], [1.0, 1.0]], np.float32)
    nothing = np.zeros(4, np.float32)
    episode = Episode(0, "", chosen, nothing, nothing.astype(bool), False, True)
    action = VectorSpec(("a", "b"), ("m", "m"), (0.0, -np.inf), (2.0, np.inf))
    metrics = describe_actions(Episodes((episode,)), action)
    assert metrics["collect/action_at_limit"] == 0.5
    assert metrics["collect/action_rms"] == pytest.approx(0.5**0.5)
    free = VectorSpec(("a", "b"), ("m", "m"), (-np.inf,) * 2, (np.inf,) * 2)
    assert describe_actions(Episodes((episode,)), free) == {}


# Single checks at their thresholds


def series(**values: list[float]) -> RunMetrics:
    """Metrics from step 1 on; two underscores stand for a slash."""
    return RunMetrics(
        {k.replace("__", "/"): dict(enumerate(v, start=1)) for k, v in values.items()},
        {"training": {"episodes": 200}},
    )


MOVED = {"policy__gradient_steps": [1.0] * 4}
# Of an off-policy run whose entropy is driven to -10 nats.
SOFT = {"replay__steps": [1.0], "policy__target_entropy": [-10.0]}


@pytest.mark.parametrize(
    ("values", "habit", "state"),
    [
        ({"policy__kl": [0.03, float("nan")]}, "KL", "red"),
        ({"policy__kl": [0.03, 0.4]}, "KL", "amber"),
        (MOVED | {"policy__reference_kl": [0.0, 0.1, 0.2, float("nan")]}, "KL", "red"),
        ({"policy__entropy": [2.0, float("nan")]}, "Entropy", "red"),
        ({"policy__sample_spread": [0.3, float("nan")]}, "Mode collapse", "red"),
        ({"policy__entropy": [2.0, 1.5]}, "Entropy", "green"),
        ({"policy__entropy": [2.0, 0.5]}, "Entropy", "amber"),
        ({"policy__entropy": [2.0, 0.05]}, "Entropy", "red"),
        ({"policy__entropy": [2.0, -1.0], "replay__steps": [1.0]}, "Entropy", "not recorded"),
        (SOFT | {"policy__entropy": [2.0, -14.0]}, "Entropy", "green"),
        (SOFT | {"policy__entropy": [2.0, -16.0]}, "Entropy", "amber"),
        (SOFT | {"policy__entropy": [2.0, -26.0]}, "Entropy", "red"),
        (
            {"policy__sample_spread": [0.5, 0.1], "policy__temperature": [10.0, 1.0]},
            "Mode collapse",
            "green",
        ),
        ({"success__end": [0.6, 0.9, 0.9]}, "Greedy evaluation", "green"),
        ({"success__end": [0.6, 0.9, 0.7]}, "Greedy evaluation", "amber"),
        ({"success__end": [0.6, 0.9, 0.3]}, "Greedy evaluation", "red"),
        ({"success__end": [0.6]}, "Greedy evaluation", "not recorded"),
        ({"success__end": [0.6, 0.6], "success__episodes": [10, 10]}, "Greedy evaluation", "amber"),
        (
            {"success__end": [0.6, 0.6], "collect__success_end": [0.6, 0.9]},
            "Greedy evaluation",
            "amber",
        ),
        (
            SOFT | {"critic__earned_explained": [0.2, 0.1, 0.0, -0.1, -0.2, -0.2]},
            "Predicted and actual return",
            "red",
        ),
        (
            {"critic__earned_explained": [-0.1] * 6, "advantage__std": [0.0]},
            "Predicted and actual return",
            "amber",
        ),
        (
            {"critic__explained_variance": [-0.4, 0.1, 0.2, 0.6]},
            "Predicted and actual return",
            "green",
        ),
        ({"collect__success_end": [0.0, 0.01]}, "Curriculum", "red"),
        ({"collect__success_end": [0.05]}, "Curriculum", "amber"),
        ({"curriculum__frontier": [0.5], "curriculum__mastered": [0.0]}, "Curriculum", "green"),
        ({"curriculum__frontier": [0.0], "curriculum__mastered": [0.1]}, "Curriculum", "amber"),
        ({"policy__sample_spread": [0.3, 0.01]}, "Mode collapse", "red"),
        ({"policy__state_spread": [0.3, 0.05]}, "Mode collapse", "amber"),
        (
            {
                "success__end": [0.6, 0.6],
                "success__proxy": [1.0, 2.0],
                "reward__alarm": [1.0, 0.0],
            },
            "Reward hacking",
            "amber",
        ),
        ({"policy__grad_norm": [0.0]}, "Gradient norm", "red"),
        ({"advantage__std": [0.0]}, "Advantages", "red"),
        ({"advantage__used_std": [1.0], "advantage__used_mean": [2.0]}, "Advantages", "amber"),
    ],
)
def test_a_check_at_its_threshold(values: dict[str, list[float]], habit: str, state: str) -> None:
    """Of one habit alone."""
    verdict = by_habit(diagnose(series(**values)))[habit]
    assert verdict.state == state, verdict


@pytest.mark.parametrize(
    ("proxy", "success", "is_alarm"),
    [
        ([1, 2, 3], [0.5, 0.7, 0.9], False),
        ([1, 2, 3], [0.5, 0.7, 0.3], True),
        ([1, 2, 1], [0.5, 0.7, 0.3], False),  # the proxy fell, too: a bad policy, no hacking
        ([1, 2, 3], [0.5, 0.7, 0.68], False),  # chance
        ([1, 2], [0.5, 0.2], True),
    ],
)
def test_hacking_is_more_reward_for_less_success(
    proxy: list[float], success: list[float], is_alarm: bool
) -> None:
    """By more than chance, over 200 episodes."""
    assert bool(parted(proxy, success, 200)) is is_alarm
