"""Nested data as tensors and JSON, so that training states are saved without pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested data into tensors and JSON data; `restore_state` is the exact inverse.

    Accepts dicts with str or int keys, lists, tuples, tensors, numpy arrays, str, int, float, bool
    and None: state dicts of optimizers and schedulers, states of random generators.

    Raises:
        TypeError: anything else; names its path.
    """
    tensors: dict[str, Tensor] = {}

    def flatten(path: str, value: Any) -> Any:
        # `type` and not isinstance: a numpy float is a float, but JSON would lose its type.
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor | np.ndarray):
            # The number in front keeps equal paths apart: {"a": {"b": x}, "a/b": y}.
            name = f"{len(tensors)}:{path}"
            is_tensor = isinstance(value, Tensor)
            tensors[name] = value.detach() if is_tensor else torch.from_numpy(value.copy())
            return {"tensor" if is_tensor else "array": name}
        if isinstance(value, list):
            return [flatten(f"{path}/{i}", item) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": [flatten(f"{path}/{i}", item) for i, item in enumerate(value)]}
        if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
            # Pairs, since JSON turns int keys (those of an optimizer's state) into strings.
            return {"dict": [[k, flatten(f"{path}/{k}", item)] for k, item in value.items()]}
        raise TypeError(
            f"state{path} is a {type(value).__name__}, which cannot be saved: use tensors, arrays, "
            "plain values, lists, tuples and dicts with str or int keys"
        )

    return tensors, flatten("", state)


def restore_state(tensors: dict[str, Tensor], structure: Any) -> Any:
    """Exact inverse of `flatten_state`."""
    if isinstance(structure, list):
        return [restore_state(tensors, item) for item in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()  # one tag: tensor, array, tuple or dict
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "tuple":
        return tuple(restore_state(tensors, item) for item in content)
    return {key: restore_state(tensors, item) for key, item in content}
