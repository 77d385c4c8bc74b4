"""Linear layers and convolutions whose weights are kept as oneDNN multiplies them.

Torch brings weights into that layout at every call, which for a single observation is a third to a
half of the time. These are the operators that torch's own compiler calls on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vla.model.backbone import multiplies_bfloat16


def can_pack(device: torch.device | str, bf16: bool) -> bool:
    """Whether there is oneDNN for this device, with products of this precision."""
    device = torch.device(device)
    # `mkldnn` is the old name of oneDNN.
    able = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return able and (not bf16 or multiplies_bfloat16(device))


def pack(module: nn.Module) -> None:
    """Replace what is inside `module`, for inference alone; attention's own layers stay.

    Args:
        module: on a CPU for which `can_pack` holds; its weights are float32 or bfloat16.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _PackedLinear(child))
        elif isinstance(child, nn.Conv2d):
            setattr(module, name, _PackedConv2d(child))
        # Torch's attention reads the weights of its output layer itself, and never calls the layer.
        elif not isinstance(child, nn.MultiheadAttention):
            pack(child)


class _Packed(nn.Module):
    """Packs again when the size of the input changes."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer
        self._size, self._weight = torch.Size(), torch.empty(0)

    def _packed(self, x: Tensor) -> Tensor:
        # oneDNN chooses the layout for one input shape; a robot always has the same.
        if x.shape != self._size:
            self._size, self._weight = x.shape, self._pack(x)
        return self._weight

    def _pack(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _PackedLinear(_Packed):
    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        # Autocast does not reach these operators: their input has to be converted here.
        x = x.to(layer.weight.dtype)
        # No activation is fused: "none" with its empty arguments.
        return torch.ops.mkldnn._linear_pointwise(x, self._packed(x), layer.bias, "none", [], "")

    def _pack(self, x: Tensor) -> Tensor:
        # All leading dimensions are rows of one product [rows, in] x [in, out].
        rows = x.numel() // x.shape[-1]
        return torch.ops.mkldnn._reorder_linear_weight(self.layer.weight, rows)


class _PackedConv2d(_Packed):
    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        x = x.to(layer.weight.dtype)
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            self._packed(x),
            layer.bias,
            layer.padding,
            layer.stride,
            layer.dilation,
            layer.groups,
            "none",
            [],
            "",
        )

    def _pack(self, x: Tensor) -> Tensor:
        layer = self.layer
        return torch.ops.aten.mkldnn_reorder_conv2d_weight(
            layer.weight.to_mkldnn(),
            layer.padding,
            layer.stride,
            layer.dilation,
            layer.groups,
            list(x.shape),
        )
