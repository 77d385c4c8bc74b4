"""A LeRobot camera that shows what the emulated SO-101's process draws."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera

from vla_runtime.robots.config_emulated_camera import EmulatedCameraConfig
from vla_runtime.robots.frame_file import FrameFile


class EmulatedCamera(Camera):
    """The last image that was drawn; there is nothing to wait for."""

    def __init__(self, config: EmulatedCameraConfig):
        super().__init__(config)
        self._path = config.path
        self._frames: FrameFile | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the file is open."""
        return self._frames is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """None: the emulator says where its images are."""
        return []

    @property
    def latest_timestamp(self) -> float | None:
        """When the last image was taken, as `time.perf_counter`; None before the first."""
        try:
            return self.opened.read()[1]
        except ConnectionError:
            return None

    @property
    def opened(self) -> FrameFile:
        """The file.

        Raises:
            ConnectionError: not connected.
        """
        if self._frames is None:
            raise ConnectionError("the emulated camera is not connected")
        return self._frames

    def connect(self, warmup: bool = True) -> None:
        """Open the file, and wait for the first image.

        Raises:
            ConnectionError: it is not there, is of another size, or stays empty.
        """
        assert self.height is not None  # LeRobot demands both of a robot's camera
        assert self.width is not None
        frames = FrameFile(self._path, self.height, self.width)
        end_s = time.monotonic() + 10.0 * warmup
        while True:
            try:
                frames.read()
                break
            except ConnectionError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.02)
        self._frames = frames

    def read(self) -> np.ndarray:
        """The last image."""
        return self.read_latest(max_age_ms=math.inf)

    def async_read(self, timeout_ms: float = 0) -> np.ndarray:
        """The last image, at once."""
        return self.read()

    def read_latest(self, max_age_ms: float = 500) -> np.ndarray:
        """The last image.

        Raises:
            TimeoutError: it is older than that.
        """
        image, taken_s = self.opened.read()
        if (age_ms := (time.perf_counter() - taken_s) * 1e3) > max_age_ms:
            raise TimeoutError(f"the last image of {self._path} is {age_ms:.0f} ms old")
        return image

    def disconnect(self) -> None:
        """Close the file."""
        self._frames = None
