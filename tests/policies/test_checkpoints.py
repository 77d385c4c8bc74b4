"""Resuming: exactly the run that was interrupted, and nothing that is another run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learners import files, make_trainer, same, weights
from point_env import PointVecEnv
from two_robots import tiny_policy

from policies.checkpoints import Checkpoints, DivergedError, ResumeError, differences
from policies.evaluation.habits.run_metrics import RunMetrics
from policies.optimisation import NotFiniteError, cosine, optimizer_step
from policies.reinforcement.a2c import A2CConfig
from policies.reinforcement.grpo import GRPOConfig
from policies.reinforcement.ppo import PPOConfig
from policies.reinforcement.reinforce import ReinforceConfig
from policies.reinforcement.rloo import RLOOConfig
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.trpo import TRPOConfig
from policies.run_folder import RunFolder
from vla.checkpoint.folder import CheckpointError, load_training_state
from vla.contract import VectorSpec
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.token import TokenHeadConfig


class KilledError(Exception):
    """What ends a process at an unlucky moment."""


def kill_at(step: int) -> Any:
    """A progress callback that ends the run there."""

    def progress(now: int, values: dict[str, float]) -> None:
        if now == step:
            raise KilledError

    return progress


def vla(env: PointVecEnv) -> Any:
    """A tiny vision-language-action policy whose head has dropout."""
    policy = tiny_policy(env.spec)
    policy.model.replace_actor(torch.zeros(4, 3, 1), GaussianHeadConfig(16, dropout=0.5))
    return policy


def tokens(env: PointVecEnv) -> Any:
    """A tiny one with a head of tokens, whose temperature falls during the run."""
    policy = tiny_policy(env.spec)
    policy.model.replace_actor(torch.zeros(4, 3, 1), TokenHeadConfig(ExpertConfig(8, 1, 1), 5))
    return policy


def small(env: PointVecEnv) -> Any:
    """A policy on the state."""
    torch.manual_seed(0)
    return StatePolicy(env, 2)


@pytest.mark.parametrize(
    ("method", "make"),
    [
        (PPOConfig(epochs=2), small),
        (A2CConfig(), small),
        (ReinforceConfig(), small),
        (TRPOConfig(), small),
        (GRPOConfig(group_size=3), small),
        (RLOOConfig(group_size=3), small),
        (PPOConfig(epochs=1), vla),
        (TRPOConfig(), tokens),
    ],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    method: Any, make: Any, tmp_path: Path
) -> None:
    """Two iterations, killed, and resumed in a new trainer: as straight through, bit for bit."""
    ends, logs = [], []
    for name in ("whole", "cut"):
        env = PointVecEnv(3, episode_length=4)
        trainer = make_trainer(tmp_path / name, method, make(env), env)
        if name == "cut":
            with pytest.raises(KilledError):
                trainer.run([0, 1], kill_at(2))
            torch.rand(100)  # a new process has another state of torch's generator
            env = PointVecEnv(3, episode_length=4)
            trainer = make_trainer(tmp_path / name, method, make(env), env)
        trainer.run([0, 1])
        assert trainer.iteration == 4
        ends.append(weights(trainer))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logs.append({line["step"]: line for line in map(json.loads, lines)})
    assert same(*ends)
    timed = ("time/collect_s", "time/learn_s")
    whole, cut = ({k: v for k, v in log[4].items() if k not in timed} for log in logs)
    assert whole == cut
    assert [*logs[0]] == [*logs[1]] == [0, 1, 2, 3, 4]


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    """Called again it names the best checkpoint, and the weights are the last ones."""
    first = make_trainer(tmp_path, iterations=1)
    best = first.run([0])
    before = files(best)
    again = make_trainer(tmp_path, iterations=1)
    assert again.run([0]) == best
    assert files(best) == before
    assert same(weights(first), weights(again))


def test_a_run_can_be_made_longer_but_not_shorter_than_it_is(tmp_path: Path) -> None:
    """Exploration then follows the line of the longer run."""
    make_trainer(tmp_path, iterations=2).run([0])
    before = files(tmp_path)
    with pytest.raises(ResumeError, match=r"training.iterations: 2 are done in the run, 1 now"):
        make_trainer(tmp_path, iterations=1).run([0])
    assert files(tmp_path) == before
    longer = make_trainer(tmp_path, iterations=4)
    longer.run([0])
    assert longer.iteration == 4
    saved = load_training_state(tmp_path / "step_000004")
    assert saved is not None
    assert saved["settings"]["training"]["iterations"] == 4


def other_contract(env: PointVecEnv) -> Any:
    """A policy for a stronger robot."""
    env.spec = replace(PointVecEnv.spec, action=VectorSpec(("x",), ("1",), (-2.0,), (2.0,)))
    return StatePolicy(env, 2)


def other_statistics(env: PointVecEnv) -> Any:
    """A policy whose data set has grown."""
    policy = tiny_policy(env.spec)
    processor = policy.processor
    assert processor.statistics is not None
    wider = replace(processor.statistics.action, max=np.array([3.25]))
    processor.statistics = replace(processor.statistics, action=wider)
    return policy


@pytest.mark.parametrize(
    ("start", "now", "changes", "message"),
    [
        (
            small,
            small,
            {"method": PPOConfig(gae_lambda=0.5)},
            "algorithm.gae_lambda: 0.95 in the run, 0.5 now",
        ),
        (small, small, {"critic": "features"}, "training.critic: privileged in the run, features"),
        (small, small, {"seed": 5}, "training.seed: 0 in the run, 5 now"),
        (small, small, {"evaluate_every": 2}, "training.evaluate_every: 1 in the run, 2 now"),
        (small, small, {"origin": {"clone": "b"}}, "origin.clone: a in the run, b now"),
        (small, small, {"method": A2CConfig()}, "algorithm.name: ppo in the run, a2c now"),
        (small, small, {"selection": [0, 1]}, "selection: 1 states, seeds 0 to 0 in the run, 2 st"),
        (small, lambda env: StatePolicy(env, 4), {}, "policy.dims.chunk_length: 2 in the run, 4"),
        (
            small,
            lambda env: StatePolicy(env, 2, GaussianHeadConfig(8)),
            {},
            "policy.head.hidden: 256 in the run, 8 now",
        ),
        (
            small,
            other_contract,
            {},
            r"policy.contract.action.high: \[1.0\] in the run, \[2.0\] now",
        ),
        (
            lambda env: tiny_policy(env.spec),
            other_statistics,
            {},
            r"policy.embodiments.point.statistics.action.max: .* in the run, \[3.25\] now",
        ),
    ],
)
def test_another_run_is_refused_and_nothing_is_written(
    start: Any, now: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The message lists what differs; the folder stays as it was, byte by byte."""

    def run(make: Any, changes: dict[str, Any]) -> None:
        env = PointVecEnv(3, episode_length=4)
        policy = make(env)
        changes = dict(changes)
        selection = changes.pop("selection", [0])
        method = changes.pop("method", None)
        origin = changes.pop("origin", {"clone": "a"})
        make_trainer(tmp_path / "run", method, policy, env, origin, iterations=1, **changes).run(
            selection
        )

    run(start, {})
    before = files(tmp_path / "run")
    with pytest.raises(ResumeError, match=rf"(?s)nothing was written.*{message}"):
        run(now, changes)
    assert files(tmp_path / "run") == before


def test_a_run_that_wrote_no_checkpoint_yet_is_not_mixed_with_another(tmp_path: Path) -> None:
    """Its `run.json` says what it was."""
    with pytest.raises(KilledError):
        make_trainer(tmp_path).run([0], kill_at(0))
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(ResumeError, match=r"training.seed: 0 in the run, 1 now"):
        make_trainer(tmp_path, seed=1).run([0])
    make_trainer(tmp_path, iterations=1).run([0])


def test_a_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """Its checkpoints do not say what resuming compares; no message advises to delete them."""
    make_trainer(tmp_path / "new").run([0])
    state = load_training_state(tmp_path / "new" / "step_000001")
    assert state is not None
    del state["settings"]
    policy = small(PointVecEnv(3, episode_length=4))
    policy.save(tmp_path / "old" / "step_000001", state)
    before = files(tmp_path / "old")
    with pytest.raises(ResumeError, match=r"earlier version.*nothing was written") as error:
        make_trainer(tmp_path / "old").run([0])
    assert "delete" not in str(error.value)
    assert files(tmp_path / "old") == before


def test_a_checkpoint_that_is_not_whole_is_passed_over_and_a_damaged_one_refused(
    tmp_path: Path,
) -> None:
    """A kill while writing leaves the one before; bytes that changed are never trained on."""
    make_trainer(tmp_path, iterations=2).run([0])
    (tmp_path / "step_000002" / "model.safetensors").unlink()
    resumed = make_trainer(tmp_path, iterations=2)
    resumed.run([0])
    assert resumed.iteration == 2
    state = tmp_path / "step_000002" / "training_state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="damaged"):
        make_trainer(tmp_path, iterations=2).run([0])


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    """A file in the way is named before anything runs."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"file/run: .*file is a file"):
        make_trainer(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_folder_says_what_it_holds_and_only_once_it_is_opened(tmp_path: Path) -> None:
    """Settings are read back as they were told; what is not finite is null in the log."""
    folder = RunFolder(tmp_path / "run", {"task": "x"}, "vla x", {"clone": "a"})
    assert not (tmp_path / "run").exists()
    assert folder.settings() is None
    folder.open({"training": {"rate": 0.1}})
    folder.log(3, {"fine": 1.0, "loss": float("nan"), "kl": float("inf")})
    folder.close()
    assert folder.settings() == {"training": {"rate": 0.1}}
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["config"] == {"task": "x"}
    assert described["command"] == "vla x"
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 3, "fine": 1.0, "loss": None, "kl": None}
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is not JSON.*choose another folder"):
        folder.settings()


def test_a_line_of_metrics_that_a_kill_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    """The resumed run's first line would stick to its rest, and nothing could read the file."""
    folder = RunFolder(tmp_path, {})
    folder.open({})
    folder.log(1, {"a": 1.0})
    folder.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    again = RunFolder(tmp_path, {})
    again.open({})
    again.log(2, {"a": 3.0})
    again.close()
    assert RunMetrics.read(tmp_path).series["a"] == {1: 1.0, 2: 3.0}


def test_a_score_that_is_nan_is_an_error(tmp_path: Path) -> None:
    """No comparison can rank it; infinity of a first score can be ranked."""
    policy = small(PointVecEnv(1))
    checkpoints = Checkpoints(RunFolder(tmp_path, {}), policy)
    assert checkpoints.offer_best(-1.0)
    with pytest.raises(NotFiniteError, match=r"score .* is nan"):
        checkpoints.offer_best(float("nan"))
    assert not checkpoints.offer_best(-2.0)
    assert checkpoints.best_score == -1.0
    with (
        pytest.raises(DivergedError, match="diverged at step 7: the loss is inf"),
        checkpoints.stop_on_nan(7),
    ):
        raise NotFiniteError("the loss is inf")


def test_differences_are_listed_by_path() -> None:
    """Leaves alone, also where one side has none; what is free is not compared."""
    theirs = {"a": {"b": 1, "c": [1, 2]}, "gone": 3, "total": 5}
    ours = {"a": {"b": 2, "c": [1, 2]}, "new": None, "total": 9}
    assert differences(theirs, ours, "total") == [
        "a.b: 1 in the run, 2 now",
        "gone: 3 in the run, nothing now",
        "new: nothing in the run, None now",
    ]


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    """The weights stay as they were before it."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert optimizer_step(optimizer, (3 * weight).sum(), 1.0) == 3.0
    assert weight.item() == pytest.approx(0.0, abs=1e-5)
    before = weight.item()
    for bad in (weight.sum() * float("nan"), (weight - weight.detach()).sqrt().sum()):
        with pytest.raises(NotFiniteError, match=r"is (nan|inf)"):
            optimizer_step(optimizer, bad, 1.0)
    assert weight.item() == before


def test_the_learning_rate_is_a_function_of_the_step_alone() -> None:
    """Up in a line, down along a cosine to 0; a longer run has a longer cosine."""
    assert [cosine(step, 10, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(0, 8) == 1.0
    assert cosine(4, 8) == pytest.approx(0.5)
    assert cosine(8, 8) == 0.0
    assert cosine(8, 16) == pytest.approx(0.5)
