"""Numpy arrays in memory that processes share."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

Layout = dict[str, tuple[tuple[int, ...], str]]
"""Array name → (shape, dtype)."""

SHARED_MEMORY = Path("/dev/shm")
_ALIGNMENT = 64


class SharedArrays:
    """Named numpy arrays in one block of shared memory, filled with zeros.

    The block has no name, so nothing is left in /dev/shm however the processes end. It is sent to a
    process as that is spawned.

    Args:
        layout: array name → (shape, dtype).
        descriptor: of an existing block; None reserves one.

    Raises:
        OSError: not enough shared memory; the message says how much is needed and how much is free.
    """

    def __init__(self, layout: Layout, descriptor: int | None = None):
        self._layout = layout
        offsets, size = {}, 0
        for key, (shape, dtype) in layout.items():
            offsets[key] = size
            length = int(np.prod(shape)) * np.dtype(dtype).itemsize
            # Rounded up to a cache line, so that no array begins inside the last line of another.
            size += -(-length // _ALIGNMENT) * _ALIGNMENT
        self._descriptor = _reserve(size) if descriptor is None else descriptor
        self._block = mmap.mmap(self._descriptor, size)
        self.arrays: dict[str, np.ndarray] = {
            key: np.ndarray(shape, dtype, buffer=self._block, offset=offsets[key])
            for key, (shape, dtype) in layout.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the layout and a descriptor are pickled, never the contents.
        return _attach, (self._layout, reduction.DupFd(self._descriptor))

    def close(self) -> None:
        """Let go of the memory, which is freed once every process has; may be called again."""
        # The views go first: a memory map with exported buffers cannot be closed.
        self.arrays = {}
        with contextlib.suppress(BufferError):  # a caller still holds a view: freed with it
            self._block.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _attach(layout: Layout, sent: Any) -> SharedArrays:
    return SharedArrays(layout, sent.detach())


def _reserve(size: int) -> int:
    """Descriptor of `size` bytes of shared memory without a name.

    Shared memory is otherwise handed out as it is first written to, and a process that writes when
    none is left is killed by SIGBUS: hence all of it is allocated here, where that is an error.
    """
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            # The file's own descriptor is closed with it; the duplicate keeps the memory alive.
            return os.dup(file.fileno())
    except OSError as error:
        free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
        raise OSError(
            error.errno,
            f"{size / 1e6:.1f} MB of shared memory are needed, {free / 1e6:.1f} MB are free in "
            f"{SHARED_MEMORY} ({error.strerror}): use smaller images or fewer processes, or "
            "give it more memory (in a container: --shm-size)",
        ) from error
