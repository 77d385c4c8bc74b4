"""LeRobot's data set with its pictures decoded once: the same samples, without a video decoder.

LeRobot decodes every picture whenever it is drawn, and its rows one at a time. Here the pictures
come from the memory-mapped cache, everything else from memory, a whole batch at a time.
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

from policies.imitation.frame_cache import open_frames

_PICTURES = ("image", "video")


class DecodedDataset(Dataset[dict[str, Any]]):
    """The samples of a LeRobotDataset; all that is not said here is that data set's own.

    Args:
        dataset: whose samples; its episodes, windows of time and picture transforms hold.

    Raises:
        ValueError: it has features that are neither pictures nor numbers, or pictures that its
            contract leaves out; or as `open_frames`.
    """

    def __init__(self, dataset: LeRobotDataset):
        self._dataset = dataset
        meta, table = dataset.meta, dataset.hf_dataset.with_format("numpy")
        frames = open_frames(Path(dataset.root))
        cameras = [frames.spec.features.camera(camera.name) for camera in frames.spec.cameras]
        numbers = [key for key, ft in meta.features.items() if ft["dtype"] not in _PICTURES]
        strange = [key for key in numbers if meta.features[key]["dtype"] in ("string", "language")]
        if strange or set(meta.camera_keys) != set(cameras):
            raise ValueError(
                f"{dataset.root} has the pictures {sorted(meta.camera_keys)} and its contract "
                f"{sorted(cameras)}, and the words {strange}: both have to be equal and none words"
            )
        self._images = dict(zip(cameras, frames.images.values(), strict=True))
        columns = table.select_columns(numbers)[:]
        self._columns = {key: torch.from_numpy(np.array(columns[key])) for key in numbers}
        self._frame = columns["index"]  # rows of the cache, which holds all episodes
        episode = columns["episode_index"]
        _, first, lengths = np.unique(episode, return_index=True, return_counts=True)
        which = np.repeat(np.arange(len(first)), lengths)
        self._begin, self._end = first[which], (first + lengths)[which]
        tasks = meta.tasks.sort_values("task_index")
        self._tasks = np.array(tasks.index, dtype=object)[columns["task_index"]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, as `LeRobotDataset` gives it; pictures uint8 [3, height, width]."""
        batch = self.batch([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch, which torch's DataLoader does not take apart and collate again."""
        return [_Collated(self.batch(indices))]

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Samples [n, ...] as LeRobot collates them; pictures uint8 [n, 3, height, width].

        A feature for which the policy wants a window of t moments has [n, t, ...], drawn in to its
        episode, and says where in `<feature>_is_pad` bool [n, t].
        """
        at = np.asarray(indices)
        begin, end = self._begin[at, None], self._end[at, None]
        batch: dict[str, Any] = {"task": self._tasks[at].tolist()}
        windows: dict[str, list[int]] = self._dataset.reader.delta_indices or {}
        rows = dict.fromkeys((*self._columns, *self._images), at)
        for key, steps in windows.items():
            wanted = at[:, None] + np.asarray(steps)
            rows[key] = wanted.clip(begin, end - 1)
            batch[f"{key}_is_pad"] = torch.from_numpy(rows[key] != wanted)
        batch |= {key: column[torch.from_numpy(rows[key])] for key, column in self._columns.items()}
        return batch | {key: self._pictures(key, rows[key]) for key in self._images}

    def _pictures(self, key: str, rows: np.ndarray) -> Tensor:
        found = torch.from_numpy(self._images[key][self._frame[rows]])
        pictures = found.movedim(-1, -3)
        if (change := self._dataset.image_transforms) is not None:
            pictures = torch.stack([change(picture) for picture in pictures])
        return pictures


class _Collated(dict[str, Any]):
    """A batch already."""


default_collate_fn_map[_Collated] = lambda batch, **_: dict(batch[0])
