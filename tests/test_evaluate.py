"""`vla evaluate`: from names on a command line to a report with films."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shlex
from pathlib import Path

import av
import pytest
import torch
import tyro
from rich.progress import Progress
from torch.utils.tensorboard import SummaryWriter

from policies.evaluation.report.data import Curve
from scripts import policy_loading
from scripts.evaluate import EvaluateConfig, _seeds, _training_steps, goals_of, main, play
from scripts.policy_loading import (
    Entrant,
    SwappedVecEnv,
    make_built_in,
    make_env,
    other_instruction,
    read_entrant,
    require_comparable,
)
from scripts.provenance import command_line, machine_facts
from sim.tasks.registry import make_task
from vla.contract import ContractMismatchError


class Staring:
    """Stands for a trained policy: moves if it sees anything, and knows which checkpoint it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = make_task("FetchReach", image_size=32).spec

    def reset(self, indices):
        """Nothing to forget."""

    def act(self, observation):
        """One everywhere in the light, zero in the dark."""
        light = max(float(image.float().mean()) for image in observation.images.values())
        return torch.full((len(observation), 5, 4), float(light > 0))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as a training leaves it: run.json, events, and a best checkpoint."""
    folder = tmp_path / "clone"
    (folder / "best").mkdir(parents=True)
    described = {"config": {"learning_rate": 3e-4}, "command": "vla pretrain --seed 3"}
    (folder / "run.json").write_text(json.dumps(described))
    with SummaryWriter(str(folder)) as writer:
        for step in (1, 2, 3):
            writer.add_scalar("time/simulator_steps", 1000 * step, step)
    monkeypatch.setattr(policy_loading, "load_policy", lambda folder, *_: Staring(folder))
    return folder


@pytest.mark.render
def test_the_command_writes_a_report_with_films_that_play(run, tmp_path, capsys):
    """The real simulator, a checkpoint against the expert: numbers, films and table agree."""
    config = EvaluateConfig(
        task="FetchReach",
        policies=(f"clone={run}", "expert"),
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
    assert data["reference"] == "clone"
    assert (clone["success_at_end"]["value"], expert["success_at_end"]["value"]) == (0, 1)
    assert expert["difference"]["only_ours"] == 3
    assert [e["seed"] for e in expert["episodes"]] == [1_000_000, 1_000_001, 1_000_002]
    assert (clone["training_steps"], expert["training_steps"]) == (3000, 0)
    assert data["configuration"]["clone"] == {"learning_rate": 3e-4}
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


@pytest.mark.parametrize(
    ("name", "steps"), [("best", 2000), ("step_000001", 1000), ("final", 3000)]
)
def test_training_counts_up_to_the_checkpoint(name, steps, tmp_path):
    """Not what the run did afterwards; all of it where the checkpoint does not say when."""
    checkpoint = tmp_path / name
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    curves = {
        "collect/simulator_steps": Curve([1, 2, 3], [1000.0, 2000.0, 3000.0]),
        "success/end": Curve([0, 1, 2, 3], [0.5, 0.9, 0.9, 0.6]),
    }
    entrant = Entrant("refined", str(checkpoint), Staring(checkpoint))
    assert _training_steps(entrant, curves) == steps


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
    with Progress(disable=True) as progress:
        result = play(read_entrant(str(run), "cpu", "FetchReach"), config, [1_000_000], progress)
        played = result.episodes.episodes[0].actions
    assert (played == (0 if blank else 1)).all()


def test_a_run_stands_for_its_best_checkpoint(run):
    """A run folder, the checkpoint in it, and what each belongs to."""
    for folder in (run, run / "best"):
        entrant = read_entrant(f"clone={folder}", "cpu", "FetchReach")
        assert entrant.run_folder == run
        assert entrant.source == str(folder)
        assert isinstance(entrant.policy, Staring)
        assert entrant.policy.folder == run / "best" or folder != run


def test_entrants_are_read_or_refused_by_name(tmp_path):
    """Built-in names, renamed ones, and an error that lists what is valid."""
    assert read_entrant("expert", "cpu", "FetchPush") == Entrant("expert", "expert")
    assert read_entrant("ceiling=planner:cem", "cpu", "FetchPush") == Entrant(
        "ceiling", "planner:cem"
    )
    with pytest.raises(ValueError, match=r"no folder.*planner:mppi"):
        read_entrant(f"clone={tmp_path / 'missing'}", "cpu", "FetchPush")


def test_what_cannot_be_compared_is_refused_before_anything_runs():
    """Names, references and contracts."""
    expert, random = Entrant("expert", "expert"), Entrant("random", "random")
    require_comparable([expert, random], "FetchPush", "random")
    with pytest.raises(ValueError, match="different names"):
        require_comparable([expert, expert], "FetchPush", "expert")
    with pytest.raises(ValueError, match="reference 'clone'"):
        require_comparable([expert], "FetchPush", "clone")

    class Trained:
        spec = make_task("FetchPush", image_size=48).spec

    trained = Trained()
    same = Entrant("clone", "runs/a", trained)  # type: ignore[arg-type]
    require_comparable([same], "FetchPush", "clone")
    trained.spec = dataclasses.replace(trained.spec, control_rate_hz=10.0)
    with pytest.raises(ContractMismatchError, match=r"runs/a[\s\S]*control_rate_hz"):
        require_comparable([same], "FetchPush", "clone")


def test_swapped_words_belong_to_the_scene_but_ask_for_something_else():
    """Another block, zone or verb; a task with one meaning has nothing to swap."""
    task = make_task("Tabletop")
    data = task.make_data()
    words = set()
    for seed in range(1_000_000, 1_000_010):
        own = task.reset(data, seed).instruction
        other = other_instruction(task, seed)
        assert other != own
        assert other == other_instruction(task, seed)
        words.add(other)
    assert len(words) > 4
    with pytest.raises(ValueError, match="no instruction to swap"):
        other_instruction(make_task("FetchPush"), 0)


def test_a_swapped_environment_keeps_the_goal_and_changes_the_words():
    """Privileged goal as without the swap, instruction different."""
    entrant, seeds = Entrant("random", "random"), [1_000_000, 1_000_001]
    seen = []
    for swap in (False, True):
        with make_env(entrant, "Tabletop", 2, 1, "train", swap) as env:
            assert isinstance(env, SwappedVecEnv) is swap
            env.reset([0, 1], seeds)
            seen.append(env.observe())
            assert make_built_in("zero", env, seed=0).act(seen[-1][0]).shape == (2, 1, 4)
    (plain, state), (swapped, swapped_state) = seen
    assert (state == swapped_state).all()
    assert all(a != b for a, b in zip(plain.instructions, swapped.instructions, strict=True))


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
    config = EvaluateConfig("Tabletop", episodes=4, only=("red block", "purple zone"))
    seeds = _seeds(config)
    assert len(seeds) == 4
    assert seeds == sorted(seeds)
    assert set(goals_of("Tabletop", seeds)) == {"push, red block, purple zone"}
    with pytest.raises(ValueError, match="goals there: lift, green block"):
        _seeds(dataclasses.replace(config, only=("pink block",)))


def test_impossible_counts_are_refused():
    """Before any process is started."""
    for wrong in ({"episodes": 0}, {"num_envs": 0}, {"films": -1}, {"policies": ()}):
        with pytest.raises(ValueError, match="need policies"):
            EvaluateConfig(**wrong)
