"""Where a command computes."""

from __future__ import annotations

import torch


def require_device(name: str) -> None:
    """Refuse a GPU that is not there, before anything is decoded, drawn or played.

    Raises:
        ValueError: torch finds no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device here; see vla doctor")
