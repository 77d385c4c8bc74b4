"""Every LeRobot robot: `lerobot:so101_follower --port=/dev/ttyACM0 --id=arm --rate_hz=30`.

LeRobot, and with it torch, is imported by `make` alone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import pkgutil
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.contract import VELOCITY, Observation, Reading, Robot
from vla_runtime.robots.bounded_bus import BoundedBus
from vla_runtime.robots.bounded_calls import BoundedCalls
from vla_runtime.robots.image_age import ImageAges
from vla_runtime.robots.lerobot_contract import (
    adopt_contract,
    read_contract,
    serial_buses,
)
from vla_runtime.robots.options import parse_options, split_argument

logger = logging.getLogger(__name__)

# What a port or a camera raises that is gone; `termios.error` is no OSError.
_PORT_ERRORS = (OSError, RuntimeError, AttributeError, termios.error)
_DISCONNECT_S = 1.0
_MOVED = 0.02
"""Share of a dimension's range after which the same image counts as old."""
_HOLDS = (
    "its motors hold their last goal. When LeRobot disconnects, it switches torque off and the arm "
    "sinks, unless --disable_torque_on_disconnect=false: support it"
)
_LAST_COMMAND = "LeRobot's driver holds its last command, with velocities of 0"
_UNREACHABLE = "nothing reaches the motors: they hold their last goal, with torque on"
_LOST = (
    "the connection is lost, so torque cannot be switched off: the motors hold their last goal "
    "until the power supply is switched off"
)


@dataclass(frozen=True)
class LeRobotOptions:
    """What LeRobot's configuration of a robot does not say.

    Attributes:
        rate_hz: control steps a second.
        timeout_s: within which a reading or a command ends.
        contract: folder or file of the contract that a policy was trained with, see
            `adopt_contract`; "" for that of the calibration.

    Raises:
        ValueError: a number that is not positive.
    """

    rate_hz: float = 30.0
    timeout_s: float = 0.01
    contract: str = ""

    def __post_init__(self) -> None:
        for name in ("rate_hz", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class LeRobotRobot:
    """A robot that LeRobot drives, with readings and commands that are bounded in time.

    On serial buses the port itself is bounded (`BoundedBus`); any other driver is called in a
    thread (`BoundedCalls`).

    Args:
        device: a `lerobot.robots.Robot` that is not connected.
        options: rate and time-out.
        clock: seconds, monotonic.

    Raises:
        ValueError: its features make no contract.
    """

    halted: str

    def __init__(
        self,
        device: Any,
        options: LeRobotOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        options = options or LeRobotOptions()
        self.spec = read_contract(device, options.rate_hz)
        if options.contract:
            self.spec = adopt_contract(self.spec, Path(options.contract))
        self.device = device
        self._timeout_s = options.timeout_s
        self._clock = clock
        self._buses: list[BoundedBus] = []
        # LeRobot's own limit of a step's size compares a command with a reading of its own.
        self._reads_to_write = getattr(device.config, "max_relative_target", None) is not None
        self._calls = None if list(serial_buses(device)) else BoundedCalls()
        self._holds = _HOLDS if self._calls is None else _LAST_COMMAND
        self.halted = self._holds
        self._last: np.ndarray | None = None
        self._is_velocity = np.array([n.endswith(VELOCITY) for n in self.spec.action.names])
        proprio = self.spec.proprio
        self._ages = ImageAges(_MOVED * np.subtract(proprio.high, proprio.low))

    def connect(self) -> None:
        """Open the connection; LeRobot's drivers switch torque on, with the pose as it is.

        Raises:
            ConnectionError: the device does not answer, or its motors hold another calibration.
        """
        self._last = None  # of a connection before: halting must not repeat it
        try:
            # Never `calibrate=True`: it would ask questions on a terminal that may not exist.
            self._drive("connect", lambda: self.device.connect(calibrate=False), None)
            calibrated = self._drive(
                "read its calibration", lambda: self.device.is_calibrated, None
            )
            if not calibrated:
                raise ConnectionError(
                    f"the motors of {self._name} hold another calibration than "
                    f"{self.device.calibration_fpath}, or there is none: run lerobot-calibrate"
                )
        except ConnectionError:
            self.disconnect()
            raise
        from lerobot.motors.feetech import FeetechMotorsBus

        self._buses = [
            BoundedBus(bus, isinstance(bus, FeetechMotorsBus), self._clock)
            for _, bus in serial_buses(self.device)
        ]

    def read(self) -> Reading:
        """What the robot measures and its cameras saw last.

        Raises:
            ConnectionError: no answer in time, or one that is incomplete or not finite.
        """
        now = self._clock()
        # Before the images: an image may only be newer than its time says.
        taken = [self._clock_time(camera) for camera in self._cameras()]
        found = self._drive("be read", self.device.get_observation, self._timeout_s)
        try:
            proprio = np.array([found[name] for name in self.spec.proprio.names], np.float64)
            images = {c.name: np.asarray(found[c.name]) for c in self.spec.cameras}
            Observation(images, proprio, "").validate(self.spec)
        except (LookupError, ValueError, TypeError) as error:
            raise ConnectionError(f"{self._name} sent no usable reading: {error}") from error
        # A wheel that measures its speed has no position either.
        measured = [found.get(name, 0.0) for name in self.spec.action.names]
        position = np.where(self._is_velocity, 0.0, np.array(measured, np.float64))
        oldest = min([now, *taken, self._ages.oldest_s(images, proprio, now)])
        return Reading(images, proprio.astype(np.float32), position, oldest)

    def write(self, command: np.ndarray) -> None:
        """Send a command; LeRobot turns degrees into counts without any limit.

        Raises:
            ValueError: another shape, or a number that is not finite; nothing was sent.
            ConnectionError: it could not be sent.
        """
        names = self.spec.action.names
        # LeRobot passes NaN on, and `max_relative_target` does, too.
        if np.shape(command) != (len(names),) or not np.isfinite(command).all():
            raise ValueError(f"{command} is not {len(names)} finite numbers")
        # Noted before it is sent: part of it may arrive although sending fails.
        self._last = np.array(command, np.float64)
        action = dict(zip(names, self._last.tolist(), strict=True))
        self._drive(
            "be commanded",
            lambda: self.device.send_action(action),
            self._timeout_s,
            expects_reply=self._reads_to_write,
        )

    def halt(self) -> None:
        """Send the last command once more, with velocities of 0; nothing before the first one.

        The measured pose would be no better: a servo stands a little beside its goal, so each
        halt would move it, and beyond its limits, too.

        Raises:
            ConnectionError: it cannot be sent; a servo that gets no goal holds its last one.
        """
        if self._last is None:
            return
        try:
            self.write(np.where(self._is_velocity, 0.0, self._last))
        except ConnectionError as error:
            self.halted = _UNREACHABLE
            raise ConnectionError(f"{self._name} could not be halted: {error}") from error
        self.halted = self._holds

    def disconnect(self) -> None:
        """Let LeRobot disconnect; where that fails, close what can be closed and say what holds."""
        for bus in self._buses:
            with contextlib.suppress(*_PORT_ERRORS):
                bus.release()
        self._buses = []
        if not self._is_open():
            return
        try:
            self._drive("disconnect", self.device.disconnect, _DISCONNECT_S)
        except ConnectionError as error:
            self._close()
            logger.error("%s; %s", error, self.halted)

    def _drive(
        self,
        what: str,
        call: Callable[[], Any],
        timeout_s: float | None,
        expects_reply: bool = True,
    ) -> Any:
        """Call the driver; whatever it raises becomes a ConnectionError."""
        try:
            if self._calls is not None:
                return self._calls(call, timeout_s)
            with contextlib.ExitStack() as exchanges:
                for bus in self._buses:
                    exchanges.enter_context(bus.exchange(timeout_s or math.inf, expects_reply))
                return call()
        except Exception as error:  # each driver has its own, `termios.error` among them
            raise ConnectionError(f"{self._name} could not {what}: {error}") from error

    def _is_open(self) -> bool:
        parts = [*self._cameras(), *(bus for _, bus in serial_buses(self.device))]
        return self.device.is_connected or any(part.is_connected for part in parts)

    def _close(self) -> None:
        """Torque off and everything closed, each as far as it goes."""
        self.halted = _LOST
        for _, bus in serial_buses(self.device):
            with contextlib.suppress(*_PORT_ERRORS):
                bus.disconnect(getattr(self.device.config, "disable_torque_on_disconnect", True))
                self.halted = _HOLDS
            with contextlib.suppress(*_PORT_ERRORS):
                bus.port_handler.closePort()
        for camera in self._cameras():
            with contextlib.suppress(*_PORT_ERRORS):
                camera.disconnect()

    def _cameras(self) -> list[Any]:
        return list(getattr(self.device, "cameras", {}).values())

    def _clock_time(self, camera: Any) -> float:
        """When a camera's last image was taken; LeRobot's cameras note it, as `perf_counter`."""
        taken = getattr(camera, "latest_timestamp", None)
        return math.inf if taken is None else taken

    @property
    def _name(self) -> str:
        return f"LeRobot's {self.device.name}"


def make(argument: str) -> Robot:
    """The robot of `lerobot:TYPE --port=...`: LeRobot's flags for it, and `LeRobotOptions`.

    Raises:
        ValueError: an unknown type, or flags that LeRobot refuses.
        ModuleNotFoundError: LeRobot, or what this robot needs, is not installed.
    """
    kind, words = split_argument(argument)
    ours = tuple(f"--{entry.name}=" for entry in fields(LeRobotOptions))
    [options] = parse_options("lerobot", [w for w in words if w.startswith(ours)], LeRobotOptions)
    device = _make_device(kind, [word for word in words if not word.startswith(ours)])
    return LeRobotRobot(device, options)


def _make_device(kind: str, words: list[str]) -> Any:
    try:
        import draccus
        import lerobot.robots
        from lerobot.robots.config import RobotConfig
        from lerobot.utils.import_utils import register_third_party_plugins
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"robot lerobot needs LeRobot ({error}): install vla-runtime[lerobot]"
        ) from error
    # Registers the type of the emulated SO-101's camera.
    importlib.import_module("vla_runtime.robots.config_emulated_camera")
    # A type is known once its package is imported: LeRobot's own, then those of plug-ins.
    for package in pkgutil.iter_modules(lerobot.robots.__path__):
        if package.ispkg:
            importlib.import_module(f"lerobot.robots.{package.name}")
    if kind not in RobotConfig.get_known_choices():
        register_third_party_plugins()
    known = RobotConfig.get_known_choices()
    if kind not in known:
        raise ValueError(f"LeRobot has no robot {kind!r}; it has {', '.join(sorted(known))}")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config = draccus.parse(known[kind], args=words)
    except SystemExit:
        reason = printed.getvalue().strip().splitlines()[-1:]
        raise ValueError(f"robot lerobot:{kind}: {' '.join(reason)}") from None
    except draccus.ParsingError as error:
        raise ValueError(f"robot lerobot:{kind}: {error}") from error
    return lerobot.robots.make_robot_from_config(config)
