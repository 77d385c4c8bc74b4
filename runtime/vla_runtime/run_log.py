"""A run as it happens, in one file that is only ever appended to: a kill loses no finished record.

A file is a sequence of records: length and CRC32 (little-endian uint32 each), then msgpack. The
first describes the run, every further one is a control step.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from vla_runtime.contract import RobotSpec

_HEAD = struct.Struct("<II")
_FORMAT = 1
_PNG_LEVEL = 1  # the fastest: a camera of 640x480 px leaves no time for more


class RunLogError(ValueError):
    """A file is no log of a run, or of another version."""


@dataclass(frozen=True)
class RunHeader:
    """What a log is of.

    Attributes:
        spec: the robot's contract.
        instruction: what it was to do.
        source: where the run came from, plain data for provenance.
    """

    spec: RobotSpec
    instruction: str
    source: dict[str, Any]


@dataclass(frozen=True)
class RunStep:
    """One control step.

    Attributes:
        time_s: seconds since the run began.
        images: camera name → uint8 [height, width, 3].
        proprio: float32 [proprio.dim].
        action: float32 [action.dim], what the safety gate wrote to the robot.
        requested: float32 [action.dim], what the policy asked for; equal to `action` where it
            asked for nothing.
    """

    time_s: float
    images: dict[str, np.ndarray]
    proprio: np.ndarray
    action: np.ndarray
    requested: np.ndarray


class RunLogWriter:
    """Writes one log.

    Raises:
        OSError: the file exists, or cannot be written.
    """

    def __init__(self, path: Path, header: RunHeader):
        # Without a buffer: what was written survives the process that wrote it.
        self._file = path.open("xb", buffering=0)
        self._append(
            {
                "format": _FORMAT,
                "spec": header.spec.to_dict(),
                "instruction": header.instruction,
                "source": header.source,
            }
        )

    def add(self, step: RunStep) -> None:
        """Append a control step.

        Raises:
            OSError: the disk is full.
        """
        vectors = {"proprio": step.proprio, "action": step.action, "requested": step.requested}
        self._append(
            {
                "time_s": step.time_s,
                "images": {name: _encode(image) for name, image in step.images.items()},
                **{k: np.asarray(v, np.float32).tobytes() for k, v in vectors.items()},
            }
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        body = msgpack.packb(record)
        data = memoryview(_HEAD.pack(len(body), zlib.crc32(body)) + body)
        while data:  # an unbuffered write may take a part
            data = data[self._file.write(data) :]


def read_header(path: Path) -> RunHeader:
    """What a log is of.

    Raises:
        RunLogError: it is none, or of another version.
    """
    record = next(_records(path), {})
    if record.get("format") != _FORMAT:
        raise RunLogError(f"{path} is no log of a run in format {_FORMAT}")
    spec = RobotSpec.from_dict(record["spec"])
    return RunHeader(spec, record["instruction"], record["source"])


def read_steps(path: Path) -> Iterator[RunStep]:
    """Its control steps, as far as they were written whole."""
    records = _records(path)
    next(records, None)
    for record in records:
        yield RunStep(
            record["time_s"],
            {name: _decode(data) for name, data in record["images"].items()},
            *(np.frombuffer(record[key], np.float32) for key in ("proprio", "action", "requested")),
        )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            body = file.read(length)
            # The record that a kill cut short is the last one.
            if len(body) < length or zlib.crc32(body) != checksum:
                return
            yield msgpack.unpackb(body)


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
