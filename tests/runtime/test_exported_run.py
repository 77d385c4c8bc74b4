"""An exported folder drives a robot through the real control loop, chunk joined to chunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from loop_doubles import NumpyRobot
from toy_policy import LENGTH, SPEC, write_toy
from vla_runtime.contract import MotionLimits
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.safety.gate import SafetyConfig

# It may go anywhere at once, so that commands are those of the policy.
ROBOT = replace(SPEC, motion=MotionLimits(("position",), (1e3,), (1e6,)))


def commands(folder: Path, policy: Path, execution: str) -> np.ndarray:
    """What the robot is told within two seconds, [steps]."""
    robot = NumpyRobot(ROBOT)
    config = RunConfig(
        "toy",
        str(policy),
        "go left",
        execution=execution,
        seconds=2.0,
        out=folder / execution.replace(":", ""),
        priority=0,
        safety=SafetyConfig(heartbeat_s=2.0, max_observation_age_s=5.0),
    )
    report = run_robot(robot, config)
    assert report.succeeded, report.ended
    return robot.commands[:, 0]


def test_real_time_chunks_are_inpainted_by_the_exported_graph(tmp_path: Path) -> None:
    """Its `act` counts up from where the robot is; its `inpaint` gives half of what it joins to."""
    policy = write_toy(tmp_path / "toy")
    free = commands(tmp_path, policy, f"receding:{LENGTH - 1}")
    assert free[-1] == SPEC.action.high[0], "counted up to the limit"
    joined = commands(tmp_path, policy, f"realtime:{LENGTH - 1}")
    np.testing.assert_array_equal(joined[:LENGTH], [0, 1, 2])
    assert joined.max() == LENGTH - 1, "no chunk but the first is free"
    assert joined[-1] == 0
