"""Image augmentation for training: random shift, brightness, contrast and colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How much each image is changed, drawn uniformly up to these bounds; 0 changes nothing.

    Attributes:
        shift: share of the height and width by which the view moves; the border is repeated.
        light: relative change of brightness, and of contrast around the image's mean.
        colour: relative change of each colour.
    """

    shift: float = 0.0
    light: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not all(0.0 <= bound < 1.0 for bound in (self.shift, self.light, self.colour)):
            raise ValueError(f"shift, light and colour lie in [0, 1): {self}")

    @property
    def is_on(self) -> bool:
        """Something is changed."""
        return max(self.shift, self.light, self.colour) > 0

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image of uint8 [..., h, w, 3] changed on its own; a new tensor."""
        # [count, h, w, 3]: each image draws its own change, cameras of one moment too.
        flat = images.flatten(0, -4)
        count, height, width, _ = flat.shape

        def draw(bound: float, *sizes: int) -> Tensor:
            # Uniform in [-bound, bound), [count, *sizes].
            return bound * (2 * torch.rand(count, *sizes, generator=generator) - 1)

        # [count, 2] whole pixels: no interpolation, which would blur.
        moved = (draw(self.shift, 2) * torch.tensor([height, width])).round().long()
        # [count, h] and [count, w], the source of each pixel; clamping repeats the border.
        rows = (torch.arange(height) + moved[:, :1]).clamp(0, height - 1)
        columns = (torch.arange(width) + moved[:, 1:]).clamp(0, width - 1)
        # uint8 [count, h, w, 3]; one gather for all images would take three times as long.
        shifted = torch.stack(
            [
                image.index_select(0, from_row).index_select(1, from_column)
                for image, from_row, from_column in zip(flat, rows, columns, strict=True)
            ]
        )
        if not (self.light or self.colour):
            return shifted.view(images.shape)
        shifted = shifted.float()
        # Of each image: contrast around it leaves the brightness as it is.
        mean = shifted.mean(dim=(1, 2, 3), keepdim=True)
        contrast = 1 + draw(self.light, 1, 1, 1)
        gain = (1 + draw(self.light, 1, 1, 1)) * (1 + draw(self.colour, 1, 1, 3))
        changed = ((shifted - mean) * contrast + mean) * gain
        # Rounded, since `byte` cuts off and would darken every image by half a level.
        return changed.round().clamp(0, 255).byte().view(images.shape)
