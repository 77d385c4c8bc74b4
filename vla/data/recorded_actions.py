"""The actions of a LeRobotDataset on disk, without its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor


def read_chunks(root: Path, action: str, horizon: int) -> Tensor:
    """The next `horizon` actions at every frame; an episode's last one is repeated at its end.

    Args:
        root: folder of the data set.
        action: the feature that holds the actions.
        horizon: control steps a chunk.

    Returns:
        float32 [frames, horizon, action].

    Raises:
        FileNotFoundError: no data there.
    """
    files = sorted((root / "data").rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"data set {root} holds no data/**/*.parquet")
    tables = [pq.read_table(file, columns=[action, "episode_index"]) for file in files]
    # A vector of one number is stored as that number.
    rows = np.concatenate(
        [np.stack(table[action].to_numpy()).reshape(len(table), -1) for table in tables]
    )
    episode = np.concatenate([table["episode_index"].to_numpy() for table in tables])
    last = np.searchsorted(episode, episode, side="right") - 1  # of each frame's episode
    future = np.arange(len(rows))[:, None] + np.arange(horizon)
    return torch.from_numpy(rows.astype(np.float32)[np.minimum(future, last[:, None])])
