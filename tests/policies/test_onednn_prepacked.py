"""Layers with packed weights compute what the layers compute."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from policies.lerobot.onednn_prepacked import can_pack, pack

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution, a linear layer inside another module, and attention, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.inner = nn.Sequential(nn.ReLU(), nn.Flatten(2), nn.Linear(16, 24))
        self.attention = nn.MultiheadAttention(24, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Attention among 32 tokens."""
        tokens = self.inner(self.conv(images))
        return self.attention(tokens, tokens, tokens)[0]


@pytest.mark.skipif(not can_pack(CPU, bf16=False), reason="no oneDNN")
@torch.inference_mode()
def test_the_same_numbers_for_every_size_in_turn() -> None:
    """Batches of one and of four, forth and back, dense and channels last."""
    torch.manual_seed(0)
    plain = Net()
    packed = deepcopy(plain)
    pack(packed)
    assert not isinstance(packed.conv, nn.Conv2d)
    assert isinstance(packed.attention.out_proj, nn.Linear)
    for count in (1, 4, 1):
        images = torch.randn(count, 3, 8, 8)
        for given in (images, images.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(packed(given), plain(images))


@pytest.mark.skipif(not can_pack(CPU, bf16=True), reason="no products of bfloat16")
@torch.inference_mode()
def test_bfloat16_weights_take_what_autocast_gives() -> None:
    """Float32 comes in where a norm stood before."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(36, 8))
    packed = deepcopy(plain).bfloat16()
    pack(packed)
    images = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = packed(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain(images), rtol=0, atol=0.03)


def test_only_on_a_cpu() -> None:
    """Elsewhere layers stay as they are."""
    assert not can_pack("cuda", bf16=False)
