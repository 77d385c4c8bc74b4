"""Pointing: where, in every picture and in the world, the things are that the words name.

A query (the language model's hidden state at a readout position) is compared with the hidden state
of every picture token. The softmax over a picture's tokens says in which of them the thing is, each
token says where within it, and the expectation is a point in the picture: the spatial softmax of
Levine et al. 2016 (arXiv:1504.00702), with a learned query as in pointer networks (Vinyals et al.
2015, arXiv:1506.03134) and an offset a token. The points of all pictures and proprioception
together give the point in the world. Departure from both: token and offset can be supervised, which
teaches a small model to point from some ten thousand pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POINTS = ("gripper", "object", "target")
"""What is pointed at: the robot's hand, the thing to move, and where it shall go."""


@dataclass(frozen=True)
class Pointing:
    """Where things are thought to be; `p` is over `POINTS`, `t` over a picture's tokens.

    Attributes:
        world: float32 [n, p, 3], in the model's units of length.
        scores: float32 [n, p, cameras, t], before the softmax over t.
        places: float32 [n, p, cameras, t, 2], picture coordinates if the thing is in that token;
            x to the right and y down, from -1 to 1.
        spread: float32 [n, p], how far the softmax is spread out (standard deviation in picture
            coordinates) in the second sharpest picture, since a point in the world takes two; in
            the only one where there is one.
    """

    world: Tensor
    scores: Tensor
    places: Tensor
    spread: Tensor

    def loss(self, world: Tensor, pictures: Tensor) -> Tensor:
        """How far this is from the truth, a scalar.

        Cross-entropy of the token that holds the thing, smooth L1 of the place within that token
        (in tokens), and smooth L1 in the world (in the model's units).

        Args:
            world: true points [n, p, 3], in the model's units; NaN where there is none.
            pictures: true picture coordinates [n, p, cameras, 2]; NaN where not in the picture.
        """
        tokens = self.scores.shape[-1]
        side = math.isqrt(tokens)
        seen = pictures.isfinite().all(-1)
        column, row = ((pictures[seen] + 1) / 2 * side).long().clamp(0, side - 1).unbind(-1)
        token = row * side + column
        which = F.cross_entropy(self.scores[seen], token)
        place = self.places[seen].gather(1, token[:, None, None].expand(-1, 1, 2)).squeeze(1)
        within = F.smooth_l1_loss(place * side / 2, pictures[seen] * side / 2, beta=0.05)
        known = world.isfinite().all(-1)
        away = F.smooth_l1_loss(self.world[known], world[known], beta=0.05)
        return which + 4.0 * within + 9.0 * away


class Pointer(nn.Module):
    """Queries and picture tokens to points.

    Args:
        width: of the hidden states.
        cameras: pictures an observation.
        tokens: of one picture, a square grid row by row.
        proprio_dim: numbers of proprioception.

    Raises:
        ValueError: the tokens are no square grid.
    """

    grid: Tensor

    def __init__(self, width: int, cameras: int, tokens: int, proprio_dim: int):
        super().__init__()
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"{tokens} tokens a picture are no square grid")
        self.cameras, self.proprio_dim = cameras, proprio_dim
        self.query = nn.Linear(width, 2 * width)
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width))
        self.offset = nn.Linear(width, 2)
        self.mix = nn.Linear(width, width)
        centres = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("grid", grid, persistent=False)
        evidence = 3 * cameras + proprio_dim + width
        self.line = nn.Linear(evidence, 3 * len(POINTS))
        self.bend = nn.Sequential(
            nn.Linear(evidence, 128), nn.GELU(), nn.Linear(128, 3 * len(POINTS))
        )

    def take_wider(self, old: Pointer) -> None:
        """Point as `old` does where the cameras and numbers that it does not know are padding."""
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
        for name in ("line.weight", "bend.0.weight"):
            wide = torch.zeros_like(self.get_parameter(name))
            wide[:, columns] = state[name]
            state[name] = wide
        self.load_state_dict(state)

    def forward(
        self, queries: Tensor, pictures: Tensor, proprio: Tensor, present: Tensor | None = None
    ) -> Pointing:
        """Point.

        Args:
            queries: float32 [n, p, width].
            pictures: float32 [n, cameras, t, width], hidden states at the picture tokens.
            proprio: float32 [n, proprio], normalised.
            present: bool [n, cameras], which pictures are of a camera; all are where None.
        """
        match, ask = self.query(queries).chunk(2, dim=-1)
        key, content = self.key(pictures).chunk(2, dim=-1)
        scores = torch.einsum("npw,nctw->npct", match, key) / key.shape[-1] ** 0.5
        mixed = F.gelu(self.mix(content)[:, None] + ask[:, :, None, None])
        side = math.isqrt(pictures.shape[2])
        places = self.grid + self.offset(mixed) * 2 / side
        share = scores.softmax(-1)
        expected = (share[..., None] * places).sum(-2)  # [n, p, cameras, 2]
        certainty = share.amax(-1, keepdim=True)
        found = torch.cat([expected, certainty], -1)
        away = (places - expected[..., None, :]).square().sum(-1)
        spread = (share * away).sum(-1).sqrt()
        if present is None:
            present = torch.ones(len(queries), self.cameras, dtype=torch.bool, device=share.device)
        found = found * present[:, None, :, None]  # a real camera is never certain by 0
        # No picture is as wide as 2, so what no camera took comes last.
        sharpest = spread.masked_fill(~present[:, None], 2.0).sort(-1).values
        second = (present.sum(-1) - 1).clamp(0, 1)[:, None, None].expand(-1, len(POINTS), 1)
        evidence = torch.cat(
            [
                found.flatten(2),
                proprio[:, None].expand(-1, len(POINTS), -1),
                queries,
            ],
            dim=-1,
        )
        # Each point has rows of its own in the last layer; the others' are not used.
        every = (self.line(evidence) + self.bend(evidence)).unflatten(-1, (len(POINTS), 3))
        world = every.diagonal(dim1=1, dim2=2).transpose(1, 2)
        spread = sharpest.gather(-1, second).squeeze(-1)
        return Pointing(world.float(), scores.float(), places.float(), spread.float())
