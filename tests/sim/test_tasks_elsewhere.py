"""A new task is one file and one line, also in another package, for everything that uses tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from sim.tasks.base import TaskDeclarationError
from sim.tasks.registry import (
    TASKS,
    groundable_names,
    index_by_name,
    load_entry_point,
    make_task,
)

ROOT = Path(__file__).parents[2]

# Everything is asked for by the task's name alone, in a fresh process and its worker processes.
PROGRAM = """
if __name__ == "__main__":  # with the imports, which worker processes do not need
    import json, sys
    from pathlib import Path
    import numpy as np
    import torch
    from scripts.ground import grounding_set
    from scripts.plan import PlanConfig
    from scripts.plan import main as plan
    from scripts.presets import preset
    from sim.demonstrate import RecordConfig
    from sim.film import replay
    from sim.record import record
    from sim.scenes import ScenesConfig, make_scenes
    from sim.vector import CpuVecEnv
    out, found = Path(sys.argv[1]), {}
    with CpuVecEnv("PlanarReach", 2, 2, image_size=32, cameras=("top",)) as env:
        env.reset([0, 1], [0, 1])
        for _ in range(env.episode_length):
            step = env.step(env.expert_actions()[:, None])
        found["success"] = step.success.tolist()
        found["image"] = list(step.observation.images["top"].shape)
    scenes = make_scenes(ScenesConfig(("PlanarReach",), 20, out / "scenes", 32))[0]
    made = grounding_set(scenes)
    rng = np.random.default_rng(0)
    found["kinds"] = made.kinds
    found["asked"] = [made.ask(3, kind, "train", rng) for kind in made.kinds]
    found["prompts"] = [[p.text, p.object, p.target] for p in made.prompts]
    settings = RecordConfig(("PlanarReach",), 2, out / "data", noise=0.05, image_size=32, workers=1)
    found["frames"] = record(settings).frames
    found["preset"] = preset("PlanarReach").refine.task
    found["film"] = replay("PlanarReach", 0, np.zeros((3, 2), np.float32), 32, ("top",)).shape
    plan(PlanConfig("PlanarReach", episodes=1, threads=1))
    (out / "found.json").write_text(json.dumps(found))
"""


@pytest.mark.render
def test_a_task_of_another_package_works_everywhere(tmp_path: Path) -> None:
    """Stepped, drawn, recorded, grounded, asked about, filmed and planned, without a mention."""
    installed = tmp_path / "site"
    described = installed / "planar_reach-1.0.dist-info"
    described.mkdir(parents=True)
    (installed / "planar_reach.py").write_text((ROOT / "tests/sim/planar_reach.py").read_text())
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: planar-reach\nVersion: 1.0\n")
    # The one line.
    (described / "entry_points.txt").write_text("[vla_sim.tasks]\nreach=planar_reach:PlanarReach\n")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["success"] == [[True], [True]]
    assert found["image"] == [2, 32, 32, 3]
    assert found["kinds"] == ["caption", "where", "gripped"]
    questions = dict(zip(found["kinds"], found["asked"], strict=True))
    assert questions["caption"][1] == "from left to right target, gripped nothing"
    assert "target" in questions["where"][0]
    assert ["please go to red", "target", "target"] in found["prompts"]
    assert found["frames"] > 10
    assert found["preset"] == "PlanarReach"
    assert found["film"] == [4, 32, 32, 3]
    assert "success end   1.000" in run.stdout


@pytest.mark.parametrize("name", groundable_names())
def test_what_a_task_calls_static_stays_where_it_is(name: str) -> None:
    """Policies average it over an episode: whatever expert and random motion do to the blocks."""
    task = make_task(name)
    data = task.make_data()
    for seed in range(2):
        rng = np.random.default_rng(seed)
        episode = task.reset(data, seed)
        motion = task.random_motion(rng) if seed % 2 else task.expert_action
        before = task.points(data, episode)
        for _ in range(task.episode_length):
            task.step(data, episode, motion(data, episode))
            now = task.points(data, episode)
            for point in task.static_points:
                np.testing.assert_array_equal(now[point], before[point], err_msg=point)
        assert np.linalg.norm(now["gripper"] - before["gripper"]) > 0.005


@pytest.mark.parametrize("name", groundable_names())
def test_what_a_task_states_fits_its_scenes(name: str) -> None:
    """Every phrase names a point, every instruction's target is static, every action exists."""
    task = make_task(name)
    data = task.make_data()
    named = set(task.points(data, task.reset(data, 0)))
    assert {"gripper", "target", *task.static_points} <= named
    assert {*task.object_phrases, *task.place_phrases} <= named
    assert {*task.rest_action, *task.grip_actions} <= {*task.spec.action.names}
    assert set(task.nouns) <= named
    assert {phrase for pair in task.unseen_pairs for phrase in pair} <= named
    for phrasing in ("train", "heldout"):
        expressions = task.referring_expressions(phrasing)
        assert {e.target for e in expressions} <= set(task.static_points)
        assert {e.object for e in expressions} <= named
        texts = [e.text for e in expressions]
        assert task.reset(data, 3, phrasing).instruction in texts
        assert len(set(texts)) == len(texts)


def test_two_tasks_of_one_name_are_refused() -> None:
    """Also where one of them comes from another package."""
    with pytest.raises(ValueError, match=r"'FetchPush' is claimed by .*: rename yours, or"):
        index_by_name((*TASKS.values(), TASKS["FetchPush"]))


@pytest.mark.parametrize("name", ["", "arm/reach", "arm:reach", "reach@50"])
def test_a_name_that_nobody_could_ask_for_is_refused(name: str) -> None:
    """Its marks mean something else in a task's name."""
    kind = type("Mine", (TASKS["FetchPush"],), {"name": name})
    with pytest.raises(ValueError, match=f"Mine.* has the task name '{name}'; a name is needed"):
        index_by_name([kind])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("line_task:Missing", "cannot be imported, line_task:Missing .AttributeError"),
        ("no_such_package.tasks:Task", "cannot be imported, no_such.* .ModuleNotFoundError"),
        ("line_task:Line", "names line_task:Line, which is no class derived"),
        ("sim.tasks.base:Task", "which is abstract: the class lacks"),
    ],
)
def test_another_package_whose_task_fails_is_named(value: str, message: str) -> None:
    """It would end every command, so people have to know which one to mend or uninstall."""
    point = EntryPoint("mine", value, "vla_sim.tasks")
    with pytest.raises(TaskDeclarationError, match=f"a package .*{message}"):
        load_entry_point(point)
    found = load_entry_point(EntryPoint("mine", "line_task:LineTask", "vla_sim.tasks"))
    assert index_by_name([found])["Line"] is found
