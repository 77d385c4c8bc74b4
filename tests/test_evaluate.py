"""`vla evaluate`: from names on a command line to a report with films, whatever happens between."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter

from policies.evaluation.speed import Speed
from scripts import evaluate, policy_loading
from scripts.evaluate import EvaluateConfig, main, play
from scripts.initial_states import choose_seeds, goals_of
from scripts.policy_loading import Candidate, read_policy, require_comparable
from scripts.provenance import command_line, machine_facts
from sim.seeds import DEVELOPMENT, FINAL, SELECTION
from sim.tasks.registry import make_task
from vla.checkpoint.ledger import Ledger
from vla.contract import ContractMismatchError

MEASURE_SPEED = evaluate.measure_speed


@pytest.fixture(autouse=True)
def no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring starts two environments a policy: one test has it done."""
    monkeypatch.setattr(evaluate, "measure_speed", lambda *_: Speed(0.001, 0.002, 10.0, 1))


class Staring:
    """Stands for a trained policy: moves if it sees anything, and knows which checkpoint it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger({"collection_steps": 3000})
        self.spec = make_task("FetchReach", image_size=32).spec

    def reset(self, indices):
        """Nothing to forget."""

    def act(self, observation):
        """One everywhere in the light, zero in the dark; never for more than one robot."""
        light = max(float(image.float().mean()) for image in observation.images.values())
        return torch.full((len(observation), 5, 4), float(light > 0))

    def compile(self):
        """Nothing to compile."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as a training leaves it: run.json, events, and a best checkpoint."""
    folder = tmp_path / "clone"
    (folder / "best").mkdir(parents=True)
    described = {"config": {"learning_rate": 3e-4}, "command": "vla pretrain --seed 3"}
    (folder / "run.json").write_text(json.dumps(described))
    with SummaryWriter(str(folder)) as writer:
        for step in (1, 2, 3):
            writer.add_scalar("success/end", 0.1 * step, step)
    monkeypatch.setattr(policy_loading, "load_policy", lambda folder, *_: Staring(folder))
    return folder


@pytest.mark.render
def test_the_command_writes_a_report_with_films_that_play(run, tmp_path, capsys, monkeypatch):
    """The real simulator, a checkpoint against the expert: numbers, films and table agree."""
    monkeypatch.setattr(evaluate, "measure_speed", MEASURE_SPEED)
    config = EvaluateConfig(
        task="FetchReach",
        policies=(f"evaluate={run}", "expert"),  # a policy may have any name
        episodes=3,
        out=tmp_path / "report",
        num_envs=2,
        num_workers=1,
        films=1,
        film_size=32,
    )
    assert main(config) == 0
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    clone, expert = data["policies"]
    assert data["reference"] == "evaluate"
    assert (clone["success_at_end"]["value"], expert["success_at_end"]["value"]) == (0, 1)
    assert expert["difference"]["only_ours"] == 3
    assert [e["seed"] for e in expert["episodes"]] == [1_000_000, 1_000_001, 1_000_002]
    assert (clone["ledger"], expert["ledger"]) == ({"collection_steps": 3000}, {})
    assert clone["curves"]["success/end"]["values"] == pytest.approx([0.1, 0.2, 0.3])
    for policy in (clone, expert):
        speed = policy["speed"]
        assert 0 < speed["latency_median_s"] <= speed["latency_p90_s"]
        assert speed["throughput_hz"] > 0
        assert speed["batch"] == 2
    assert data["configuration"]["policies"]["evaluate"] == {"learning_rate": 3e-4}
    assert data["commands"][0] == "vla pretrain --seed 3"
    assert "100.0%" in capsys.readouterr().out

    page = (tmp_path / "report" / "report.html").read_text()
    films = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    assert len(films) == 2, "one failure of the clone, one success of the expert"
    for film in films:
        with av.open(io.BytesIO(base64.b64decode(film))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 51
        assert (frames[0] != frames[-1]).any(), "something moves"


@pytest.mark.render
@pytest.mark.parametrize("blank", [False, True])
def test_blank_images_hide_the_world_from_a_checkpoint(run, tmp_path, blank):
    """The same policy moves in the light and stays in the dark."""
    config = EvaluateConfig(
        task="FetchReach",
        policies=(str(run),),
        episodes=1,
        out=tmp_path / "report",
        num_workers=1,
        films=0,
        blank_images=blank,
    )
    episodes, planning = play(read_policy(str(run), "cpu", "FetchReach"), config, [1_000_000])
    assert planning is None
    played = episodes.episodes[0].actions
    assert (played == (0 if blank else 1)).all()


def test_a_run_stands_for_its_best_checkpoint(run):
    """A run folder, the checkpoint in it, and what each belongs to."""
    for folder in (run, run / "best"):
        candidate = read_policy(f"clone={folder}", "cpu", "FetchReach")
        assert candidate.run_folder == run
        assert candidate.source == str(folder)
        assert candidate.make is not None
        first, second = candidate.make(), candidate.make()
        assert isinstance(first, Staring)
        assert first is not second, "each robot has its own memory"
        assert first.folder == run / "best"


def test_an_execution_is_refused_when_the_policy_is_read(run):
    """Before the policies that stand in front of it are played."""
    with pytest.raises(ValueError, match=r"'bogus' is none of chunk, receding:STEPS"):
        read_policy(f"clone={run}@bogus", "cpu", "FetchReach")


def test_what_cannot_be_compared_is_refused_before_anything_runs():
    """Names, references and contracts."""
    expert, random = Candidate("expert", "expert"), Candidate("random", "random")
    require_comparable([expert, random], "FetchPush", "random")
    with pytest.raises(ValueError, match="different names"):
        require_comparable([expert, expert], "FetchPush", "expert")
    with pytest.raises(ValueError, match="reference 'clone'"):
        require_comparable([expert], "FetchPush", "clone")

    spec = make_task("FetchPush", image_size=48).spec
    same = Candidate("clone", "runs/a", spec=spec)
    require_comparable([same], "FetchPush", "clone")
    slower = dataclasses.replace(same, spec=dataclasses.replace(spec, control_rate_hz=10.0))
    with pytest.raises(ContractMismatchError, match=r"runs/a[\s\S]*control_rate_hz"):
        require_comparable([slower], "FetchPush", "clone")


def test_swapped_goals_are_judged_beside_the_original_ones(tmp_path):
    """The expert obeys: it reaches the new goal, and the scene's own one by chance alone."""
    config = EvaluateConfig(
        task="Tabletop",
        policies=("expert", "zero"),
        episodes=4,
        out=tmp_path,
        num_envs=2,
        num_workers=1,
        films=0,
        swap_instructions=True,
    )
    assert main(config) == 0
    data = json.loads((tmp_path / "report.json").read_text())
    names = [policy["name"] for policy in data["policies"]]
    assert names == ["expert", "expert, original goal", "zero", "zero, original goal"]
    followed, original, *_ = data["policies"]
    assert followed["success_at_end"]["value"] >= 0.75
    assert original["success_at_end"]["value"] <= 0.25
    assert [e["length"] for e in followed["episodes"]] == [
        e["length"] for e in original["episodes"]
    ]
    with pytest.raises(ValueError, match="FetchPush: no other goal"):
        main(dataclasses.replace(config, task="FetchPush"))


def _config(folder: Path, **changes) -> EvaluateConfig:
    settings = {"task": "FetchReach", "policies": ("expert", "zero", "random"), "episodes": 3}
    small = {"num_envs": 2, "num_workers": 1, "films": 0}
    return EvaluateConfig(**{"out": folder, **settings, **small, **changes})


class Failing:
    """Stands for a built-in policy that breaks in its second episode."""

    def __init__(self, spec, error: BaseException) -> None:
        self.spec, self.error, self.decisions = spec, error, 0

    def reset(self, indices):
        """Nothing to forget."""

    def act(self, observation):
        """Zero, fifty times for two environments: then one more episode is left."""
        self.decisions += 1
        if self.decisions > 60:
            raise self.error
        return torch.zeros(len(observation), 1, 4)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_what_was_played_before_an_error_is_in_the_report(error, tmp_path, monkeypatch):
    """The policies before, and of the one that failed every episode that ended."""
    make = policy_loading.make_built_in

    def failing(kind: str, env, seed: int):
        return Failing(env.spec, error) if kind == "zero" else make(kind, env, seed)

    monkeypatch.setattr(policy_loading, "make_built_in", failing)
    with pytest.raises(type(error)):
        main(_config(tmp_path, reference="random"))
    data = json.loads((tmp_path / "report.json").read_text())
    (expert,) = data["policies"]
    assert expert["name"] == data["reference"] == "expert"
    assert expert["success_at_end"]["value"] == 1
    assert data["unfinished"]["name"] == "zero"
    assert type(error).__name__ in data["unfinished"]["reason"]
    assert [e["seed"] for e in data["unfinished"]["episodes"]] == [1_000_000, 1_000_001]
    assert "Stopped while <strong>zero" in (tmp_path / "report.html").read_text()


def _untouched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def played(*args):
        raise AssertionError("an episode was played")

    monkeypatch.setattr(evaluate, "play", played)
    return played


def test_what_cannot_be_written_is_refused_before_anything_is_played(tmp_path, monkeypatch):
    """A folder in which nothing can be made; what lies there stays."""
    _untouched(monkeypatch)
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    for out in (blocked, blocked / "report", Path("/proc/report")):
        with pytest.raises(OSError, match=str(out)):
            main(_config(out))
    assert blocked.read_text() == "mine"
    for name in ("report.json", "report.html"):
        out = tmp_path / name.replace(".", "_")
        (out / name).mkdir(parents=True)
        with pytest.raises(OSError, match=f"{name} is a folder"):
            main(_config(out))


def test_rows_of_one_name_are_refused_before_anything_is_played(tmp_path, monkeypatch):
    """Swapped instructions add a row a policy, whose name another policy may already have."""
    _untouched(monkeypatch)
    names = ("expert", "expert, original goal=zero")
    with pytest.raises(ValueError, match="two rows of one name"):
        main(_config(tmp_path, task="Tabletop", policies=names, swap_instructions=True))


@pytest.mark.render
def test_films_that_cannot_be_made_are_refused_before_anything_is_played(tmp_path, monkeypatch):
    """H.264 has even sides, a temporary folder is needed, and something that draws."""
    with pytest.raises(ValueError, match=r"film_size must be even.*241"):
        EvaluateConfig(film_size=241)
    with pytest.raises(ValueError, match=r"2 to 4096: 100000"):
        EvaluateConfig(film_size=100_000)
    _untouched(monkeypatch)
    config = _config(tmp_path / "out", films=1, film_size=32)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="missing"):
        main(config)
    monkeypatch.undo()
    _untouched(monkeypatch)
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(Exception, match="nonsense"):
        main(config)
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.render
def test_the_report_is_there_before_the_films(tmp_path, monkeypatch, capsys):
    """A disk that fills up while films are drawn costs the films."""

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.films.film", full)
    with pytest.raises(OSError, match="No space left"):
        main(_config(tmp_path, policies=("expert",), films=1, film_size=32))
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["policies"][0]["success_at_end"]["value"] == 1
    assert "report.html" in capsys.readouterr().out


def test_a_damaged_run_is_refused_before_anything_is_played(run, tmp_path, monkeypatch):
    """Its run.json belongs into the report."""
    _untouched(monkeypatch)
    for text, message in (("{", "not readable as JSON"), ("[]", "no configuration")):
        (run / "run.json").write_text(text)
        with pytest.raises(ValueError, match=f"run.json.*{message}"):
            main(_config(tmp_path / "out", policies=(f"clone={run}",)))


def test_evaluation_works_without_git(tmp_path, monkeypatch):
    """The report then says that the commit is not known."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "unknown" in machine_facts("cpu")["Commit"]
    assert main(_config(tmp_path / "out", policies=("zero",), episodes=1)) == 0
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "no git" in data["machine"]["Commit"]


def test_a_commit_is_that_of_this_code_alone(tmp_path, monkeypatch):
    """Installed inside another project's repository, that project's commit is not claimed."""
    from policies import run_folder

    if os.system("git --version > /dev/null") != 0:
        pytest.skip("there is no git")
    os.system(
        f"cd {tmp_path} && git init -q . && git -c user.name=a -c user.email=a@b "
        "commit -q --allow-empty -m theirs"
    )
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))
    assert run_folder.describe_machine()["git_commit"] is None


def test_names_in_brackets_are_names(tmp_path, capsys):
    """Neither the progress bar nor the table takes them for a colour."""
    policies = ("[/red]=zero", "[bold]=expert")
    assert main(_config(tmp_path, policies=policies, episodes=1)) == 0
    printed = capsys.readouterr().out
    assert "[/red]" in printed
    assert "[bold]" in printed
    assert "decisions/s at batch 1" in printed


def test_the_command_line_repeats_the_configuration(tmp_path):
    """Parsing what the report prints gives the configuration back."""
    config = EvaluateConfig(
        task="FetchReach",
        policies=("clone=runs/my run", "expert"),
        out=tmp_path,
        swap_instructions=True,
        title="A & B",
    )
    line = command_line("evaluate", config)
    words = shlex.split(line)
    assert words[:2] == ["vla", "evaluate"]
    assert tyro.cli(EvaluateConfig, args=words[2:]) == config
    assert command_line("evaluate", EvaluateConfig()) == "vla evaluate"


def test_the_machine_is_described():
    """Commit, versions and cores are there, whatever the machine."""
    facts = machine_facts("cpu")
    assert set(facts) == {"Commit", "Versions", "Hardware"}
    assert "mujoco 3." in facts["Versions"]
    assert "cores" in facts["Hardware"]


def test_only_states_with_the_named_goal_are_played():
    """In order, and as many as were asked for; a goal that there is not lists those there are."""
    seeds = choose_seeds("Tabletop", "development", 4, ("red block", "purple zone"))
    assert len(seeds) == 4
    assert seeds == sorted(seeds)
    assert set(goals_of("Tabletop", seeds)) == {"push, red block, purple zone"}
    with pytest.raises(ValueError, match="goals there: lift, green block"):
        choose_seeds("Tabletop", "development", 4, ("pink block",))


def test_states_have_names(capsys):
    """Development by default; the final ones come with a word of warning."""
    assert EvaluateConfig().states == "development"
    assert list(choose_seeds("FetchPush", "development", 2)) == [
        DEVELOPMENT.start + i for i in (0, 1)
    ]
    assert list(choose_seeds("FetchPush", "selection", 1)) == [SELECTION.start]
    assert not capsys.readouterr().out
    assert list(choose_seeds("FetchPush", "final", 1)) == [FINAL.start]
    assert "once" in capsys.readouterr().out
    with pytest.raises(ValueError, match="selection range"):
        choose_seeds("FetchPush", "selection", 200_000)


def test_nothing_to_evaluate_is_refused():
    """Numbers are checked in test_settings.py."""
    with pytest.raises(ValueError, match="at least one of --policies"):
        EvaluateConfig(policies=())
