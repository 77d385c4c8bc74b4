"""Our tasks as robots in real time: `--robot "fetch:FetchPush --seed=7"`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from vla_runtime.contract import MotionLimits, Reading, Robot
from vla_runtime.robots.degraded import Degradation, degrade
from vla_runtime.robots.options import parse_options, split_argument

from sim.film import replay, write_mp4
from sim.render import NoRendererError
from sim.seeds import DEVELOPMENT
from sim.tasks.base import Phrasing, Renderer
from sim.tasks.registry import make_task
from vla.contract import RobotSpec

_MOST_RESTS = 10
"""Control steps without command that are computed in one call."""


@dataclass(frozen=True)
class TaskOptions:
    """Which episode the robot stands in.

    Attributes:
        seed: of the initial state.
        image_size: pixels a side of an image.

    Raises:
        ValueError: a negative seed, or no pixels.
    """

    seed: int = DEVELOPMENT.start
    image_size: int = 96

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed starts at 0, got {self.seed}")
        if self.image_size < 1:
            raise ValueError(f"image_size starts at 1, got {self.image_size}")


class TaskRobot:
    """The robot of one task, in one episode whose time is the clock's.

    Every command is one control step, as in simulation. Where none comes for as long as a control
    step, the world goes on by one step without a command: displacements are 0, and what the task
    names no rest for, such as a gripper, repeats its last command.

    Args:
        task: registry name.
        options: which episode.
        phrasing: of the instruction.
        clock: seconds.

    Attributes:
        instruction: what the episode asks for.
        actions: float32 [action.dim] each, all control steps so far, those without command too:
            `sim.film.replay` draws the episode from them.

    Raises:
        ValueError: unknown task; the message lists the valid ones.
    """

    halted = (
        "the arm keeps still and its gripper keeps its last command; the simulated world stands "
        "still when nothing reads it"
    )
    spec: RobotSpec

    def __init__(
        self,
        task: str,
        options: TaskOptions | None = None,
        phrasing: Phrasing = "train",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._options = options or TaskOptions()
        self._task = make_task(task, self._options.image_size)
        self._phrasing: Phrasing = phrasing
        self._clock = clock
        self._data = self._task.make_data()
        self._episode = self._task.reset(self._data, self._options.seed, phrasing)
        self.spec = _with_motion(self._task.spec)
        self.instruction = self._episode.instruction
        self.actions: list[np.ndarray] = []
        self._world: _World | None = None

    @property
    def success(self) -> bool:
        """The task's condition, now."""
        return self._task.is_success(self._data, self._episode)

    def connect(self) -> None:
        """Begin the episode anew.

        Raises:
            ConnectionError: nothing can draw here.
        """
        self._episode = self._task.reset(self._data, self._options.seed, self._phrasing)
        self.actions.clear()
        cameras = [camera.name for camera in self.spec.cameras]
        try:
            renderer = self._task.make_renderer(cameras, self._options.image_size)
        except NoRendererError as error:
            raise ConnectionError(str(error)) from error
        self._world = _World(renderer, self._clock())

    def read(self) -> Reading:
        """State and images after the last control step."""
        world, now = self._rest()
        # The marker of the goal is no part of the physics, so no step moves it into the image.
        self._task.place_markers(self._data, self._episode)
        return Reading(
            images=world.renderer.images(self._data),
            proprio=self._task.proprio(self._data),
            position=np.zeros(self.spec.action.dim),
            time_s=now,
        )

    def write(self, command: np.ndarray) -> None:
        """Execute one control step.

        Raises:
            ValueError: another shape, or a number that is not finite; nothing has moved.
        """
        # MuJoCo would reset the whole state on a NaN and go on.
        if np.shape(command) != (self.spec.action.dim,) or not np.isfinite(command).all():
            raise ValueError(f"{command} is not {self.spec.action.dim} finite numbers")
        world, _ = self._rest()
        self._step(world, np.asarray(command, np.float32))

    def halt(self) -> None:
        """Nothing to send: without a command the arm keeps still."""

    def disconnect(self) -> None:
        """Free the renderer; success and actions stay readable."""
        if self._world is not None:
            self._world.renderer.close()
            self._world = None

    def film(self, path: Path, size: int = 256) -> None:
        """Write the episode so far as H.264, drawn anew; its folder must exist."""
        frames = replay(
            self._task.name,
            self._options.seed,
            np.array(self.actions, np.float32).reshape(-1, self.spec.action.dim),
            size,
            phrasing=self._phrasing,
        )
        write_mp4(path, frames, round(self.spec.control_rate_hz))

    def _rest(self) -> tuple[_World, float]:
        """Let the world go on without command for each whole control step that is over."""
        if (world := self._world) is None:
            raise ConnectionError(f"{self._task.name} is not connected")
        now, period = self._clock(), 1.0 / self.spec.control_rate_hz
        # Long pauses are left out: catching up would make the next reading late, too.
        world.simulated_s = max(world.simulated_s, now - _MOST_RESTS * period)
        # The first command may take any time: nothing moves before it.
        while self.actions and now - world.simulated_s >= period:
            command = self.actions[-1].copy()
            for name, still in self._task.rest_action.items():
                command[self.spec.action.names.index(name)] = still
            self._step(world, command)
        if not self.actions:
            world.simulated_s = now
        return world, now

    def _step(self, world: _World, command: np.ndarray) -> None:
        self._task.step(self._data, self._episode, command)
        self.actions.append(command)
        world.simulated_s += 1.0 / self.spec.control_rate_hz


@dataclass
class _World:
    """What exists while the robot is connected: the renderer, and when the last step ends."""

    renderer: Renderer
    simulated_s: float


def _with_motion(spec: RobotSpec) -> RobotSpec:
    """The contract with limits that let through what the Fetch tasks are simulated with."""
    if spec.robot != "fetch" or spec.motion is not None:
        return spec
    # Displacements may reverse within one control step: [-1, 1] in 0.05 m is what a step takes.
    fastest = [high * spec.control_rate_hz for high in spec.action.high]
    motion = MotionLimits(
        kinds=("displacement",) * spec.action.dim,
        velocity=tuple(fastest),
        acceleration=tuple(2 * value * spec.control_rate_hz for value in fastest),
    )
    return replace(spec, motion=motion)


def make(argument: str) -> Robot:
    """The robot of `fetch:TASK --seed=7 ...`: `TaskOptions` and `Degradation`."""
    task, words = split_argument(argument)
    options, degradation = parse_options("fetch", words, TaskOptions, Degradation)
    return degrade(TaskRobot(task, options), degradation)
