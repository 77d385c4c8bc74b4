"""Policies that move an arm, and policies that go wrong while they do."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from vla_runtime.contract import ActionChunk, Observation, RobotSpec
from vla_runtime.robots.registry import make_robot
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig

CENTRE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 40.0])
AMPLITUDE, PERIOD_S = 15.0, 2.0


class SwayingPolicy:
    """Moves all joints to and fro; from the moment in which `trigger` exists it goes wrong.

    Args:
        robot: contract.
        how: what goes wrong: "never", "crash", "kill", "hang", "nan", "gone", or "wild", which
            commands 500 degrees from the beginning.
        trigger: a file.
    """

    chunk_length = 10

    def __init__(self, robot: RobotSpec, how: str, trigger: Path):
        self.spec, self._how, self._trigger = robot, how, trigger

    def initial_state(self) -> object:
        """None: the time is all that counts."""
        return None

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """A piece of a sine, or the fault."""
        steps = np.arange(self.chunk_length) / self.spec.control_rate_hz
        phase = 2 * np.pi * (observation.time_s + steps) / PERIOD_S
        actions = CENTRE + AMPLITUDE * np.sin(phase)[:, None]
        if self._how == "wild":
            actions = np.sign(np.sin(phase))[:, None] * np.full(6, 500.0)
        if self._trigger.exists():
            actions = self._fail(actions)
        return ActionChunk(actions.astype(np.float32)), state

    def _fail(self, actions: np.ndarray) -> np.ndarray:
        match self._how:
            case "crash":
                raise RuntimeError("the policy has crashed")
            case "gone":
                raise ConnectionError("the server has closed the connection")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case "nan":
                return actions * np.nan
        return actions


def load(source: str, robot: RobotSpec) -> SwayingPolicy:
    """The policy HOW:TRIGGER."""
    how, _, trigger = source.partition(":")
    return SwayingPolicy(robot, how, Path(trigger))


if __name__ == "__main__":
    # A run that another process can kill: ROBOT POLICY LIMITS OUT.
    robot_text, policy, limits, out = sys.argv[1:]
    run_robot(
        make_robot(robot_text),
        RunConfig(robot_text, policy, "sway", limits=Path(limits), out=Path(out), priority=0),
        load,
    )
