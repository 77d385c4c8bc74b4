"""A robot as real ones are: late readings, noisy sensors, cameras that drop frames."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vla_runtime.contract import Reading, Robot


@dataclass(frozen=True)
class Degradation:
    """What a simulated robot gets wrong on purpose; by default nothing.

    Attributes:
        latency_s: age of a reading when it arrives.
        noise: standard deviation of measured positions, as a share of each dimension's range.
        image_noise: standard deviation of pixels, in grey levels of 255.
        dropped_frames: probability that a camera shows its last image again.
        noise_seed: of all this.

    Raises:
        ValueError: a number out of range.
    """

    latency_s: float = 0.0
    noise: float = 0.0
    image_noise: float = 0.0
    dropped_frames: float = 0.0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latency_s", "noise", "image_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.dropped_frames <= 1:
            raise ValueError(f"dropped_frames must lie from 0 to 1, got {self.dropped_frames}")


class DegradedRobot:
    """Another robot, whose readings arrive late, with noise and without some images.

    Times stay honest: a late reading, and one with an older image, carries the older time. So a
    safety gate that limits the age of observations sees what was done here.

    Args:
        robot: what is measured; commands reach it unchanged.
        degradation: what to get wrong; it may be replaced at any time.
        clock: of the robot.

    Raises:
        ValueError: noise is asked for where a dimension's range is not finite.
    """

    def __init__(
        self,
        robot: Robot,
        degradation: Degradation,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.robot = robot
        self.degradation = degradation
        self.spec = robot.spec
        self.halted = robot.halted
        self._clock = clock
        self._rng = np.random.default_rng(degradation.noise_seed)
        # Newest last: readings that are not old enough yet, and the last one that was.
        self._waiting: deque[Reading] = deque()
        # Camera name → its last image and when that was taken.
        self._shown: dict[str, tuple[np.ndarray, float]] = {}
        span = {"proprio": self.spec.proprio, "position": self.spec.action}
        self._spans = {name: np.subtract(vector.high, vector.low) for name, vector in span.items()}
        if degradation.noise and not all(np.isfinite(s).all() for s in self._spans.values()):
            raise ValueError(f"{self.spec.robot}: noise needs ranges, and some are infinite")

    def connect(self) -> None:
        """Connect the robot."""
        self._waiting.clear()
        self._shown.clear()
        self.robot.connect()

    def read(self) -> Reading:
        """The newest reading that is old enough; while there is none, the oldest there is."""
        self._waiting.append(self._spoiled(self.robot.read()))
        now = self._clock()
        while (
            len(self._waiting) > 1 and now - self._waiting[1].time_s >= self.degradation.latency_s
        ):
            self._waiting.popleft()
        return self._waiting[0]

    def write(self, command: np.ndarray) -> None:
        """Pass a command on."""
        self.robot.write(command)

    def halt(self) -> None:
        """Halt the robot."""
        self.robot.halt()

    def disconnect(self) -> None:
        """Disconnect the robot."""
        self.robot.disconnect()

    def _spoiled(self, reading: Reading) -> Reading:
        vectors = {
            # `position` of displacements is 0 by definition, and stays so.
            name: self._noisy(getattr(reading, name), span)
            for name, span in self._spans.items()
            if getattr(reading, name).any()
        }
        images, times = {}, [reading.time_s]
        for name, image in reading.images.items():
            if name in self._shown and self._rng.random() < self.degradation.dropped_frames:
                images[name], taken_s = self._shown[name]
                times.append(taken_s)
                continue
            images[name] = self._noisy_image(image)
            self._shown[name] = images[name], reading.time_s
        return replace(reading, images=images, time_s=min(times), **vectors)

    def _noisy(self, values: np.ndarray, span: np.ndarray) -> np.ndarray:
        if not self.degradation.noise:
            return values
        noise = self._rng.normal(0.0, self.degradation.noise, len(values)) * span
        return (values + noise).astype(values.dtype)

    def _noisy_image(self, image: np.ndarray) -> np.ndarray:
        if not self.degradation.image_noise:
            return image
        noise = self._rng.normal(0.0, self.degradation.image_noise, image.shape)
        return (image + noise).round().clip(0, 255).astype(np.uint8)


def degrade(
    robot: Robot, degradation: Degradation, clock: Callable[[], float] = time.monotonic
) -> Robot:
    """The robot itself where nothing is to be spoiled, else a `DegradedRobot`."""
    wanted = replace(degradation, noise_seed=0) != Degradation()
    return DegradedRobot(robot, degradation, clock) if wanted else robot
