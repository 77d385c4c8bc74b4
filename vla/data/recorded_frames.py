"""The frames of a LeRobotDataset v3 on disk: keys, vectors and instructions, without its images.

LeRobot and its tools store equal data in several ways: lists of fixed or of variable length, one
number as a number or as a list, symbolic links instead of folders, an `index` that counts through
the data set or anew in each episode. All of them are read here; what is missing or no number is an
error that names data set, episode and frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla.contract import VectorSpec
from vla.data.dataset_info import read_info, recompute_command, vector_names


@dataclass(frozen=True)
class RecordedFrames:
    """All frames of a data set, ordered by episode and, within one, by frame.

    Attributes:
        root: folder of the data set.
        info: its `meta/info.json`.
        files: its tables.
        counts: rows of each table.
        order: int64 [frames], for each frame its row when the tables lie one after another.
        episode: int64 [frames], ascending; numbers may be left out.
        frame: int64 [frames], the number within the episode, ascending in each.
    """

    root: Path
    info: Mapping[str, Any]
    files: tuple[Path, ...]
    counts: tuple[int, ...]
    order: np.ndarray
    episode: np.ndarray
    frame: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)

    def name(self, row: int) -> str:
        """How messages name a frame."""
        return f"episode {self.episode[row]}, frame {self.frame[row]}"

    def episodes(self) -> Iterator[tuple[int, slice]]:
        """The number of each episode, and its frames."""
        numbers, begins, lengths = np.unique(self.episode, return_index=True, return_counts=True)
        for number, begin, length in zip(numbers, begins, lengths, strict=True):
            yield int(number), slice(int(begin), int(begin + length))

    def tables(self, key: str) -> Iterator[tuple[Path, np.ndarray, pa.Array]]:
        """Of each table its path, the frames in it (int64 [rows]) and one column."""
        position = np.empty(len(self), np.int64)  # row in the tables -> frame
        position[self.order] = np.arange(len(self))
        begin = 0
        for file, count in zip(self.files, self.counts, strict=True):
            yield file, position[begin : begin + count], _read_column(self.root, file, key)
            begin += count

    def vectors(self, key: str, may_lack: bool = False) -> np.ndarray:
        """A feature of numbers, [frames, dim].

        float32, or float64 where the stored type holds more than float32 does: whoever subtracts
        an offset of 16,777,217 must do so before rounding.

        Args:
            key: of the feature.
            may_lack: frames may lack it: a null is NaN then, and NaN stays.

        Raises:
            ValueError: a frame lacks it, has another number of dimensions, or holds a null, NaN or
                infinity; names the frame and the dimension.
        """
        feature = self.info["features"].get(key, {"shape": [1]})
        names = vector_names(feature.get("names"), int(np.prod(feature["shape"])))
        parts = [self._matrix(key, rows, array, len(names)) for _, rows, array in self.tables(key)]
        values = np.concatenate(parts)[self.order]  # [frames, dim]
        bad = np.isinf(values) if may_lack else ~np.isfinite(values)
        # All frames are read before the check, so that the message can count the bad ones.
        if bad.any():
            row, column = map(int, np.argwhere(bad)[0])
            value = values[row, column]
            what = "null or NaN" if np.isnan(value) else str(value)
            raise ValueError(
                f"data set {self.root}: {key} is {what} at {self.name(row)}, dimension "
                f"{names[column]!r}; {bad.any(axis=1).sum()} of {len(self)} frames have such "
                "values, and each has to be a finite number"
            )
        return values

    def require_within(self, key: str, spec: VectorSpec) -> None:
        """Refuse limits that the recorded numbers leave, as of data that have grown since.

        Raises:
            ValueError: names the frame that is furthest beyond, and the command that measures anew.
        """
        values = self.vectors(key).astype(np.float64)  # [frames, dim]
        low, high = np.array(spec.low), np.array(spec.high)
        # Statistics may have been measured in float32.
        rounding = np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
        beyond = np.maximum(low - values, values - high) - 1e-5 * (high - low) - rounding
        if (beyond > 0).any():
            row, column = np.unravel_index(beyond.argmax(), beyond.shape)
            raise ValueError(
                f"data set {self.root}: {key} reaches {values[row, column]:g} at "
                f"{self.name(int(row))}, dimension {spec.names[column]!r}, meta/stats.json says "
                f"{low[column]:g} to {high[column]:g}. LeRobot measures it anew, and uploads "
                f"nothing, with: {recompute_command(self.root)}"
            )

    def scalars(self, key: str) -> np.ndarray:
        """A feature of one number, [frames]; as `vectors`."""
        return self.vectors(key)[:, 0]

    def instructions(self) -> list[str]:
        """The instruction of every frame.

        Raises:
            ValueError: a frame has no `task_index`, or one that `meta/tasks.parquet` does not list,
                or one instruction stands for several tasks.
        """
        texts = read_tasks(self.root)
        keys = [int(key) for key in self.scalars("task_index")]
        found = [texts.get(key) for key in keys]
        instructions = [text for text in found if isinstance(text, str)]
        if len(instructions) < len(self):
            row = next(row for row, text in enumerate(found) if not isinstance(text, str))
            what = "is null there" if keys[row] in texts else f"is none of {sorted(texts)}"
            raise ValueError(
                f"data set {self.root}: {self.name(row)} has no instruction: its task_index "
                f"{keys[row]} in meta/tasks.parquet {what}"
            )
        told: dict[str, list[int]] = {}
        for key, text in sorted(set(zip(keys, instructions, strict=True))):
            told.setdefault(text, []).append(key)
        if repeated := {text: tasks for text, tasks in told.items() if len(tasks) > 1}:
            raise ValueError(
                f"data set {self.root}: meta/tasks.parquet has one instruction for several tasks, "
                f"by task_index: {repeated}. Words alone tell a policy which task is meant: give "
                "each words of its own there"
            )
        return instructions

    def _matrix(self, key: str, rows: np.ndarray, array: pa.Array, dim: int) -> np.ndarray:
        """A table's column as numbers [rows, dim]; NaN where there is none."""
        if not hasattr(array, "flatten") or pa.types.is_struct(array.type):
            # One number a row, stored without a list; a null becomes NaN in `_numbers`.
            lengths, flat = pa.array(np.ones(len(array), np.int64)), array
            valid = np.ones(len(array), bool)
        else:
            # `flatten` leaves out rows that are null as a whole.
            lengths, flat = pc.list_value_length(array), array.flatten()
            valid = array.is_valid().to_numpy(zero_copy_only=False)
        found = lengths.to_numpy(zero_copy_only=False)
        # Before the reshape, which would shift all later rows by the surplus or missing numbers.
        wrong = np.flatnonzero(valid & (found != dim))
        if len(wrong):
            raise ValueError(
                f"data set {self.root}: {key} has {found[wrong[0]]:.0f} numbers at "
                f"{self.name(int(rows[wrong[0]]))}, meta/info.json says {dim}"
            )
        numbers = self._numbers(key, flat)
        # [rows, dim]; float32 for narrow types, float64 where the numbers are int32, int64 or
        # float64.
        values = np.full((len(array), dim), np.nan, np.result_type(numbers.dtype, np.float32))
        values[valid] = numbers.reshape(-1, dim)
        return values

    def _numbers(self, key: str, flat: pa.Array) -> np.ndarray:
        kind = flat.type
        if pa.types.is_boolean(kind) or pa.types.is_null(kind):
            # A gripper may be recorded as bool; a column of nothing but nulls has the type null.
            flat = flat.cast(pa.float32())
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ValueError(f"data set {self.root}: {key} holds {kind}, numbers are needed")
        return flat.to_numpy(zero_copy_only=False)  # a null becomes NaN


def read_frames(root: Path, complete: bool = True) -> RecordedFrames:
    """The frames of a data set, in one order whatever that of its tables.

    Args:
        root: folder of the data set.
        complete: refuse fewer or more frames than `meta/info.json` says; LeRobot downloads the
            chosen episodes alone.

    Raises:
        FileNotFoundError: no data set there.
        ValueError: an older format, a table that cannot be read, frames that are missing, occur
            twice or have no number; names tables and episodes.
    """
    info = read_info(root)
    # Tables and rows come in any order: merged and edited data sets do not keep that of recording.
    files = tuple(list_files(root / "data", "*/*.parquet"))
    keys = ("episode_index", "frame_index")
    columns = {key: [_read_keys(root, file, key) for file in files] for key in keys}
    episode, frame = (np.concatenate([np.empty(0, np.int64), *columns[key]]) for key in keys)
    order = np.lexsort((frame, episode))  # by episode, then by frame
    counts = tuple(len(column) for column in columns["frame_index"])
    frames = RecordedFrames(root, info, files, counts, order, episode[order], frame[order])
    # Twice first: a frame that occurs twice can hide one that is missing from the count.
    _require_unique(frames)
    if complete:
        _require_complete(frames)
    return frames


def read_tasks(root: Path) -> dict[int, str | None]:
    """The instructions of a data set by their `task_index`, which is a key and may have gaps.

    Raises:
        ValueError: no such file, or two instructions under one key.
    """
    file = root / "meta" / "tasks.parquet"
    if not file.is_file():
        raise ValueError(f"data set {root} has no meta/tasks.parquet, so no instructions")
    names = [name for name in pq.read_schema(file).names if name != "task_index"]
    # LeRobot calls the column "task"; pandas an index without a name "__index_level_0__".
    column = next((name for name in ("task", "__index_level_0__") if name in names), names[0])
    texts = _read_column(root, file, column).to_pylist()
    tasks: dict[int, str | None] = {}
    for key, text in zip(_read_keys(root, file, "task_index").tolist(), texts, strict=True):
        # The same row twice is harmless; two texts under one key are not.
        if tasks.setdefault(key, text) != text:
            raise ValueError(
                f"data set {root}: meta/tasks.parquet has two instructions for task_index {key}: "
                f"{tasks[key]!r} and {text!r}"
            )
    return tasks


def read_episodes(root: Path, columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """What `meta/episodes` says of each episode, by its number; a column that is missing is None.

    Raises:
        ValueError: a table that cannot be read.
    """
    found: dict[int, dict[str, Any]] = {}
    for file in list_files(root / "meta" / "episodes", "*/*.parquet"):
        there = _read_table(root, file, ["episode_index", *columns])
        for row in there.to_pylist():
            found[row["episode_index"]] = {name: row.get(name) for name in columns}
    return found


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files that fit, sorted, without hidden ones; links to folders are followed.

    The pattern has one `*` for each level, as in LeRobot: `**` would skip linked folders.
    """
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _read_table(root: Path, file: Path, columns: Sequence[str]) -> pa.Table:
    try:
        # A column that does not exist is left out here; `_read_column` refuses it by name.
        with pq.ParquetFile(file) as opened:
            return opened.read(columns=[*columns])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"data set {root}: {file.relative_to(root)} cannot be read ({error}); an intact copy "
            "of this one file is needed"
        ) from error


def _read_column(root: Path, file: Path, key: str) -> pa.Array:
    table = _read_table(root, file, [key])
    if key not in table.column_names:
        raise ValueError(f"data set {root}: {file.relative_to(root)} has no column {key!r}")
    # The empty array first, since concat_arrays refuses a table without rows, which has no chunks.
    array = pa.concat_arrays([pa.array([], table[key].type), *table[key].chunks])
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _read_keys(root: Path, file: Path, key: str) -> np.ndarray:
    """A column of whole numbers, int64 [rows]."""
    where = f"data set {root}: {key} in {file.relative_to(root)}"
    try:
        keys = _read_column(root, file, key).cast(pa.int64())
    except pa.ArrowException as error:
        raise ValueError(f"{where} has to hold whole numbers: {error}") from error
    if keys.null_count:
        raise ValueError(f"{where} is null in row {keys.is_null().to_numpy(False).argmax()}")
    return keys.to_numpy()


def _require_unique(frames: RecordedFrames) -> None:
    twice = np.flatnonzero((np.diff(frames.episode) == 0) & (np.diff(frames.frame) == 0))
    if not len(twice):
        return
    # Rows are counted through all tables: which table holds this pair.
    table = np.searchsorted(np.cumsum(frames.counts), frames.order[twice[0] :][:2], side="right")
    names = [str(frames.files[index].relative_to(frames.root)) for index in table]
    raise ValueError(
        f"data set {frames.root}: {frames.name(twice[0])} occurs twice, in {names[0]} and in "
        f"{names[1]}. Recordings whose episodes have equal numbers are merged with LeRobot's "
        "merge, lerobot-edit-dataset --operation.type=merge --help, or given as several folders"
    )


def _require_complete(frames: RecordedFrames) -> None:
    """Refuse tables that hold other frames than the metadata say."""
    root, wanted = frames.root, frames.info["total_frames"]
    held = {number: rows.stop - rows.start for number, rows in frames.episodes()}
    listed = {n: e["length"] for n, e in read_episodes(root, ["length"]).items()}
    if len(frames) == wanted and wanted > 0:
        # The sum is right; an episode that is not listed has no length that could be wrong.
        other = [n for n in held if held[n] != (listed.get(n) or held[n])]
        if other:
            found = ", ".join(f"episode {n} has {held[n]} of {listed[n]} frames" for n in other)
            raise ValueError(
                f"data set {root}: episodes have other lengths than meta/episodes says: {found}. "
                "Files of one version of data/ and meta/ are needed"
            )
        return
    lacking = [n for n, length in listed.items() if held.get(n, 0) < (length or 0)]
    surplus = [n for n in held if n not in listed]
    found = [f"episodes {lacking} lack frames"] if lacking else []
    found += [f"meta/episodes does not list episodes {surplus}"] if surplus else []
    # `vla collect` keeps this folder until a recording is finished.
    if (root / ".recording").is_dir():
        mend = "an interrupted recording: run the same `vla collect` again, which finishes it"
    else:
        mend = "complete it with the files that are missing in data/ or meta/"
    details = "".join(f"; {line}" for line in found)
    raise ValueError(
        f"data set {root} lists {wanted} frames but holds {len(frames)}{details}: {mend}"
    )
