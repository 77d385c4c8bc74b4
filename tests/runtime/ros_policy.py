"""A policy that moves the arm of `ros_arm` to and fro."""

from __future__ import annotations

import numpy as np
from vla_runtime.contract import ActionChunk, Observation, RobotSpec

CENTRE, AMPLITUDE, PERIOD_S = np.array([0.0, 0.0, 40.0]), np.array([15.0, 0.4, 20.0]), 2.0


class SwayingPolicy:
    """One piece of a sine after the other."""

    # A second: on a busy machine a decision may take long.
    chunk_length = 50

    def __init__(self, robot: RobotSpec) -> None:
        self.spec = robot

    def initial_state(self) -> object:
        """None: the time is all that counts."""
        return None

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """[chunk_length, action.dim], in the contract's units."""
        steps = np.arange(self.chunk_length) / self.spec.control_rate_hz
        phase = 2 * np.pi * (observation.time_s + steps) / PERIOD_S
        actions = CENTRE + AMPLITUDE * np.sin(phase)[:, None]
        return ActionChunk(actions.astype(np.float32)), state


def load(source: str, robot: RobotSpec) -> SwayingPolicy:
    """The policy, whatever its name."""
    return SwayingPolicy(robot)
