"""Find damaged videos before a training, not hours into it when one of them is drawn."""

from __future__ import annotations

from pathlib import Path

import av
from av.error import FFmpegError


def require_whole_videos(root: Path) -> None:
    """Open every video of a data set and read its index and its end; decodes nothing.

    Videos that are not there are none of its business: LeRobot fetches those that it needs.

    Raises:
        ValueError: naming those that are damaged or cut short.
    """
    damaged = [path for path in sorted((root / "videos").rglob("*.mp4")) if not _is_whole(path)]
    if damaged:
        listed = ", ".join(str(path.relative_to(root)) for path in damaged)
        raise ValueError(f"data set {root} has damaged videos, copy them again: {listed}")


def _is_whole(path: Path) -> bool:
    """The index can be read, and the packets after the last key frame reach the end it tells."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.duration is None or not stream.average_rate or not stream.time_base:
                return False
            end = (stream.start_time or 0) + stream.duration
            frame = 1 / (stream.average_rate * stream.time_base)
            container.seek(end, stream=stream, backward=True)
            last = max((p.pts or 0 for p in container.demux(stream) if p.size), default=-1)
            return last >= end - 1.5 * frame
    except (FFmpegError, IndexError):
        return False
