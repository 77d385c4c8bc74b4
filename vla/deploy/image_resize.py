"""Antialiased resizing of images as matrix products, which every runtime computes alike.

Pillow and torchvision resize bytes with rounded weights: one pass along each axis, each rounded to
bytes. The same weights are used here, so the result is equal to the last bit; ONNX's own `Resize`
rounds elsewhere, and differs by a level in some pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

_BITS = 22
"""Of a weight's fraction in Pillow. In torchvision at most that many: its weights have 16 bits in
all, with their sign."""


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def _bicubic(x: np.ndarray) -> np.ndarray:
    # Keys 1981 (doi:10.1109/TASSP.1981.1163711) with a = -0.5.
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    # Duchon 1979: a sinc under the main lobe of a wider one.
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# Name -> the kernel and half of its width.
KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


def resize_weights(before: int, after: int, kernel: str) -> np.ndarray:
    """Weights float64 [after, before] of a resize along one axis; each row sums to 1."""
    function, half_width = KERNELS[kernel]
    scale = before / after
    # Shrinking widens the kernel, so that no pixel is skipped.
    stretch = max(scale, 1.0)
    weights = np.zeros((after, before))
    for row in range(after):
        centre, reach = scale * (row + 0.5), half_width * stretch
        first = max(int(centre - reach + 0.5), 0)
        pixels = np.arange(first, min(int(centre + reach + 0.5), before))
        given = function((pixels - centre + 0.5) / stretch)
        weights[row, pixels] = given / given.sum()
    return weights


class ResizeBytes(nn.Module):
    """Resize images [..., height, width] that hold bytes 0..255; the result holds bytes too.

    Args:
        before: height and width of the images.
        after: height and width to make of them.
        kernel: one of `KERNELS`.
        library: "pillow" or "torchvision", which round weights in their own ways.
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int], kernel: str, library: str):
        super().__init__()
        self.rows: Tensor | None
        self.columns: Tensor | None
        for axis, name in enumerate(("rows", "columns")):
            weights = None
            # An axis that keeps its size has no pass, and no second rounding.
            if before[axis] != after[axis]:
                exact = resize_weights(before[axis], after[axis], kernel)
                bits = _BITS if library == "pillow" else _torchvision_bits(exact)
                # Half away from zero, as C rounds; `np.round` would take the even number.
                whole = np.trunc(exact * 2**bits + np.copysign(0.5, exact))
                weights = torch.from_numpy(whole / 2**bits)
            self.register_buffer(name, weights, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Any type to float32 of whole numbers."""
        # float64 holds every sum of the products exactly: they stay below 2^53.
        images = images.double()
        if self.columns is not None:
            images = _to_bytes(images @ self.columns.mT)
        if self.rows is not None:
            images = _to_bytes(self.rows @ images)
        return images.float()


def _torchvision_bits(weights: np.ndarray) -> int:
    """The most for which no weight needs more than 15 bits."""
    bits = 0
    while bits < _BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return bits


def _to_bytes(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5).clamp(0, 255)
