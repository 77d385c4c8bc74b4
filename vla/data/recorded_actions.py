"""The actions of a LeRobotDataset on disk, without its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla.data.recorded_frames import read_frames


def read_chunks(root: Path, action: str, chunk_length: int) -> Tensor:
    """The next `chunk_length` actions at every frame that is there.

    Beyond an episode's end its last action is repeated.

    Args:
        root: folder of the data set.
        action: the feature that holds the actions.
        chunk_length: control steps a chunk.

    Returns:
        [frames, chunk_length, action.dim], float32 or float64 as `RecordedFrames.vectors`.

    Raises:
        FileNotFoundError: no data there.
        ValueError: as `read_frames` and `RecordedFrames.vectors`.
    """
    frames = read_frames(root, complete=False)
    actions = frames.vectors(action)
    last = np.searchsorted(frames.episode, frames.episode, side="right") - 1  # of its episode
    future = np.arange(len(frames))[:, None] + np.arange(chunk_length)  # [frames, chunk]
    return torch.from_numpy(actions[np.minimum(future, last[:, None])])
