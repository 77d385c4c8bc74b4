"""The last image of a camera in a file that two processes map: one draws, the other looks."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

# Even where an image is complete, odd while one is written; then when it was taken.
_HEADER = struct.Struct("<Qd")
_TRIES = 100


class FrameFile:
    """An image and when it was taken; a reader never sees half of one.

    Args:
        path: of the file.
        height: of the image, pixels.
        width: of the image, pixels.
        create: make a new file, for the one who writes.

    Raises:
        ConnectionError: there is no such file, or it holds images of another size.
    """

    def __init__(self, path: Path, height: int, width: int, create: bool = False):
        size = _HEADER.size + height * width * 3
        if create:
            path.write_bytes(bytes(size))
        try:
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no images in {path}: {error}") from error
        if len(self._map) != size:
            raise ConnectionError(f"{path} holds images of another size than {height} x {width}")
        self._image = np.frombuffer(self._map, np.uint8, offset=_HEADER.size)
        self._image = self._image.reshape(height, width, 3)

    def write(self, image: np.ndarray, taken_s: float) -> None:
        """Replace the image: uint8 [height, width, 3]."""
        sequence = self._sequence
        _HEADER.pack_into(self._map, 0, sequence + 1, taken_s)
        self._image[:] = image
        _HEADER.pack_into(self._map, 0, sequence + 2, taken_s)

    def read(self) -> tuple[np.ndarray, float]:
        """A copy of the image, and when it was taken.

        Raises:
            ConnectionError: there is none yet, or the writer died in the middle of one.
        """
        for _ in range(_TRIES):
            before = _HEADER.unpack_from(self._map)
            image = self._image.copy()
            if before[0] and before[0] % 2 == 0 and _HEADER.unpack_from(self._map) == before:
                return image, before[1]
        raise ConnectionError("the camera has no image yet")

    @property
    def _sequence(self) -> int:
        return _HEADER.unpack_from(self._map)[0]
