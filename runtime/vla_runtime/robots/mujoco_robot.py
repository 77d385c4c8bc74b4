"""Any MJCF or URDF as a robot in real time: `mujoco:scene.xml --rate_hz=30 --latency_s=0.02`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from vla_runtime.contract import Reading, Robot, RobotSpec
from vla_runtime.robots.degraded import Degradation, degrade
from vla_runtime.robots.mujoco_model import load_model, model_contract
from vla_runtime.robots.options import parse_options, split_argument

_LONGEST_CATCH_UP_S = 0.25
"""Physics of at most this long is computed in one call, or a late call would be later still."""


@dataclass(frozen=True)
class MujocoOptions:
    """What to make of a model file.

    Attributes:
        rate_hz: control steps a second.
        cameras: names with commas between; "all" for every camera of the model, "" for none.
        height: of an image, pixels.
        width: of an image, pixels.
        keyframe: of the model, where it starts; "" for its default pose.

    Raises:
        ValueError: a number that is not positive.
    """

    rate_hz: float = 50.0
    cameras: str = "all"
    height: int = 96
    width: int = 96
    keyframe: str = ""

    def __post_init__(self) -> None:
        for name in ("rate_hz", "height", "width"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class MujocoRobot:
    """A model whose physics advances with the clock, in `read` and `write`.

    Equal calls at equal times give equal motion, so tests drive it with a clock of their own. A
    command drives the position servos until the next one. Where calls are more than a quarter of a
    second apart, the rest of that time is left out.

    Args:
        path: MJCF or URDF file; every actuator must be a position servo.
        options: rate, cameras, start.
        clock: seconds; the physics follows it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the model has no usable actuator, camera or keyframe.
    """

    halted = (
        "its position servos hold the last command; the simulated world stands still when nothing "
        "reads it"
    )
    spec: RobotSpec

    def __init__(
        self,
        path: Path,
        options: MujocoOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        options = options or MujocoOptions()
        self.model = load_model(path)
        cameras = _camera_names(self.model, options.cameras)
        size = (options.height, options.width)
        self.spec = model_contract(self.model, path.stem, cameras, size, options.rate_hz)
        self.data = mujoco.MjData(self.model)
        self._clock = clock
        self._keyframe = _keyframe(self.model, options.keyframe)
        self._renderer: mujoco.Renderer | None = None
        # Clock time at which the physics stands; None until connected.
        self._simulated_s: float | None = None

    def connect(self) -> None:
        """Put the model into its initial pose, which its servos hold.

        Raises:
            ConnectionError: nothing can draw the cameras' images here.
        """
        mujoco.mj_resetData(self.model, self.data)
        if self._keyframe is not None:
            mujoco.mj_resetDataKeyframe(self.model, self.data, self._keyframe)
        mujoco.mj_forward(self.model, self.data)
        low, high = self.spec.action.low, self.spec.action.high
        self.data.ctrl[:] = np.clip(self.data.actuator_length, low, high)
        if self.spec.cameras and self._renderer is None:
            camera = self.spec.cameras[0]  # all are of one size
            self._renderer = make_renderer(self.model, self.spec.robot, camera.height, camera.width)
        self._simulated_s = self._clock()

    def read(self) -> Reading:
        """Positions and images of this moment."""
        now = self._advance()
        images = {}
        for camera in self.spec.cameras:
            assert self._renderer is not None  # made by `connect`
            self._renderer.update_scene(self.data, camera.name)
            images[camera.name] = self._renderer.render()
        position = self.data.actuator_length.copy()  # [action], in the commands' units
        return Reading(images, position.astype(np.float32), position, now)

    def write(self, command: np.ndarray) -> None:
        """Drive the servos to a position from now on.

        Raises:
            ValueError: another shape, or a number that is not finite; nothing has changed.
        """
        # MuJoCo sets every control to 0 where one is NaN, and the arm would move there.
        if np.shape(command) != (self.model.nu,) or not np.isfinite(command).all():
            raise ValueError(f"{command} is not {self.model.nu} finite numbers")
        self._advance()
        self.data.ctrl[:] = command

    def halt(self) -> None:
        """Nothing to send: the servos hold the last command."""

    def disconnect(self) -> None:
        """Free the renderer; the model stays as it is."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._simulated_s = None

    def _advance(self) -> float:
        """Bring the physics to this moment; which moment that is."""
        now = self._clock()
        if self._simulated_s is None:
            raise ConnectionError(f"{self.spec.robot} is not connected")
        begin = max(self._simulated_s, now - _LONGEST_CATCH_UP_S)
        # A margin, or rounding of the difference would cost a step now and then.
        steps = math.floor((now - begin) / self.model.opt.timestep + 1e-6)
        if steps > 0:
            mujoco.mj_step(self.model, self.data, nstep=steps)
            begin += steps * self.model.opt.timestep
        self._simulated_s = begin
        return now


def make(argument: str) -> Robot:
    """The robot of `mujoco:PATH --rate_hz=30 ...`: `MujocoOptions` and `Degradation`."""
    path, words = split_argument(argument)
    if not path:
        raise ValueError("robot mujoco needs a model: mujoco:PATH, an MJCF or URDF file")
    options, degradation = parse_options("mujoco", words, MujocoOptions, Degradation)
    return degrade(MujocoRobot(Path(path), options), degradation)


def _camera_names(model: mujoco.MjModel, wanted: str) -> Sequence[str]:
    if wanted == "all":
        return [model.camera(index).name for index in range(model.ncam)]
    return [name for name in wanted.split(",") if name]


def _keyframe(model: mujoco.MjModel, name: str) -> int | None:
    known = [model.key(index).name for index in range(model.nkey)]
    if name and name not in known:
        raise ValueError(f"the model has no keyframe {name!r}; it has {known}")
    return known.index(name) if name else None


def make_renderer(model: mujoco.MjModel, name: str, height: int, width: int) -> mujoco.Renderer:
    """A renderer without shadows, reflections and multisampling: most of the time on a CPU.

    Args:
        model: is changed: its offscreen buffer grows, its multisampling ends.
        name: of the robot, for messages.
        height: of an image, pixels.
        width: of an image, pixels.

    Raises:
        ConnectionError: no GL library works here.
    """
    view = model.vis.global_
    view.offheight, view.offwidth = max(view.offheight, height), max(view.offwidth, width)
    model.vis.quality.offsamples = 0
    try:
        renderer = mujoco.Renderer(model, height, width)
    except Exception as error:  # the backends raise AttributeError, ImportError, FatalError...
        raise ConnectionError(
            f"nothing draws the cameras of {name} ({error}): set MUJOCO_GL to egl or osmesa and "
            "install that library, or leave the cameras out with --cameras="
        ) from error
    for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[effect] = 0
    return renderer
