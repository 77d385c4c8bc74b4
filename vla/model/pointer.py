"""Pointing: positions, in every image and in the world, of the objects that an instruction names.

A query (the language model's hidden state at a readout position) is compared with the hidden state
of every image token. The softmax over an image's tokens says in which of them the object is, each
token says where within it, and the expectation is a point in the image: the spatial softmax of
Levine et al. 2016 (arXiv:1504.00702), with a learned query as in pointer networks (Vinyals et al.
2015, arXiv:1506.03134) and an offset a token. The points of all images and proprioception together
give the point in the world. Departure from both: token and offset can be supervised, which teaches
a small model to point from some ten thousand images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn


@dataclass(frozen=True)
class Pointing:
    """Estimated positions of `p` points; `t` is over an image's tokens.

    Attributes:
        world: float32 [n, p, 3], in the model's units of length.
        scores: float32 [n, p, cameras, t], before the softmax over t.
        token_points: float32 [n, p, cameras, t, 2], image coordinates if the point is in that
            token; x to the right and y down, from -1 to 1.
        localisation_std: float32 [n, p], standard deviation of the softmax in image coordinates,
            of the second most certain image, since triangulation takes two images; with one
            camera, of that.
    """

    world: Float32[Tensor, "n p 3"]
    scores: Float32[Tensor, "n p cameras t"]
    token_points: Float32[Tensor, "n p cameras t 2"]
    localisation_std: Float32[Tensor, "n p"]

    def loss(
        self, world: Float32[Tensor, "n p 3"], image_points: Float32[Tensor, "n p cameras 2"]
    ) -> Float32[Tensor, ""]:
        """Training loss against the true points, a scalar.

        Cross-entropy of the token that contains the point, smooth L1 of the point within that token
        (in tokens), and smooth L1 in the world (in the model's units).

        Args:
            world: true points [n, p, 3], in the model's units; NaN where there is none.
            image_points: true image coordinates [n, p, cameras, 2]; NaN where outside the image.
        """
        side = math.isqrt(self.scores.shape[-1])
        visible = image_points.isfinite().all(-1)  # [n, p, cameras]
        truth = image_points[visible]  # [visible, 2]
        column, row = ((truth + 1) / 2 * side).long().clamp(0, side - 1).unbind(-1)
        token = row * side + column
        token_loss = F.cross_entropy(self.scores[visible], token)
        guess = self.token_points[visible].gather(1, token[:, None, None].expand(-1, 1, 2))
        # In widths of a token, so that the weight does not depend on the grid.
        offset_loss = F.smooth_l1_loss(guess.squeeze(1) * side / 2, truth * side / 2, beta=0.05)
        return token_loss + 4.0 * offset_loss + 9.0 * world_loss(self.world, world)


def world_loss(
    guess: Float32[Tensor, "n p 3"], world: Float32[Tensor, "n p 3"]
) -> Float32[Tensor, ""]:
    """Smooth L1 of estimated points in the world, in the model's units, a scalar.

    Args:
        guess: estimated points [n, p, 3].
        world: true points [n, p, 3]; NaN where one is not known, and at least one is.
    """
    known = world.isfinite().all(-1)
    return F.smooth_l1_loss(guess[known], world[known], beta=0.05)


class Pointer(nn.Module):
    """A module from queries and image tokens to points.

    Args:
        points: how many it estimates.
        width: of the hidden states.
        cameras: images an observation.
        tokens: of one image, a square grid row by row.
        proprio_dim: dimensions of proprioception.

    Raises:
        ValueError: the tokens are no square grid.
    """

    grid: Tensor

    def __init__(self, points: int, width: int, cameras: int, tokens: int, proprio_dim: int):
        super().__init__()
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"{tokens} tokens an image are no square grid")
        self.points, self.cameras, self.proprio_dim = points, cameras, proprio_dim
        self.query = nn.Linear(width, 2 * width)
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width))
        self.offset = nn.Linear(width, 2)
        self.mix = nn.Linear(width, width)
        centres = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("grid", grid, persistent=False)
        evidence = 3 * cameras + proprio_dim + width
        self.line = nn.Linear(evidence, 3 * points)
        self.bend = nn.Sequential(nn.Linear(evidence, 128), nn.GELU(), nn.Linear(128, 3 * points))

    def take_wider(self, old: Pointer) -> None:
        """Point as `old` does where cameras and dimensions that it does not know are padding."""
        before, after = 3 * old.cameras, 3 * self.cameras
        width = self.mix.in_features
        columns = torch.cat(
            [
                torch.arange(before),
                after + torch.arange(old.proprio_dim),
                after + self.proprio_dim + torch.arange(width),
            ]
        )
        state = old.state_dict()
        # Columns of new inputs start at 0, so those inputs change nothing before they are trained.
        for name in ("line.weight", "bend.0.weight"):
            wide = torch.zeros_like(self.get_parameter(name))
            wide[:, columns] = state[name]
            state[name] = wide
        self.load_state_dict(state)

    def forward(
        self,
        queries: Float[Tensor, "n p width"],
        images: Float[Tensor, "n cameras t width"],
        proprio: Float32[Tensor, "n proprio"],
        camera_mask: Bool[Tensor, "n cameras"] | None = None,
    ) -> Pointing:
        """Estimate every point in every image and in the world.

        Args:
            queries: float32 [n, p, width].
            images: float32 [n, cameras, t, width], hidden states at the image tokens.
            proprio: float32 [n, proprio], normalised.
            camera_mask: bool [n, cameras], False at cameras that the robot does not have; None
                where it has all.
        """
        match, ask = self.query(queries).chunk(2, dim=-1)
        key, content = self.key(images).chunk(2, dim=-1)
        scores = torch.einsum("npw,nctw->npct", match, key) / key.shape[-1] ** 0.5
        mixed = F.gelu(self.mix(content)[:, None] + ask[:, :, None, None])
        side = math.isqrt(images.shape[2])
        token_points = self.grid + self.offset(mixed) * 2 / side  # [n, p, cameras, t, 2]
        share = scores.softmax(-1)
        expected = (share[..., None] * token_points).sum(-2)  # [n, p, cameras, 2]
        certainty = share.amax(-1, keepdim=True)
        found = torch.cat([expected, certainty], -1)
        distance = (token_points - expected[..., None, :]).square().sum(-1)
        std = (share * distance).sum(-1).sqrt()  # [n, p, cameras]
        if camera_mask is None:
            camera_mask = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        # A camera that exists never has a certainty of 0, so 0 says that there is none.
        found = found * camera_mask[:, None, :, None]
        evidence = torch.cat(
            [
                found.flatten(2),
                proprio[:, None].expand(-1, self.points, -1),
                queries,
            ],
            dim=-1,
        )
        # Each point has rows of its own in the last layer; the others' are not used.
        every = (self.line(evidence) + self.bend(evidence)).unflatten(-1, (self.points, 3))
        world = every.diagonal(dim1=1, dim2=2).transpose(1, 2)  # [n, p, 3]
        second = _second_sharpest(std, camera_mask)
        return Pointing(world.float(), scores.float(), token_points.float(), second.float())


def _second_sharpest(std: Tensor, camera_mask: Tensor) -> Tensor:
    """Second smallest of std [n, p, cameras] over existing cameras, or the only one: [n, p]."""
    # An image is 2 wide, so cameras that do not exist sort last.
    ordered = std.masked_fill(~camera_mask[:, None], 2.0).sort(-1).values
    rank = (camera_mask.sum(-1) - 1).clamp(0, 1)[:, None, None].expand(-1, std.shape[1], 1)
    return ordered.gather(-1, rank).squeeze(-1)
