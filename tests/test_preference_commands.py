"""`vla compare`, `reward`, `refine --reward`, `dpo` and `dagger`, as a person types them."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from safetensors.torch import load_file

from policies.imitation.demonstrations import Demonstrations
from policies.preferences.comparisons import ComparisonStore
from scripts import cli
from scripts.dagger import DaggerConfig
from sim.tasks.registry import make_task
from vla.policy import load_policy

TASK = ("--task", "FetchReach")
SMALL = (*TASK, "--num-envs", 2)
SELECTED = (*SMALL, "--selection-episodes", 2)

pytestmark = pytest.mark.render


def vla(*words: object) -> int:
    """`vla WORDS`."""
    return cli.main([str(word) for word in words])


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What `vla WORDS` says, which has to fail."""
    capsys.readouterr()
    assert vla(*words) == cli.USAGE_EXIT
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations."""
    folder = tmp_path_factory.mktemp("preferences") / "data"
    assert vla("collect", *TASK, "--episodes", 3, "--root", folder, "--workers", 1) == 0
    return folder


@pytest.fixture(scope="module")
def clone(data: Path) -> Path:
    """A clone of them that has hardly begun to learn."""
    out = data.parent / "clone"
    learning = ("--updates", 20, "--batch", 16)
    assert vla("pretrain", *SELECTED, "--data", data, *learning, "--out", out) == 0
    return out / "best"


@pytest.fixture(scope="module")
def store(clone: Path) -> Path:
    """Three states, two attempts each, judged by their returns."""
    out = clone.parents[1] / "comparisons"
    playing = ("--policies", clone, "--states", 3, "--attempts", 2)
    assert vla("compare", *SMALL, *playing, "--label-noise", 0, "--out", out) == 0
    return out


def prefer(store: Path, folder: Path, label: float = 1.0) -> Path:
    """A copy in which one of each pair is preferred: such short episodes are often ties."""
    shutil.copytree(store, folder)
    file = folder / "comparisons.jsonl"
    lines = [json.loads(line) | {"label": label} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_comparing_goes_on_where_it_stopped(store: Path, clone: Path, tmp_path: Path) -> None:
    """What is lost is played again to the same samples; what was judged is not judged again."""
    out = tmp_path / "comparisons"
    shutil.copytree(store, out)
    names = ComparisonStore(out).names()
    assert len(names) == 6
    before = (out / "comparisons.jsonl").read_text()
    assert len(before.splitlines()) == 3
    lost = out / "trajectories" / f"{names[3]}.safetensors"
    kept = load_file(lost)
    lost.unlink()
    playing = ("--policies", clone, "--states", 3, "--attempts", 2, "--label-noise", 0)
    table = tmp_path / "table.json"
    assert vla("compare", *SMALL, *playing, "--out", out, "--export", table) == 0
    assert {n: t.tolist() for n, t in load_file(lost).items()} == {
        n: t.tolist() for n, t in kept.items()
    }
    assert (out / "comparisons.jsonl").read_text() == before
    assert len(json.loads(table.read_text())) == 3


def test_more_attempts_leave_what_was_judged_as_it_is(
    store: Path, clone: Path, tmp_path: Path
) -> None:
    """Groups then mix old and new episodes; a judgement still speaks of those that were judged."""
    out = tmp_path / "comparisons"
    shutil.copytree(store, out)
    before = {file.name: file.read_bytes() for file in (out / "trajectories").iterdir()}
    playing = ("--policies", clone, "--states", 3, "--attempts", 3, "--label-noise", 0)
    assert vla("compare", *SMALL, *playing, "--out", out) == 0
    after = {file.name: file.read_bytes() for file in (out / "trajectories").iterdir()}
    assert len(after) == 9
    assert {name: after[name] for name in before} == before


def test_a_person_is_asked_what_is_not_answered(
    store: Path, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Films are of the segments that are compared; every answer is kept."""
    out = tmp_path / "comparisons"
    shutil.copytree(store, out)
    shown: dict[str, Any] = {}

    def run(server: Any) -> None:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for index in range(2):
                with urlopen(f"{server.url}film/{index}/first.mp4") as film:
                    shown[f"film {index}"] = film.read()
                body = json.dumps({"pair": index, "label": 1}).encode()
                urlopen(Request(f"{server.url}answer", body)).close()
        finally:
            server.shutdown()
            thread.join()

    monkeypatch.setattr("scripts.compare.JudgingServer.run", run)
    playing = ("--policies", clone, "--states", 3, "--attempts", 2)
    asking = ("--judge", "person", "--segment-chunks", 4, "--comparisons", 3, "--film-size", 32)
    assert vla("compare", *SMALL, *playing, *asking, "--out", out) == 0
    by_person = [c for c in ComparisonStore(out).comparisons if c.judge == "person"]
    assert [c.label for c in by_person] == [1, 1]
    assert all(c.pair.first.stop - c.pair.first.start == 4 for c in by_person)
    assert shown["film 0"][4:8] == b"ftyp"
    assert shown["film 0"] != shown["film 1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--export", "{file}/table.json"), "cannot write"),
        (("--export", "{folder}.json"), "it is a folder"),
        (("--judge", "person", "--film-size", "255"), "even height and width"),
        (("--judge", "person", "--port", "{port}"), "0 takes a free one"),
    ],
)
def test_what_comes_after_the_episodes_is_tried_before_them(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing has been loaded yet: there is no such policy."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {name: str(tmp_path / name) for name in ("file", "folder")}
        words = [word.format(port=taken.getsockname()[1], **names) for word in flags]
        playing = ("--policies", "nowhere", "--out", tmp_path / "out")
        assert message in refusal(capsys, "compare", *SMALL, *playing, *words)
    assert not (tmp_path / "out").exists()


def test_from_comparisons_to_a_reward_model_and_ppo(
    store: Path, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model says how good it is; what learned from it knows which one it was."""
    chosen = prefer(store, tmp_path / "comparisons")
    reward, out = tmp_path / "reward", tmp_path / "refined"
    fitting = ("--comparisons", chosen, "--epochs", 2, "--heldout-fraction", 0.34)
    assert vla("reward", *TASK, *fitting, "--out", reward) == 0
    assert "accuracy/heldout" in capsys.readouterr().out
    about = json.loads((reward / "reward.json").read_text())
    assert about["comparisons"] == {"train": 2, "heldout": 1}
    assert len((reward / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((reward / "run.json").read_text())["command"].startswith("vla reward")
    assert "exists: name a new folder" in refusal(
        capsys, "reward", *TASK, *fitting, "--out", reward
    )

    learning = ("--iterations", 1, "--episodes", 2, "--warmup-iterations", 0)
    refining = ("refine", *SELECTED, "--clone", clone, *learning, "--out", out)
    assert vla(*refining, "--reward", f"model:{reward}") == 0
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert len(settings["origin"]["reward"]) == 64
    assert "origin.reward" in refusal(capsys, *refining), "the task's own reward is another run"
    off_policy = ("--algorithm", "sac:hidden=16,batch_size=8", "--out", tmp_path / "sac")
    assert vla(*refining[:-2], *off_policy, "--reward", f"model:{reward}") == 0
    logged = (tmp_path / "sac" / "metrics.jsonl").read_text().splitlines()
    assert all("success/proxy" in json.loads(line) for line in logged)


def test_dpo_learns_from_comparisons_and_resumes(
    store: Path, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One epoch, then another; only the actor moves."""
    chosen = prefer(store, tmp_path / "comparisons")
    out = tmp_path / "dpo"
    learning = ("--heldout-fraction", 0.34, "--evaluate-every", 1, "--learning-rate", 1e-3)
    words = ("dpo", *SELECTED, "--clone", clone, "--comparisons", chosen, *learning, "--out", out)
    assert vla(*words, "--epochs", 1) == 0
    assert vla(*words, "--epochs", 2) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    before, after = (load_policy(f).model.state_dict() for f in (clone, out / "step_000002"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert all(name.startswith("actor.") for name in moved)
    with (chosen / "comparisons.jsonl").open("a") as file:
        file.write((chosen / "comparisons.jsonl").read_text().splitlines()[0] + "\n")
    assert "comparisons: " in refusal(capsys, *words, "--epochs", 3)


def test_what_cannot_work_is_refused_before_anything_runs(
    store: Path, clone: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other tasks, other policies, nothing to compare, no model, a teacher that is missing."""
    push = ("--task", "FetchPush", "--comparisons", store, "--out", tmp_path / "out")
    for command in ("reward", "dpo"):
        message = refusal(capsys, command, *push)
        assert "holds comparisons of FetchReach, not of FetchPush" in message
    ties = ("--comparisons", prefer(store, tmp_path / "ties", 0.5), "--out", tmp_path / "out")
    for command in (("reward", *TASK), ("dpo", *SELECTED, "--clone", clone)):
        assert "prefers one: nothing is learned from ties" in refusal(capsys, *command, *ties)
    once = ("--policies", clone, "--states", 2, "--attempts", 1, "--out", tmp_path / "once")
    assert "raise --attempts" in refusal(capsys, "compare", *SMALL, *once)
    none = ("--clone", clone, "--reward", f"model:{tmp_path}", "--out", tmp_path / "out")
    assert "no reward model in" in refusal(capsys, "refine", *SELECTED, *none)
    recorded = (*none, "--algorithm", "sac", "--demonstrations", data)
    with pytest.raises(SystemExit):
        vla("refine", *SELECTED, *recorded)
    assert "--demonstrations bring the task's own reward" in " ".join(
        capsys.readouterr().err.replace("│", " ").split()
    )
    named = ("--clone", clone, "--reward", "dense", "--out", tmp_path / "out")
    assert "no reward 'dense'; valid: distance, motion, model:FOLDER" in refusal(
        capsys, "refine", *SELECTED, *named
    )
    other = tmp_path / "l1"
    learning = ("--updates", 1, "--batch", 4, "--head", "l1", "--out", other)
    assert vla("pretrain", *SELECTED, "--data", data, *learning) == 0
    without = ("--policies", other / "best", "--out", tmp_path / "out")
    assert "L1Head does not have" in refusal(capsys, "compare", *SMALL, *without)
    theirs = ("--clone", other / "best", "--comparisons", store, "--out", tmp_path / "out")
    assert "another perception or another head" in refusal(capsys, "dpo", *SELECTED, *theirs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--label-noise", "0.5"], "label_noise must be at least 0 and at most 0.49"),
        (["compare", "--export", "a.csv"], "export ends in .json or .parquet"),
        (["dagger", "--teacher", "zero"], "no teacher 'zero'; valid: expert, planner:cem"),
        (["dagger", "--beta", "1.5"], "beta must be at least 0 and at most 1"),
        (["dagger", "--task", "None", "--data", "a"], "name a task"),
        (["dpo", "--beta", "0"], "beta must be above 0"),
    ],
)
def test_settings_are_checked_first(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of the setting."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    captured = capsys.readouterr()
    # The box around it breaks lines.
    assert message in " ".join((captured.out + captured.err).replace("│", " ").split())


def test_dagger_labels_what_the_clone_meets_and_resumes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds are data sets like those of the recorder; what is done is not done again."""
    out = tmp_path / "dagger"
    learning = ("--updates", 10, "--batch", 16, "--data", data, "--out", out)
    words = ("dagger", *SELECTED, "--episodes-per-round", 3, "--drift-episodes", 2, *learning)
    assert vla(*words, "--rounds", 1) == 0
    assert "distance from demonstrations" in capsys.readouterr().out
    drift = json.loads((out / "drift.json").read_text())
    assert drift["clone"]["steps"] == [*range(0, 51, 5)]
    assert len(drift["DAgger"]["distance"]) == 11
    labelled = out / "labelled" / "round_1"
    recorded = Demonstrations([data, labelled], 5).robots["fetch"]
    assert len(recorded) == len(Demonstrations([data], 5).robots["fetch"]) + 3 * 50
    before = (labelled / "meta" / "info.json").stat().st_mtime_ns
    log = (out / "round_1" / "metrics.jsonl").read_text()
    (out / "drift.json").unlink()
    assert vla(*words, "--rounds", 1) == 0
    assert json.loads((out / "drift.json").read_text()) == drift
    assert (labelled / "meta" / "info.json").stat().st_mtime_ns == before
    assert (out / "round_1" / "metrics.jsonl").read_text() == log
    more = ("--rounds", 1, "--episodes-per-round", 4)
    assert "episodes of other initial states: go on with" in refusal(capsys, *words, *more)
    assert (labelled / "meta" / "info.json").stat().st_mtime_ns == before
    ledger = json.loads((out / "round_1" / "best" / "ledger.json").read_text())
    assert ledger["demonstration_episodes"] == 3 + 3
    scores = [
        max(json.loads(line)["success/end"] for line in (file / "metrics.jsonl").open())
        for file in (out / "round_0", out / "round_1")
    ]
    chosen = out / ("round_1" if scores[1] >= scores[0] else "round_0") / "best"
    states = [load_policy(folder).model.state_dict() for folder in (chosen, out / "best")]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])

    def missing(self: Any, data: Any, episode: Any) -> None:
        raise ValueError("FetchReach has no expert")

    monkeypatch.setattr(type(make_task("FetchReach")), "expert_action", missing)
    fresh = (*words[:-1], tmp_path / "other")
    assert "FetchReach has no expert" in refusal(capsys, *fresh)
    assert not (tmp_path / "other").exists()


def test_every_setting_of_cloning_is_one_of_dagger() -> None:
    """Without a prefix, so that a line of `vla pretrain` can be taken over."""
    import tyro

    from scripts.provenance import command_line

    words = ["--head", "flow:steps=4", "--updates", "7", "--rounds", "2", "--seed", "3"]
    words += ["--backbone.tuning", "lora", "--embedded.width", "64"]
    config = tyro.cli(DaggerConfig, args=words)
    assert config.training.training.updates == 7
    assert tyro.cli(DaggerConfig, args=command_line("dagger", config).split()[2:]) == config
