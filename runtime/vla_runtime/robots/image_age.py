"""How old a camera's image is at least, whatever its driver says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass
class _Shown:
    """An image, where the robot was when it came, and when it may last have been true."""

    image: np.ndarray
    position: np.ndarray
    true_s: float
    moved: bool = False


class ImageAges:
    """Tells a camera that has frozen from one that looks at a robot at rest.

    A frozen camera's driver may go on handing out its last image with new times. The same pixels,
    while the robot has moved, are therefore as old as the last moment in which it had not. Images
    of a real camera never repeat, so this never ages one that works.

    Args:
        tolerance: [dims], how far a dimension may move before an image has to change; infinite for
            one that does not count.
    """

    def __init__(self, tolerance: np.ndarray):
        self._tolerance = tolerance
        self._shown: dict[str, _Shown] = {}

    def oldest_s(self, images: Mapping[str, np.ndarray], position: np.ndarray, now: float) -> float:
        """When the oldest of these images may last have been true; `now` without any image.

        Args:
            images: camera name → uint8 [height, width, 3].
            position: [dims] of the robot, measured with them.
            now: when they were handed out.
        """
        return min((self._true_s(*item, position, now) for item in images.items()), default=now)

    def _true_s(self, name: str, image: np.ndarray, position: np.ndarray, now: float) -> float:
        shown = self._shown.get(name)
        if shown is None or not np.array_equal(shown.image, image):
            # Copies: a driver may write the next image into the same memory.
            self._shown[name] = _Shown(image.copy(), position.copy(), now)
            return now
        # Once and for all: a robot that moves back makes the image no newer.
        shown.moved |= bool((np.abs(position - shown.position) > self._tolerance).any())
        if not shown.moved:
            shown.true_s = now
        return shown.true_s
