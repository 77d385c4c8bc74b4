"""Images to tokens by convolutions, which learn from few demonstrations without pretraining.

Source: Xiao et al. 2021 (arXiv:2106.14881): a transformer on the output of a few convolutions
learns faster, and is less sensitive to its settings, than one on large patches. The strides are
those of Mnih et al. 2015 (doi:10.1038/nature14236). Departures: a token holds a square of the last
feature map, position by position, so no position within it is lost; and one more token an image is
a linear map of the whole feature map. Those of all images give a summary, in which the actor reads
positions as in an ordinary convolutional network, before attention has learned where to look.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHANNELS = (32, 64, 64)
_MOST_CAMERAS = 16  # each has an embedding of its own


class ConvTower(nn.Module):
    """Square images to tokens, one row of tokens an image.

    Args:
        image_size: pixels a side.
        grid: tokens a side of an image; one more token is of the whole image.
        width: of a token.

    Raises:
        ValueError: the image is too small for so many tokens.
    """

    def __init__(self, image_size: int, grid: int, width: int):
        super().__init__()
        first, second, third = _CHANNELS
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, first, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(first, second, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(second, third, 3),
            nn.ReLU(),
        )
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):
                # As large behind a layer as before it; torch's own start shrinks what is seen.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        side = ((image_size - 8) // 4 + 1 - 4) // 2 + 1 - 2
        # Positions a side of a token; what does not divide is cut off at the right and the bottom.
        self.cell = side // grid
        if self.cell < 1:
            raise ValueError(
                f"images of {image_size} px give {max(side, 0)} positions a side: too few for "
                f"{grid} x {grid} tokens"
            )
        self.grid = grid
        self.local = nn.Linear(third * self.cell**2, width)
        self.whole = nn.Linear(third * (self.cell * grid) ** 2, width)
        self.position = nn.Parameter(torch.randn(grid**2 + 1, width) * 0.02)
        self.camera = nn.Parameter(torch.randn(_MOST_CAMERAS, 1, width) * 0.02)
        # In a sum over cameras: by its gate each camera has channels of its own.
        self.gate = nn.Parameter(torch.randn(_MOST_CAMERAS, width))
        self.summary_norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [n, cameras, grid² + 1, width] and a summary [n, width] of all images.

        Args:
            pixels: [n, cameras, 3, size, size], from -1 to 1.

        Raises:
            ValueError: more cameras than the model has embeddings for.
        """
        count, cameras = pixels.shape[:2]
        if cameras > _MOST_CAMERAS:
            raise ValueError(
                f"{cameras} cameras, and a convolutional tower tells {_MOST_CAMERAS} apart: name "
                "those that matter with --cameras"
            )
        found = self.convolutions(pixels.flatten(0, 1))  # [n * cameras, channels, side, side]
        used = self.cell * self.grid
        # [n * cameras, channels, grid, cell, grid, cell]
        cells = found[..., :used, :used].unflatten(-1, (self.grid, self.cell))
        cells = cells.unflatten(-3, (self.grid, self.cell))
        # [n * cameras, grid², channels * cell²], row by row
        squares = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        whole = self.whole(squares.flatten(1))  # [n * cameras, width]
        tokens = torch.cat([self.local(squares), whole[:, None]], dim=1) + self.position
        summary = (whole.unflatten(0, (count, cameras)) * self.gate[:cameras]).sum(1)
        placed = tokens.unflatten(0, (count, cameras)) + self.camera[:cameras]
        return placed, self.summary_norm(summary)
