"""The comparison of learners: its statistics by hand, its refusals, and a toy run to the end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vla_runtime.atomic_folder import digest

from policies.evaluation.habits.run_metrics import RunMetrics
from policies.preferences.judges import ScriptedJudge
from policies.reinforcement.dsrl import NotSteerableError
from scripts import cli, learners
from scripts.evaluate import EvaluateConfig
from scripts.learners import Job, LearnersConfig
from scripts.learners_table import Trained, write_results
from scripts.outcomes import play_once
from scripts.policy_loading import Candidate
from vla.checkpoint.folder import CheckpointError


def trained(method: str, seed: int, solved: int, **about: Any) -> Trained:
    """A run that solves the first so many of twenty states."""
    outcomes = np.arange(20) < solved
    spent = {"collection_steps": 1000 * (method != "clone"), "selection_steps": 40}
    return Trained(method, seed, outcomes, outcomes, spent, **about)


def logged(*success: float, start: int = 0) -> RunMetrics:
    """A run that was evaluated every 100 control steps."""
    steps = range(len(success))
    return RunMetrics(
        {
            "success/end": dict(zip(steps, success, strict=True)),
            "ledger/collection_steps": {step: start + 100.0 * step for step in steps if step},
        }
    )


def test_the_table_by_hand(tmp_path: Path) -> None:
    """Ten discordant states of each of two seeds: the difference, Holm's factor, and the order."""
    runs = [
        *(trained("clone", seed, 5) for seed in (0, 1)),
        *(trained("slow", seed, 6, metrics=logged(0.2, 0.3)) for seed in (0, 1)),
        *(trained("near", seed, 15, seconds=90.0, metrics=logged(0.2, 0.9)) for seed in (0, 1)),
        *(trained("best", seed, 16, metrics=logged(0.2, 0.5, 0.95)) for seed in (0, 1)),
    ]
    lines = write_results(tmp_path, "FetchPush", runs).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines[2:6]}
    assert list(cells) == ["best", "near", "slow", "clone"]
    assert cells["best"][1:4] == ["80.0, 80.0", "80.0%", "80.0%"]
    assert cells["best"][4].startswith("+55.0 [")
    # Two states of forty differ: p = 0.5, and it is the larger of two tests.
    assert cells["near"][5] == "0.5, cannot be told apart"
    # Twenty states, all one way: 2 * 2**-20, times two tests.
    assert cells["slow"][5] == f"{2 * 2 * 2**-20:.2g}"
    assert (cells["best"][8], cells["near"][8]) == ("200 (2 of 2)", "100 (2 of 2)")
    assert cells["slow"][8] == "never"
    assert cells["near"][9] == "2"
    assert (cells["clone"][6], cells["clone"][8]) == ("0", "")


def test_a_table_while_seeds_are_missing_compares_those_that_are_there(tmp_path: Path) -> None:
    """Pairs are of the same clone."""
    runs = [trained("clone", 0, 5), trained("clone", 1, 20), trained("ppo", 0, 10)]
    ppo = write_results(tmp_path, "FetchPush", runs).splitlines()
    assert next(line for line in ppo if "| ppo" in line).split(" | ")[4].startswith("+25.0 [")


def test_control_steps_are_counted_from_the_clone() -> None:
    """Which may have been refined before."""
    run = trained("ppo", 0, 5, metrics=logged(0.1, 0.2, 0.92, start=5000), counted_from=5000)
    assert run.curve().steps == [0, 100, 200]
    assert run.steps_to_good() == 200


def test_a_reward_model_of_other_comparisons_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of fewer control steps."""
    job = Job("reward_model", Path("clone"), 0, tmp_path)
    for folder in ("comparisons", "reward"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "comparisons" / "comparisons.jsonl"
    file.write_text("{}\n")
    settings = {"settings": {"comparisons": digest(file)}}
    (tmp_path / "reward" / "run.json").write_text(json.dumps(settings))
    monkeypatch.setattr(learners, "_compare", lambda *_: file.parent)
    monkeypatch.setattr(learners, "_refine", lambda *_: Path("best"))
    config = LearnersConfig((Path("clone"),))
    assert learners._reward_model(config, job) == Path("best")
    file.write_text("{}\n{}\n")
    with pytest.raises(ValueError, match="was fitted to other comparisons than there are now"):
        learners._reward_model(config, job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods must be one or more"),
        ({"methods": ("ppo", "ppo")}, "each of them once"),
        ({"clones": ()}, "clones must be one or more"),
        ({"episodes": 0}, "episodes"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(ValueError, match=message):
        LearnersConfig(**{"clones": (Path("clone"),), **changes})


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has hardly begun to learn."""
    folder = tmp_path_factory.mktemp("learners")
    small = ("--task", "FetchReach", "--num-envs", "2", "--selection-episodes", "2")
    collect = ("collect", *small[:2], "--episodes", "3", "--workers", "1")
    assert cli.main([*collect, "--root", str(folder / "data")]) == 0
    learning = ("--updates", "10", "--batch", "16", "--data", str(folder / "data"))
    assert cli.main(["pretrain", *small, *learning, "--out", str(folder / "clone")]) == 0
    return folder / "clone" / "best"


def small(clone: Path, **changes: Any) -> LearnersConfig:
    """A comparison of two states."""
    settings: dict[str, Any] = {
        "methods": ("reinforce", "dpo"),
        "task": "FetchReach",
        "control_steps": 800,
        "evaluate_every": 400,
        "selection_episodes": 2,
        "episodes": 2,
        "num_envs": 2,
        "out": clone.parents[1] / "learners",
    }
    return LearnersConfig((clone,), **{**settings, **changes})


@pytest.mark.render
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("td4",)}, "no method 'td4'; valid: ppo, .*dsrl, dpo, reward_model, dagger"),
        ({"methods": ("dsrl",)}, "clone with the head flow"),
        ({"control_steps": 500}, "must be multiples of 10,000"),
        ({"demonstrations": Path("nowhere"), "methods": ("dagger",)}, "no demonstrations in now"),
        ({"clones": (Path("nowhere"),)}, "nowhere"),
        (
            {"control_steps": 10_000, "evaluate_every": 10_000, "methods": ("grpo:group_size=16",)},
            "groups of 16 episodes, of which an iteration of 200 is no multiple",
        ),
    ],
)
def test_what_would_stop_it_later_is_refused_first(
    clone: Path, changes: dict[str, Any], message: str
) -> None:
    """Nothing has been written."""
    config = small(clone, methods=("ppo",))
    config = LearnersConfig(**{**vars(config), "out": clone.parents[1] / "refused", **changes})
    with pytest.raises((ValueError, OSError, NotSteerableError, CheckpointError), match=message):
        learners.main(config)
    assert not config.out.exists()


@pytest.mark.render
def test_a_method_with_settings_is_played(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name has a "=" of its own; what one task led to is no outcome of another."""
    played: list[tuple[str, str]] = []

    def play(candidate: Candidate, config: Any, seeds: Any) -> tuple[Any, None]:
        played.append((candidate.name, config.task))
        outcomes = np.ones(len(seeds), dtype=bool)
        return SimpleNamespace(success_at_end=outcomes, success_ever=outcomes), None

    monkeypatch.setattr("scripts.outcomes.play", play)
    method = "grpo:group_size=4"
    for task in ("FetchReach", "FetchPush", "FetchPush"):
        run = learners._play(small(clone, task=task), method, 0, clone, tmp_path / "lr=0.1")
        assert (run.method, run.at_end.tolist()) == (method, [True, True])
    assert played == [(method, "FetchReach"), (method, "FetchPush")]


def test_what_cannot_be_written_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    """Neither the folder of a comparison, nor a file of outcomes."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="cannot write"):
        learners.main(LearnersConfig((Path("nowhere"),), out=file / "below"))

    def begun() -> Candidate:
        raise AssertionError("a policy is being loaded")

    with pytest.raises(NotADirectoryError, match="cannot write"):
        play_once(file / "s0" / "outcomes.json", {}, begun, EvaluateConfig(episodes=1))


@pytest.mark.slow
@pytest.mark.render
def test_it_runs_to_the_end_and_repeats_nothing(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods at toy size; a second call trains and plays nothing."""
    monkeypatch.setattr(learners, "_episodes", lambda name: 8)
    # So few episodes may all fail, and whether they do depends on rounding: here none are alike.
    monkeypatch.setattr(ScriptedJudge, "value", lambda _, segment, played: played.actions[0, 0])
    config = small(clone)
    assert learners.main(config) == 0
    out = config.out
    found = json.loads((out / "results.json").read_text())
    assert [run["method"] for run in found] == ["clone", "reinforce", "dpo"]
    assert found[1]["curve"]["control_steps"] == [0, 400, 800]
    # The comparisons' episodes come before the first gradient step.
    assert set(found[2]["curve"]["control_steps"]) == {800}
    assert found[2]["spent"]["comparisons"] == 4 * 6
    assert "<svg" in (out / "results.html").read_text()
    kept = [*out.rglob("*.safetensors"), *out.rglob("seconds.json")]
    assert len({file.name for file in kept}) > 1
    written = {file: file.stat().st_mtime_ns for file in kept}

    def refuse(*arguments: Any) -> None:
        raise AssertionError("played again")

    monkeypatch.setattr("scripts.outcomes.play", refuse)
    assert learners.main(config) == 0
    # Also the seconds: looking for something to do is no training.
    assert written == {file: file.stat().st_mtime_ns for file in written}
    assert len([*out.rglob("*.safetensors")]) == len(kept) - 2
    assert json.loads((out / "results.json").read_text())[1]["curve"] == found[1]["curve"]
