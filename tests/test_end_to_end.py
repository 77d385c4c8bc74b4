"""From nothing to a report, as a person types it: collect, clone, refine, evaluate, load."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.evaluation.speed import time_decisions
from scripts import cli, evaluate
from vla.contract import Observation
from vla.policy import load_policy
from vla.processing.processor import collate

# Acts on the same observation in a fresh process, and prints the chunk's bytes.
ACT = """
import sys
import numpy as np
from vla.contract import Observation
from vla.policy import load_policy
from vla.processing.processor import collate

policy = load_policy(sys.argv[1])
seen = np.load(sys.argv[2])
observation = Observation(
    {c.name: seen[c.name] for c in policy.spec.cameras}, seen["proprio"], "reach the red target"
)
policy.reset(range(1))
for _ in range(2):
    print(policy.act(collate([observation], policy.spec)).numpy().tobytes().hex())
"""


def vla(*words: object) -> None:
    """`vla WORDS`, which has to succeed."""
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.render
def test_from_demonstrations_to_a_policy_that_acts_alike_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage at toy size; the refined checkpoint decides the same in a fresh process."""
    # Thirty decisions of each policy take longer than its episodes here.
    monkeypatch.setattr(evaluate, "time_decisions", partial(time_decisions, most=2))
    data, clone, refined, report = (
        tmp_path / name for name in ("data", "clone", "refined", "report")
    )
    task = ("--task", "FetchReach")
    small = (*task, "--num-envs", 2, "--selection-episodes", 2)
    vla("collect", *task, "--episodes", 3, "--root", data, "--workers", 1)
    vla("pretrain", *small, "--data", data, "--updates", 20, "--batch", 16, "--out", clone)
    learning = ("--iterations", 1, "--episodes", 2, "--warmup-iterations", 0)
    chosen = ("--reward", "distance", "--curriculum", "frontier:levels=2,candidates=2")
    vla("refine", *small, "--clone", clone / "best", "--out", refined, *learning, *chosen)
    assert_logged(refined)
    policies = ("--policies", f"clone={clone}", f"refined={refined}", "expert")
    playing = ("--episodes", 2, "--num-envs", 2, "--films", 1, "--film-size", 32)
    vla("evaluate", *task, *policies, *playing, "--out", report)

    played = json.loads((report / "report.json").read_text())["policies"]
    assert [row["name"] for row in played] == ["clone", "refined", "expert"]
    assert played[2]["success_at_end"]["value"] == 1.0
    judged = {verdict["habit"]: verdict["state"] for verdict in played[1]["habits"]["verdicts"]}
    assert judged["Reward hacking"] != "not recorded"
    assert played[2]["habits"] is None
    assert "base64" in (report / "report.html").read_text(), "films are in the page"

    checkpoint = refined / "step_000001"
    assert_moved(clone / "best", checkpoint)
    assert_acts_alike_elsewhere(checkpoint, tmp_path)


def assert_logged(refined: Path) -> None:
    """The reward and the curriculum that were chosen are the run's, and are resumed with it."""
    settings = json.loads((refined / "run.json").read_text())["settings"]
    assert settings["origin"]["reward"] == "distance"
    assert settings["curriculum"]["levels"] == 2
    rows = [json.loads(line) for line in (refined / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["success/proxy"] != rows[0]["success/return"]
    assert "curriculum/frontier" in rows[1]


def assert_moved(clone: Path, refined: Path) -> None:
    """PPO changed the actor, and nothing that perceives."""
    before, after = (load_policy(folder).model.state_dict() for folder in (clone, refined))
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved
    assert all(name.startswith("actor.") for name in moved)


def assert_acts_alike_elsewhere(checkpoint: Path, folder: Path) -> None:
    """Bit for bit, twice in a row, on a random observation."""
    policy = load_policy(checkpoint)
    spec, rng = policy.spec, np.random.default_rng(0)
    images = {
        c.name: rng.integers(256, size=(c.height, c.width, 3), dtype=np.uint8) for c in spec.cameras
    }
    proprio = rng.uniform(spec.proprio.low, spec.proprio.high).astype(np.float32)
    np.savez(folder / "seen.npz", allow_pickle=False, proprio=proprio, **images)
    run = subprocess.run(
        [sys.executable, "-c", ACT, checkpoint, folder / "seen.npz"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    observation = Observation(images, proprio, "reach the red target")
    policy.reset(range(1))
    here = [policy.act(collate([observation], spec)).numpy().tobytes().hex() for _ in range(2)]
    assert run.stdout.split() == here
