"""What transformers' image processors compute, as a module that is exported with the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin
from transformers.image_utils import pil_torch_interpolation_mapping

from vla.deploy.image_resize import KERNELS, ResizeBytes
from vla.deploy.onnx_graphs import ExportError


class ImageProcessing(nn.Module):
    """Bytes [m, 3, height, width] to pixel values float32 [m, 3, h, w]: resize, crop, normalise.

    Args:
        processor: of a pretrained model.
        size_px: height and width of the images.

    Raises:
        ExportError: its image processor does more than that.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, processor: ProcessorMixin, size_px: tuple[int, int]):
        super().__init__()
        images: Any = getattr(processor, "image_processor")  # noqa: B009  no typed attribute
        library = "pillow" if images.backend == "pil" else images.backend
        kernel = _kernel(images, library)
        self.resizes = nn.Sequential()
        for after in _sizes(images, size_px):
            self.resizes.append(ResizeBytes(size_px, after, kernel, library))
            size_px = after
        self._crop = _crop(images, size_px)
        if not (images.do_rescale and images.do_normalize):
            raise ExportError(f"{type(images).__name__} that does not normalise is not exported")
        # As transformers fuses them: mean and standard deviation in bytes.
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(images, f"image_{name}")) / images.rescale_factor
            self.register_buffer(name, numbers[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        rows, columns = self._crop
        return (self.resizes(images.float())[..., rows, columns] - self.mean) / self.std


def _kernel(images: Any, library: str) -> str:
    kernel = pil_torch_interpolation_mapping[images.resample].value
    # Torchvision has no Lanczos for tensors, and transformers takes its bicubic kernel instead.
    if (kernel, library) == ("lanczos", "torchvision"):
        return "bicubic"
    if kernel not in KERNELS:
        raise ExportError(f"images resized by {kernel!r} are not exported: {sorted(KERNELS)}")
    return kernel


def _sizes(images: Any, size_px: tuple[int, int]) -> list[tuple[int, int]]:
    """Every size that an image is given, one after the other."""
    kind, size = type(images).__name__, images.size
    if not images.do_resize:
        return []
    if getattr(images, "max_image_size", None):  # SmolVLM and Idefics 3
        if images.do_image_splitting:
            raise ExportError(f"{kind} that splits images into tiles is not exported")
        side = images.max_image_size["longest_edge"]
        # Enlarged or shrunk in proportion, then to a square: two resizes, each rounded.
        return [_longest_edge(size_px, size["longest_edge"]), (side, side)]
    if size.get("height") and size.get("width"):
        return [(size["height"], size["width"])]
    if size.get("shortest_edge") and not size.get("longest_edge"):  # CLIP
        return [_shortest_edge(size_px, size["shortest_edge"])]
    raise ExportError(f"{kind} that resizes to {dict(size)} is not exported")


def _crop(images: Any, size_px: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that are kept."""
    if not getattr(images, "do_center_crop", False):
        return slice(None), slice(None)
    kept = images.crop_size["height"], images.crop_size["width"]
    if kept[0] > size_px[0] or kept[1] > size_px[1]:
        raise ExportError(f"{type(images).__name__} that crops {size_px} to {kept} is not exported")
    first = [(size - side) // 2 for size, side in zip(size_px, kept, strict=True)]
    return slice(first[0], first[0] + kept[0]), slice(first[1], first[1] + kept[1])


def _shortest_edge(size_px: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Height and width in proportion."""
    height, width = size_px
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


def _longest_edge(size_px: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width in proportion, both even, as SmolVLM's processor rounds them."""
    height, width = size_px
    if width >= height:
        return _even(int(longest / (width / height))), longest
    return longest, _even(int(longest * (width / height)))


def _even(number: int) -> int:
    return max(number + number % 2, 1)
