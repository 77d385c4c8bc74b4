"""LeRobot's data set with its images decoded once: the same samples, without a video decoder.

LeRobot decodes every image whenever it is drawn, and its rows one at a time. Here the images come
from the memory-mapped cache, everything else from memory, a whole batch at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from policies.imitation.frame_cache import Frames, open_frames
from vla.data.dataset_contract import describe_unusual_camera

_IMAGES, _WORDS = ("image", "video"), ("string", "language")


class DecodedDataset(Dataset[dict[str, Any]]):
    """The samples of a LeRobotDataset; attributes that are not defined here are that data set's.

    Args:
        dataset: whose samples; its episodes, windows of time, tolerance and image transforms hold.
        cameras: names of those whose images the samples have; by default all.

    Raises:
        ValueError: it has features that are neither images nor numbers, images that are not RGB or
            that its contract leaves out, observations or actions that are not finite or that
            float32, in which LeRobot reads them, does not tell apart; or as `open_frames`.
    """

    def __init__(self, dataset: LeRobotDataset, cameras: Sequence[str] = ()):
        self._dataset = dataset
        _require_readable(dataset, are_chosen=bool(cameras))
        frames = open_frames(Path(dataset.root), cameras, dataset.tolerance_s)
        _require_float32(dataset, frames)
        meta, table = dataset.meta, dataset.hf_dataset.with_format("numpy")
        keys = [frames.spec.features.camera(camera.name) for camera in frames.spec.cameras]
        if not cameras and set(meta.camera_keys) != set(keys):
            raise ValueError(
                f"data set {dataset.root}: meta/info.json has the images "
                f"{sorted(meta.camera_keys)}, meta/contract.json {sorted(keys)}"
            )
        self._images = dict(zip(keys, frames.images.values(), strict=True))
        numbers = [key for key, ft in meta.features.items() if ft["dtype"] not in _IMAGES]
        # All numbers at once: a data set's tables without its images fit into memory.
        columns = table.select_columns(numbers)[:]
        found = _find_frames(frames, columns["episode_index"], columns["frame_index"])
        # Everything lies by episode and time here; `_position` says where a row of LeRobot's is.
        order = np.argsort(found)
        self._position = np.argsort(order)
        self._frame = found[order]  # row of the cache, which holds all episodes
        self._columns = {
            key: _to_tensor(dataset, frames, key, np.array(columns[key])[order], self._frame)
            for key in numbers
        }
        _, first, which, lengths = np.unique(
            frames.episode[self._frame],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        # First frame of each frame's episode, and the one behind its last: int64 [frames].
        self._begin, self._end = first[which], (first + lengths)[which]
        self._tasks = np.array(frames.instructions, dtype=object)[self._frame]

    def __getattr__(self, name: str) -> Any:
        # Only called for what is missing here: `meta`, `num_frames` and whatever LeRobot asks for.
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, as `LeRobotDataset` gives it; images uint8 [3, height, width]."""
        batch = self.batch([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch, which torch's DataLoader does not take apart and collate again."""
        return [_Collated(self.batch(indices))]

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Samples [n, ...] as LeRobot collates them; images uint8 [n, 3, height, width].

        A feature for which the policy wants a window of t moments has [n, t, ...]; moments outside
        the episode are its first or last frame, marked in `<feature>_is_pad` bool [n, t].
        """
        # [n], rows in the order of this class
        at = self._position[np.asarray(indices)]
        begin, end = self._begin[at, None], self._end[at, None]
        batch: dict[str, Any] = {"task": self._tasks[at].tolist()}
        windows: dict[str, list[int]] = self._dataset.reader.delta_indices or {}
        rows = dict.fromkeys((*self._columns, *self._images), at)
        for key, steps in windows.items():
            # [n, t]; rows are in the order of time, so neighbours in time are neighbours here.
            wanted = at[:, None] + np.asarray(steps)
            rows[key] = wanted.clip(begin, end - 1)
            batch[f"{key}_is_pad"] = torch.from_numpy(rows[key] != wanted)
        batch |= {key: column[torch.from_numpy(rows[key])] for key, column in self._columns.items()}
        return batch | {key: self._gather_images(key, rows[key]) for key in self._images}

    def _gather_images(self, key: str, rows: np.ndarray) -> Tensor:
        found = torch.from_numpy(self._images[key][self._frame[rows]])
        images = found.movedim(-1, -3)  # [n, h, w, 3] -> [n, 3, h, w]
        if (change := self._dataset.image_transforms) is not None:
            # One by one, as LeRobot does: each sample gets its own random transform.
            images = torch.stack([change(image) for image in images])
        return images


def _find_frames(frames: Frames, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Rows of the cache that hold these frames of these episodes, int64 [n]."""
    # One ascending number a frame, so that one binary search finds them all.
    width = max(int(frames.frame.max()), int(frame.max())) + 1
    return np.searchsorted(frames.episode * width + frames.frame, episode * width + frame)


def _require_readable(dataset: LeRobotDataset, are_chosen: bool) -> None:
    """Refuse features that are neither RGB images nor numbers, unless cameras were chosen."""
    features = dataset.meta.features
    why = {key: f"holds {ft['dtype']}" for key, ft in features.items() if ft["dtype"] in _WORDS}
    for key in () if are_chosen else dataset.meta.camera_keys:
        why[key] = describe_unusual_camera(features[key])
    if any(why.values()):
        listed = "; ".join(f"{key} {text}" for key, text in why.items() if text)
        raise ValueError(
            f"data set {dataset.root}: {listed}, and only RGB images and numbers are decoded "
            "beforehand. LeRobot's own `lerobot-train` takes the same flags and reads these, too"
        )


def _require_float32(dataset: LeRobotDataset, frames: Frames) -> None:
    """Refuse numbers that LeRobot would round by more than a thousandth of how much they vary."""
    spec = frames.spec
    parts = ((spec.proprio, spec.features.proprio), (spec.action, spec.features.action))
    for (vector, key), values in zip(parts, (frames.proprio, frames.action), strict=True):
        lost = np.abs(values - values.astype(np.float32)).max(axis=0)  # [dim]
        bad = np.flatnonzero(lost > 1e-3 * values.std(axis=0))
        if len(bad):
            dim = bad[0]
            raise ValueError(
                f"data set {dataset.root}: {key} dimension {vector.names[dim]!r} reaches "
                f"{np.abs(values[:, dim]).max():.10g} and varies by {np.ptp(values[:, dim]):g}. "
                f"LeRobot computes with float32, which rounds it by {lost[dim]:g}: train with "
                "`vla pretrain`, which subtracts before it rounds, or record it without its offset"
            )


def _to_tensor(
    dataset: LeRobotDataset, frames: Frames, key: str, values: np.ndarray, rows: np.ndarray
) -> Tensor:
    """A column; what a policy reads has to be finite."""
    if values.dtype == object:
        raise ValueError(f"data set {dataset.root}: {key} is null or of varying length somewhere")
    if key.startswith(("observation", "action")) and values.dtype.kind == "f":
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            row = rows[bad.argmax()]
            raise ValueError(
                f"data set {dataset.root}: {key} is not finite at episode {frames.episode[row]}, "
                f"frame {frames.frame[row]}, nor in {bad.sum() - 1} other frames"
            )
    return torch.from_numpy(values)


class _Collated(dict[str, Any]):
    """A batch that is collated already."""


# Torch collates lists by the type of their elements; dicts would get one more dimension.
default_collate_fn_map[_Collated] = lambda batch, **_: dict(batch[0])
