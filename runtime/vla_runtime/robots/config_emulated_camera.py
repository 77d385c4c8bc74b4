"""The emulated SO-101's camera in LeRobot's configuration: `{type: emulated, path: ..., ...}`.

LeRobot finds the class by this module's name: `emulated_camera.EmulatedCamera`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lerobot.cameras.configs import CameraConfig


@CameraConfig.register_subclass("emulated")
@dataclass(kw_only=True)
class EmulatedCameraConfig(CameraConfig):
    """Where the emulator writes its images.

    Attributes:
        path: its --frames.
    """

    path: Path
