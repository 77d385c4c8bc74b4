"""A robot and policies of numpy, for tests of the control loop."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
from vla_runtime.contract import (
    ActionChunk,
    CameraSpec,
    MotionLimits,
    Observation,
    Reading,
    RobotSpec,
    VectorSpec,
)

CHUNK_LENGTH = 8
JOINTS = VectorSpec(("a", "b"), ("rad", "rad"), (-1.0, -1.0), (1.0, 1.0))
SPEC = RobotSpec(
    "double",
    action=JOINTS,
    proprio=JOINTS,
    cameras=(CameraSpec("front", 12, 16),),
    control_rate_hz=50.0,
    motion=MotionLimits(("position", "position"), (2.0, 2.0), (20.0, 20.0)),
)


class NumpyRobot:
    """Stands at once where it is told to; notes everything that is done to it.

    Attributes:
        written: (time, command) of every write.
        log: names of the calls that are no read or write, in their order.
        reads_fail: whether `read` finds no measurement.
    """

    def __init__(self, spec: RobotSpec = SPEC, position: float = 0.0):
        self.spec = spec
        self.halted = "the joints hold their position"
        self.position = np.full(spec.action.dim, position)
        self.written: list[tuple[float, np.ndarray]] = []
        self.log: list[str] = []
        self.reads_fail = False

    def connect(self) -> None:
        """Note it."""
        self.log.append("connect")

    def read(self) -> Reading:
        """Where it stands, and a grey image."""
        if self.reads_fail:
            raise ConnectionError("the double does not answer")
        images = {c.name: np.full((c.height, c.width, 3), 128, np.uint8) for c in self.spec.cameras}
        position = self.position.copy()
        return Reading(images, position.astype(np.float32), position, time.monotonic())

    def write(self, command: np.ndarray) -> None:
        """Go there."""
        self.position = command.copy()
        self.written.append((time.monotonic(), command.copy()))

    def halt(self) -> None:
        """Note it."""
        self.log.append("halt")

    def disconnect(self) -> None:
        """Note it."""
        self.log.append("disconnect")

    @property
    def commands(self) -> np.ndarray:
        """What was written, [writes, action.dim]."""
        return np.array([command for _, command in self.written])


class RampPolicy:
    """Each joint moves by `STEP` a control step, away from where it is; takes `delay_s`.

    Attributes:
        decided: decisions since the memory was new, which is the state.
    """

    STEP = 0.002

    def __init__(self, spec: RobotSpec = SPEC, delay_s: float = 0.0):
        self.spec, self.chunk_length, self._delay_s = spec, CHUNK_LENGTH, delay_s

    def initial_state(self) -> object:
        """Nothing decided."""
        return 0

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """A ramp from the measured position."""
        observation.validate(self.spec)
        time.sleep(self._delay_s)
        ramp = self.STEP * np.arange(1, CHUNK_LENGTH + 1, dtype=np.float32)
        assert isinstance(state, int)
        return ActionChunk(observation.proprio[None] + ramp[:, None]), state + 1


class InpaintingRamp(RampPolicy):
    """As `RampPolicy`, and joins its chunk to the old one by the weights."""

    can_inpaint = True

    def inpaint(
        self, observation: Observation, state: object, target: np.ndarray, weight: np.ndarray
    ) -> tuple[ActionChunk, object]:
        """The weighted mean of old and new."""
        chunk, state = self.decide(observation, state)
        mixed = weight[:, None] * target + (1 - weight[:, None]) * chunk.actions
        return ActionChunk(mixed.astype(np.float32)), state


class BusyPolicy(RampPolicy):
    """Computes for as long as it takes to fill a period, instead of sleeping; turns at ±0.9."""

    def __init__(self) -> None:
        super().__init__()
        self._matrix = np.random.default_rng(0).standard_normal((400, 400))

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """A ramp up for 400 decisions, then down."""
        until_s = time.thread_time() + 0.015
        while time.thread_time() < until_s:
            self._matrix @ self._matrix
        chunk, state = super().decide(observation, state)
        assert isinstance(state, int)
        if (state // 400) % 2:
            return ActionChunk(2 * observation.proprio[None] - chunk.actions), state
        return chunk, state


class FailingPolicy(RampPolicy):
    """Fails in one way at its fifth decision after the warm-up."""

    def __init__(self, how: str):
        super().__init__()
        self._how = how

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """A ramp, or the failure."""
        chunk, state = super().decide(observation, state)
        if state != 5:
            return chunk, state
        match self._how:
            case "error":
                raise RuntimeError("the fifth decision fails")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                time.sleep(3600)
            case "slow":
                time.sleep(0.6)
            case "nan":
                return ActionChunk(np.full_like(chunk.actions, np.nan)), state
            case "short":
                return ActionChunk(chunk.actions[:3]), state
            case "server gone":
                raise ConnectionError("the server has closed the connection")
        return chunk, state


def load(source: str, robot: RobotSpec) -> RampPolicy:
    """A policy: ramp[:DELAY_S], inpainting:DELAY_S, busy, fails:HOW, blind, or other."""
    kind, _, argument = source.partition(":")
    match kind:
        case "ramp":
            return RampPolicy(delay_s=float(argument or 0))
        case "inpainting":
            return InpaintingRamp(delay_s=float(argument or 0))
        case "fails":
            return FailingPolicy(argument)
        case "busy":
            return BusyPolicy()
        case "blind":
            return RampPolicy(replace(SPEC, cameras=()))
        case "other":
            return RampPolicy(replace(SPEC, robot="another", control_rate_hz=10.0))
    raise ValueError(f"no policy {source!r}")
