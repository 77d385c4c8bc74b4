"""Changed images: within their bounds, each on its own, and drawn by the generator alone."""

from __future__ import annotations

import pytest
import torch

from policies.imitation.augmentation import Augmentation
from policies.imitation.config import CloningConfig

IMAGES = torch.randint(
    60, 120, (3, 2, 20, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def apply(seed: int = 0, **bounds: float) -> torch.Tensor:
    """Changed images as floats."""
    changed = Augmentation(**bounds).apply(IMAGES, torch.Generator().manual_seed(seed))
    assert (changed.shape, changed.dtype) == (IMAGES.shape, torch.uint8)
    return changed.float()


def test_nothing_asked_nothing_changed() -> None:
    """Exactly, and it says so."""
    assert torch.equal(apply(), IMAGES.float())
    assert not Augmentation().is_on
    assert Augmentation(colour=0.1).is_on


def test_the_generator_decides() -> None:
    """Equal seeds are equal images; each image gets its own change."""
    assert torch.equal(apply(1, shift=0.2, light=0.2), apply(1, shift=0.2, light=0.2))
    ratio = apply(1, colour=0.5).mean(dim=(2, 3)) / IMAGES.float().mean(dim=(2, 3))
    assert len({round(float(r), 3) for r in ratio.flatten()}) == ratio.numel()


def test_a_shift_moves_the_view_and_repeats_the_border() -> None:
    """Some row and column offset, at most the bound, explains every image."""
    shifted = apply(2, shift=0.2)
    moves = set()
    for before, after in zip(IMAGES.flatten(0, 1).float(), shifted.flatten(0, 1), strict=True):
        explained = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-2, 3)
            if torch.equal(
                before[(torch.arange(20) + dy).clamp(0, 19)][
                    :, (torch.arange(10) + dx).clamp(0, 9)
                ],
                after,
            )
        ]
        assert len(explained) == 1
        moves.update(explained)
    assert len(moves) > 3


def test_light_and_colour_stay_within_their_bounds() -> None:
    """The mean of an image moves by no more than brightness; of a colour by no more than that."""
    ratio = apply(3, light=0.3).mean(dim=(2, 3, 4)) / IMAGES.float().mean(dim=(2, 3, 4))
    assert ((ratio > 0.69) & (ratio < 1.31)).all()
    assert ratio.std() > 0.05
    each = apply(3, colour=0.2).mean(dim=(2, 3)) / IMAGES.float().mean(dim=(2, 3))
    assert ((each > 0.79) & (each < 1.21)).all()


def test_what_makes_no_sense_is_refused() -> None:
    """Bounds outside [0, 1), and frozen perception, which sees each image once."""
    for bounds in ({"shift": -0.1}, {"light": 1.0}):
        with pytest.raises(ValueError, match="lie in"):
            Augmentation(**bounds)
    with pytest.raises(ValueError, match="perception='trained'"):
        CloningConfig(image_light=0.1)
    assert CloningConfig(perception="trained", image_light=0.1).augmentation.light == 0.1
