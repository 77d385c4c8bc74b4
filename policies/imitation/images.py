"""The images of one camera of a LeRobotDataset: encoded in its tables, in files, or in videos.

A source checks on opening that every frame has its image, before anything is decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from vla.data.recorded_frames import RecordedFrames, read_episodes

TOLERANCE_S = 1e-4
"""LeRobot's default for how far a frame may be from its image in time, seconds."""
_MORE_THAN_8_BITS = ("I", "F")  # modes as "I;16", which Pillow clips when it converts to RGB


class EmbeddedImages:
    """Images in the tables of a data set, or in files that the tables name.

    Args:
        frames: of the data set.
        key: the feature that holds the images.
    """

    def __init__(self, frames: RecordedFrames, key: str):
        self._frames, self._key = frames, key

    def decode(self, out: np.ndarray) -> Iterator[int]:
        """Decode into uint8 [frames, height, width, 3]; yields how many the last step decoded.

        Raises:
            ValueError: an image is missing, damaged, not 8-bit or of another size.
        """
        for table, rows, column in self._frames.tables(self._key):
            for row, cell in zip(rows.tolist(), column.to_pylist(), strict=True):
                image = self._open(table, row, cell)
                _require_size(self._frames, self._key, row, image.shape, out)
                out[row] = image
                yield 1

    def _open(self, table: Path, row: int, cell: Any) -> np.ndarray:
        where = f"data set {self._frames.root}: {self._key} of {self._frames.name(row)}"
        fields = cell if isinstance(cell, dict) else {"path": cell}  # {"bytes": ..., "path": ...}
        encoded, path = fields.get("bytes"), fields.get("path")
        try:
            source = io.BytesIO(encoded) if encoded else _find(self._frames.root, table, path)
            with Image.open(source) as image:
                if image.mode.startswith(_MORE_THAN_8_BITS):
                    raise ValueError(
                        f"{where} has pixels of more than 8 bits (mode {image.mode}), a policy "
                        "sees RGB; leave this camera out with --cameras and the others' names"
                    )
                # Palettes, grey and alpha become RGB, as a camera of the contract has it.
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{where} cannot be read: {error}") from error


class _Segment(NamedTuple):
    """One episode in a video: its frames, and the presentation times of their images [frames]."""

    video: Path
    rows: slice
    pts: np.ndarray


class VideoImages:
    """Images in the videos of a data set, each at its frame's time.

    Args:
        frames: of the data set.
        key: the feature that holds the images.
        tolerance_s: how far a frame may be from the nearest image of its video.

    Raises:
        ValueError: an episode that `meta/episodes` does not list, a video that is missing or cut
            short, a frame further from any image than allowed, or two frames with one image; names
            them.
    """

    def __init__(self, frames: RecordedFrames, key: str, tolerance_s: float = TOLERANCE_S):
        self._frames, self._key, self._tolerance_s = frames, key, tolerance_s
        # By video: presentation times and their unit; several episodes share a file.
        self._indices: dict[Path, tuple[np.ndarray, float]] = {}
        self._segments = self._match()

    def decode(self, out: np.ndarray) -> Iterator[int]:
        """As `EmbeddedImages.decode`."""
        for video, rows, pts in self._segments:
            # Several frames may share an image where the tolerance is wide.
            waiting = {int(t): rows.start + np.flatnonzero(pts == t) for t in np.unique(pts)}
            for time, image in self._read(video, int(pts.min())):
                if (found := waiting.pop(time, None)) is not None:
                    _require_size(self._frames, self._key, found[0], image.shape, out)
                    out[found] = image
                    yield len(found)
                # The rest of the file belongs to other episodes.
                if not waiting:
                    break
            if waiting:
                name = self._frames.name(min(int(found[0]) for found in waiting.values()))
                raise self._error(video, f"holds no image of {name} that can be decoded")

    def _match(self) -> list[_Segment]:
        """Find the image of every frame, by time."""
        frames, segments = self._frames, []
        starts = self._read_starts()
        time_s = frames.scalars("timestamp").astype(np.float64)
        apart_s = np.empty(len(frames))  # [frames], every one of which is in one episode
        for number, rows in frames.episodes():
            video, start_s = starts[number]
            pts, time_base = self._read_index(video)
            wanted_s = start_s + time_s[rows]  # in float64: hours into a file, 0.1 ms still counts
            nearest = pts[_nearest(pts * time_base, wanted_s)]
            # [rows], seconds
            apart_s[rows] = np.abs(nearest * time_base - wanted_s)
            segments.append(_Segment(video, rows, nearest))
        self._require_near(apart_s, segments)
        # A tolerance of half a frame or more lets frames share an image, as in slower videos.
        if self._tolerance_s < 0.5 / frames.info["fps"]:
            self._require_own(segments)
        return segments

    def _read_starts(self) -> dict[int, tuple[Path, float]]:
        """In which video each episode lies, and at how many seconds it begins there."""
        root, template = self._frames.root, self._frames.info.get("video_path")
        names = {c: f"videos/{self._key}/{c}" for c in ("chunk_index", "file_index")}
        start = f"videos/{self._key}/from_timestamp"
        listed = read_episodes(root, [*names.values(), start])
        complete = {n: entry for n, entry in listed.items() if None not in entry.values()}
        # Only episodes that have frames: a listed one without any needs no video.
        wanted = [number for number, _ in self._frames.episodes()]
        if missing := [number for number in wanted if number not in complete]:
            raise ValueError(
                f"data set {root}: meta/episodes does not say where in the videos {self._key} of "
                f"episodes {missing} is (it does for {len(complete)} of {len(wanted)}). A complete "
                "copy of meta/episodes is needed; data and videos can stay as they are"
            )
        try:
            videos = {
                n: template.format(video_key=self._key, **{c: entry[k] for c, k in names.items()})
                for n, entry in complete.items()
            }
        except (AttributeError, LookupError, ValueError) as error:
            raise ValueError(
                f"data set {root}: meta/info.json has the video_path {template!r}, which may have "
                f"the fields video_key, chunk_index and file_index alone: {error!r}"
            ) from error
        return {n: (root / videos[n], float(complete[n][start])) for n in wanted}

    def _require_near(self, apart_s: np.ndarray, segments: list[_Segment]) -> None:
        """Refuse frames that have no image of their time; says why."""
        far = np.flatnonzero(~(apart_s <= self._tolerance_s))  # NaN is far, too
        if not len(far):
            return
        row, worst_s = int(far[0]), float(apart_s.max())
        video = next(s.video for s in segments if s.rows.start <= row < s.rows.stop)
        frames = sum(len(s.pts) for s in segments if s.video == video)
        images = len(self._read_index(video)[0])
        found = f"{self._frames.name(row)} is {1e3 * apart_s[row]:.3g} ms from its nearest image"
        if images < frames:
            raise self._error(
                video,
                f"holds {images} images for {frames} frames, it is cut short: {found}. "
                "An intact copy of this one file is needed",
            )
        mend = "the timestamps in data/ or in meta/episodes are wrong"
        if worst_s < 0.5 / self._frames.info["fps"]:  # the nearest image is no other frame's
            mend = f"--tolerance_s={math.ceil(1e4 * worst_s + 0.5) / 1e4:g} takes the nearest image"
        raise self._error(
            video,
            f"does not fit the recorded timestamps: {found}, {1e3 * self._tolerance_s:g} ms are "
            f"allowed ({len(far)} of {len(apart_s)} frames, up to {1e3 * worst_s:.3g} ms); {mend}",
        )

    def _require_own(self, segments: list[_Segment]) -> None:
        """Refuse two frames with the same image, of which one would be another moment's."""
        numbers = {
            video: index for index, video in enumerate(dict.fromkeys(s[0] for s in segments))
        }
        # Of each frame, int64 [frames]: segments come in the order of the frames.
        which = np.concatenate([np.full(len(s.pts), numbers[s.video]) for s in segments])
        times = np.concatenate([s.pts for s in segments])
        order = np.lexsort((times, which))
        shared = (np.diff(which[order]) == 0) & (np.diff(times[order]) == 0)
        if shared.any():
            first, second = map(self._frames.name, order[shared.argmax() :][:2].tolist())
            raise self._error(
                list(numbers)[which[order[shared.argmax()]]],
                f"has one image for two frames, {first} and {second}: the timestamps in data/ or "
                "in meta/episodes are wrong",
            )

    def _read_index(self, video: Path) -> tuple[np.ndarray, float]:
        """Presentation times of its images, int64 ascending, and their unit in seconds."""
        if video not in self._indices:
            pts, unit_s = np.empty(0, np.int64), 0.0
            try:
                with av.open(str(video)) as container:
                    stream = container.streams.video[0]
                    unit_s = float(stream.time_base or 0)
                    # Listed, not decoded: seconds for hours of video. Packets come in the order
                    # of decoding, so their presentation times are sorted.
                    packets = container.demux(stream)
                    pts = np.sort([p.pts for p in packets if p.size and p.pts is not None])
            except (FFmpegError, OSError, IndexError) as error:
                what = f"cannot be read ({error}); an intact copy of this one file is needed"
                raise self._error(video, what) from error
            if not len(pts):
                raise self._error(video, "holds no images")
            self._indices[video] = pts, unit_s
        return self._indices[video]

    def _read(self, video: Path, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Presentation times and images [h, w, 3], from the last key frame before `first` on."""
        try:
            with av.open(str(video)) as container:
                stream = container.streams.video[0]
                container.seek(first - 1, stream=stream, backward=True)
                for frame in container.decode(stream):
                    if frame.pts is not None:
                        yield frame.pts, frame.to_ndarray(format="rgb24")
        except FFmpegError as error:
            raise self._error(video, f"cannot be decoded: {error}") from error

    def _error(self, video: Path, what: str) -> ValueError:
        root = self._frames.root
        return ValueError(f"data set {root}: video {video.relative_to(root)} {what}")


def open_images(
    frames: RecordedFrames, key: str, tolerance_s: float
) -> EmbeddedImages | VideoImages:
    """The images of a feature; see the classes for what is refused."""
    if frames.info["features"][key]["dtype"] == "video":
        return VideoImages(frames, key, tolerance_s)
    return EmbeddedImages(frames, key)


def _find(root: Path, table: Path, path: str | None) -> Path:
    """A file by the path that a table names: as it is, or any tail of it below the data set.

    A data set that was moved still names the folder in which it was recorded.
    """
    if not path:
        raise FileNotFoundError("the table holds neither an image nor the path of one")
    parts = Path(path).parts
    # Longest tail first: a bare file name may exist in several folders.
    tails = [Path(*parts[start:]) for start in range(len(parts))]
    places = [Path(path), *(base / tail for tail in tails for base in (root, table.parent))]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path} is neither there nor below {root}")


def _nearest(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Of ascending times the index of the one nearest to each wanted time, int64 [wanted]."""
    # Index of the first time that is not before the wanted one; its neighbour may be nearer.
    after = np.searchsorted(times_s, wanted_s).clip(1, max(len(times_s) - 1, 1))
    before = after - 1
    after = after.clip(max=len(times_s) - 1)
    return np.where(wanted_s - times_s[before] <= times_s[after] - wanted_s, before, after)


def _require_size(
    frames: RecordedFrames, key: str, row: int, shape: tuple[int, ...], out: np.ndarray
) -> None:
    if shape != out.shape[1:]:
        raise ValueError(
            f"data set {frames.root}: {key} of {frames.name(row)} is {shape}, "
            f"the contract says {out.shape[1:]}"
        )
