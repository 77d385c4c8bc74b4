"""The clone that is told true positions: it reads them, and refuses where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.bench import true_positions
from scripts.bench.true_positions import BenchTruePositionsConfig, TruePositionsPolicy
from sim.demonstrate import RecordConfig
from sim.record import record
from sim.vector import CpuVecEnv


def test_it_reads_where_things_are() -> None:
    """By the names of the privileged state, relative to gripper and object."""
    with CpuVecEnv("FetchPush", 2, render=False) as env:
        env.reset([0, 1], [3, 4])
        observation, privileged = env.observe()
        policy = TruePositionsPolicy(env, 4, 8.0)
        where, target = (
            privileged[:, [env.privileged_names.index(f"{name}_{axis}") for axis in "xyz"]]
            for name in ("object", "goal")
        )
        read = policy.read(observation.proprio, where, target)
        gripper = observation.proprio[:, :3]
        torch.testing.assert_close(read[:, -6:-3], where - gripper)
        torch.testing.assert_close(read[:, -3:], target - where)
        chunk = policy.act(observation)
    assert chunk.shape == (2, 4, env.spec.action.dim)
    assert (chunk.abs() <= 1).all()


def test_a_task_without_an_object_is_refused() -> None:
    """By the names that its state lacks."""
    lacks = r"lacks \['object_x', 'object_y', 'object_z'\]"
    with (
        CpuVecEnv("FetchReach", 1, render=False) as env,
        pytest.raises(ValueError, match=lacks),
    ):
        TruePositionsPolicy(env, 5, 8.0)


@pytest.mark.slow
@pytest.mark.render
def test_it_learns_what_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten demonstrations of the block that is picked up; chunks in full and step by step."""
    root = tmp_path / "data"
    record(RecordConfig(("FetchPickAndPlace",), 10, root, image_size=32))
    config = BenchTruePositionsConfig("FetchPickAndPlace", root, execute_steps=(5, 1), episodes=20)
    assert true_positions.main(config) == 0
    said = capsys.readouterr().out.splitlines()
    ever = [float(line.split()[-2].rstrip("%")) for line in said[-2:]]
    assert max(ever) >= 20


def test_more_steps_than_a_chunk_has_are_refused() -> None:
    """Before data are read."""
    with pytest.raises(ValueError, match="execute_steps must be at least 1 and at most 3"):
        BenchTruePositionsConfig(chunk_length=3, execute_steps=(3, 5))
