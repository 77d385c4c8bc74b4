"""The pointer: what it expects, what its loss asks for, and that it can learn."""

from __future__ import annotations

import math

import pytest
import torch

from vla.model.pointer import Pointer, Pointing

POINTS, CAMERAS, TOKENS, WIDTH, PROPRIO = 3, 2, 9, 16, 5


def make_truth(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """World points and their image coordinates, one of them outside."""
    generator = torch.Generator().manual_seed(0)
    world = torch.rand(count, POINTS, 3, generator=generator) * 2 - 1
    image_points = torch.rand(count, POINTS, CAMERAS, 2, generator=generator) * 1.9 - 0.95
    image_points[0, 1, 1] = math.nan
    return world, image_points


def perfect(world: torch.Tensor, image_points: torch.Tensor) -> Pointing:
    """A pointing that is sure of the truth."""
    column, row = ((image_points.nan_to_num() + 1) / 2 * 3).long().unbind(-1)
    scores = torch.nn.functional.one_hot(row * 3 + column, TOKENS).float() * 100
    token_points = image_points.nan_to_num()[..., None, :].expand(-1, -1, -1, TOKENS, -1).clone()
    return Pointing(world.clone(), scores, token_points, torch.zeros(world.shape[:2]))


def test_truth_costs_nothing_and_any_error_something() -> None:
    """The loss is zero at the truth; points outside of the image are not asked for."""
    world, image_points = make_truth(4)
    assert float(perfect(world, image_points).loss(world, image_points)) == pytest.approx(
        0, abs=1e-5
    )
    for name in ("world", "scores", "token_points"):
        wrong = perfect(world, image_points)
        getattr(wrong, name)[2] = getattr(wrong, name)[3].clone()
        assert float(wrong.loss(world, image_points)) > 1e-3, name


def test_points_with_its_softmax() -> None:
    """Only the token that matches the query counts, and the grid runs row by row."""
    pointer = Pointer(POINTS, WIDTH, CAMERAS, TOKENS, PROPRIO)
    torch.nn.init.zeros_(pointer.offset.weight)
    torch.nn.init.zeros_(pointer.offset.bias)
    pointing = pointer(
        torch.randn(1, POINTS, WIDTH),
        torch.randn(1, CAMERAS, TOKENS, WIDTH),
        torch.zeros(1, PROPRIO),
    )
    token_points = pointing.token_points[0, 0, 0]
    assert token_points[0].tolist() == pytest.approx([-2 / 3, -2 / 3])
    assert token_points[1].tolist() == pytest.approx([0, -2 / 3], abs=1e-6)  # x runs first
    assert token_points[8].tolist() == pytest.approx([2 / 3, 2 / 3])


def test_learns_where_the_marked_token_is() -> None:
    """A marked token an image is found, and with it the point in the world."""
    torch.manual_seed(0)
    pointer = Pointer(POINTS, WIDTH, CAMERAS, TOKENS, PROPRIO)
    queries = torch.randn(1, POINTS, WIDTH).expand(64, -1, -1)
    optimizer = torch.optim.Adam(pointer.parameters(), lr=3e-3)
    marks = torch.randn(POINTS, WIDTH)
    losses = []
    for _ in range(200):
        where = torch.randint(TOKENS, (64, POINTS, CAMERAS))
        hidden = 0.1 * torch.randn(64, CAMERAS, TOKENS, WIDTH)
        for point, mark in enumerate(marks):
            for camera in range(CAMERAS):
                hidden[torch.arange(64), camera, where[:, point, camera]] += mark
        image_points = pointer.grid[where]
        world = torch.cat([image_points[:, :, 0], image_points[:, :, 1, :1]], dim=-1)
        loss = pointer(queries, hidden, torch.zeros(64, PROPRIO)).loss(world, image_points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(("present", "unsure"), [((1, 1), 0), ((1, 0), 0), ((0, 1), 1)])
def test_is_as_sure_as_its_second_sharpest_image(present: tuple[int, int], unsure: int) -> None:
    """A point seen sharply by two cameras is sure; of an absent camera nothing is said."""
    pointer = Pointer(POINTS, WIDTH, CAMERAS, TOKENS, PROPRIO)
    torch.nn.init.zeros_(pointer.offset.weight)
    torch.nn.init.zeros_(pointer.offset.bias)
    key = torch.zeros(1, CAMERAS, TOKENS, WIDTH)
    torch.nn.init.zeros_(pointer.query.weight)
    with torch.no_grad():
        pointer.query.bias.copy_(torch.linspace(-9, 9, 2 * WIDTH))
    key[:, 0, 4] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    sharp = pointer(
        torch.zeros(1, POINTS, WIDTH),
        key.flip(1) if unsure else key,
        torch.zeros(1, PROPRIO),
        torch.tensor([present]) > 0,
    )
    scores = sharp.scores[0, 0].detach().softmax(-1)
    std = [
        float((s[:, None] * (pointer.grid - s @ pointer.grid) ** 2).sum().sqrt()) for s in scores
    ]
    seen = sorted(s for s, is_there in zip(std, present, strict=True) if is_there)
    assert sharp.localisation_std[0].tolist() == pytest.approx(
        [seen[min(1, len(seen) - 1)]] * POINTS
    )


def test_refuses_tokens_that_are_no_square() -> None:
    """The grid must be known."""
    with pytest.raises(ValueError, match="8 tokens an image are no square grid"):
        Pointer(POINTS, WIDTH, CAMERAS, 8, PROPRIO)
