"""Pretrained models whose upper layers are not read."""

from __future__ import annotations

from torch import nn


def cut_layers(stack: nn.Module, layers: int, layer: int) -> None:
    """Drop every layer above the chosen one.

    Args:
        stack: a model with one list of `layers` layers.
        layers: how many its configuration says.
        layer: the last that stays, counted from 1; -1 keeps all.

    Raises:
        ValueError: there is no such layer, or the list of layers is not found.
    """
    kept = layer if layer > 0 else layers + 1 + layer  # -1: all, -2: all but the last
    if not 1 <= kept <= layers:
        raise ValueError(f"no layer {layer}: give 1 to {layers}, or -1 to {-layers} from the end")
    # Found by its length, since every architecture gives it another name.
    lists = [m for m in stack.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if kept < layers and not lists:
        raise ValueError(f"{type(stack).__name__} shows no list of its {layers} layers: use -1")
    if kept < layers:
        del lists[0][kept:]
