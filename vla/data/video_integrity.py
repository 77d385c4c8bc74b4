"""Find damaged videos before a training, not hours into it when one of them is drawn."""

from __future__ import annotations

from pathlib import Path

import av
from av.error import FFmpegError

from vla.data.recorded_frames import list_files


def require_intact_videos(root: Path) -> None:
    """Open every video of a data set and read its index and its end; decodes nothing.

    Missing videos are not looked for: LeRobot fetches those that it needs.

    Raises:
        ValueError: naming those that are damaged or cut short.
    """
    videos = list_files(root / "videos", "*/*/*.mp4")
    damaged = [path for path in videos if not (_has_all_bytes(path) and _reaches_its_end(path))]
    if damaged:
        listed = ", ".join(str(path.relative_to(root)) for path in damaged)
        raise ValueError(
            f"data set {root} has videos that are damaged or cut short, of which intact copies are "
            f"needed: {listed}"
        )


def _has_all_bytes(path: Path) -> bool:
    """The boxes that an MP4 file is made of end where the file ends (ISO/IEC 14496-12, 4.2)."""
    length, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < length:
            file.seek(at)
            # Four bytes of size, four of type, and eight more of size where the first says 1.
            header = file.read(16)
            size = int.from_bytes(header[:4])
            if size == 1:  # the length follows in 64 bits
                size = int.from_bytes(header[8:])
            if size == 0:  # up to the end
                return True
            if size < 8:
                return False
            at += size
    return at == length


def _reaches_its_end(path: Path) -> bool:
    """The index can be read, and the packets after the last key frame reach the end it tells."""
    last, needed = -1.0, 0.0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.duration is None or not stream.average_rate or not stream.time_base:
                return False
            end = (stream.start_time or 0) + stream.duration
            # In units of the stream's time base; the last packet begins one frame before the end.
            needed = end - 1.5 / (stream.average_rate * stream.time_base)
            # To the last key frame, so that only the last packets are read of a long video.
            container.seek(end, stream=stream, backward=True)
            last = max((p.pts or 0 for p in container.demux(stream) if p.size), default=-1)
    except (FFmpegError, IndexError):
        return False
    return last >= needed
