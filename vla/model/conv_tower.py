"""Images to tokens by convolutions, which learn from few demonstrations without pretraining.

Source: Xiao et al. 2021 (arXiv:2106.14881): a transformer on the output of a few convolutions
learns faster, and is less sensitive to its settings, than one on large patches. The strides are
those of Mnih et al. 2015 (doi:10.1038/nature14236).

A token is of a square of an image, or of a whole image, and tells its keypoints: where learned maps
are strongest, by the spatial soft arg-max of Levine et al. 2016 (arXiv:1504.00702, section 5.1) and
Finn et al. 2016 (arXiv:1509.06113). What finds a thing finds it everywhere, and a position is two
numbers instead of a weight for each place, so few demonstrations suffice; measured in
docs/results.md. Departures: each map's sharpness is learned and starts above 1; its maximum is a
third number; and the keypoints of all images add up to a summary, in which the actor reads
positions before attention has learned where to look.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CHANNELS = (32, 64, 64)
_LOG_SHARPNESS = 1.5  # at the start: a flat arg-max stays near the middle, and learns slowly
_MOST_CAMERAS = 16  # each has an embedding of its own


class ConvTower(nn.Module):
    """Square images to tokens, one row of tokens an image.

    Args:
        image_size: pixels a side.
        grid: tokens a side of an image; one more token is of the whole image.
        width: of a token.
        keypoints: of an image, and of each of its squares; 0 reads features position by position.

    Raises:
        ValueError: the image is too small for so many tokens.
    """

    def __init__(self, image_size: int, grid: int, width: int, keypoints: int):
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
        # What is read of a feature map, and how many numbers that is.
        self.has_keypoints = keypoints > 0
        self.numbers: nn.Module = Keypoints(third, keypoints) if keypoints else nn.Flatten()
        square, image = (
            3 * keypoints if keypoints else third * positions**2
            for positions in (self.cell, self.cell * grid)
        )
        self.local = nn.Linear(square, width)
        self.whole = nn.Linear(image, width)
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
        found = found[..., :used, :used]
        # [n * cameras, channels, grid, cell, grid, cell]
        cells = found.unflatten(-1, (self.grid, self.cell)).unflatten(-3, (self.grid, self.cell))
        # [n * cameras * grid², channels, cell, cell], row by row
        squares = cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        # [n * cameras, grid², numbers]
        of_squares = self.numbers(squares).unflatten(0, (count * cameras, -1))
        of_image = self.numbers(found) if self.has_keypoints else of_squares.flatten(1)
        # [n, cameras, width]
        whole = self.whole(of_image).unflatten(0, (count, cameras))
        local = self.local(of_squares).unflatten(0, (count, cameras))
        tokens = torch.cat([local, whole[:, :, None]], dim=2) + self.position
        summary = (whole * self.gate[:cameras]).sum(1)
        return tokens + self.camera[:cameras], self.summary_norm(summary)


class Keypoints(nn.Module):
    """Where learned maps of an image are strongest, and how strong they are there.

    Args:
        channels: of the feature map.
        count: learned maps.
    """

    def __init__(self, channels: int, count: int):
        super().__init__()
        self.maps = nn.Conv2d(channels, count, 1)
        self.log_sharpness = nn.Parameter(torch.full((count, 1), _LOG_SHARPNESS))

    def forward(self, found: Float[Tensor, "i channels h w"]) -> Float[Tensor, "i numbers"]:
        """Mean columns and rows, from -1 to 1, and strengths from -1 to 1, of every map."""
        height, width = found.shape[-2:]
        maps = self.maps(found).flatten(2)  # [i, count, h * w]
        weight = (maps * self.log_sharpness.exp()).softmax(-1).unflatten(-1, (height, width))
        columns = torch.linspace(-1, 1, width, device=found.device, dtype=weight.dtype)
        rows = torch.linspace(-1, 1, height, device=found.device, dtype=weight.dtype)
        return torch.cat([weight.sum(2) @ columns, weight.sum(3) @ rows, maps.amax(-1).tanh()], 1)
