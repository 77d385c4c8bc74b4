"""The emulated GPU refuses what a GPU refuses, and computes as the CPU does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from emulated_cuda import PlacementError, emulate_cuda
from torch import Tensor, nn
from torch.nn import functional


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_cuda(monkeypatch)


def on_gpu() -> Tensor:
    """Three numbers there."""
    return torch.tensor([1.0, 2.0, 3.0], device="cuda")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: on_gpu() + torch.ones(3),
        lambda: torch.stack([on_gpu(), torch.ones(3)]),
        lambda: torch.ones(3)[torch.tensor([0], device="cuda")],
        lambda: nn.Linear(3, 2).to("cuda")(torch.ones(3)),
        lambda: nn.Linear(3, 2)(on_gpu()),
        lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
        lambda: torch.randn(3, generator=torch.Generator("cuda")),
        lambda: on_gpu().normal_(generator=torch.Generator()),
        lambda: on_gpu().numpy(),
        lambda: np.asarray(on_gpu()),
    ],
)
def test_mistakes_of_placement_are_found(mistake: Callable[[], object]) -> None:
    """With the kinds of error that torch raises."""
    with pytest.raises((PlacementError, TypeError)):
        mistake()


def test_what_a_gpu_allows_is_allowed() -> None:
    """Numbers of the CPU, indices, copies in both directions, reading values."""
    there = on_gpu()
    assert there.device == torch.device("cuda", 0)
    assert torch.arange(2, device=there.device).is_cuda
    assert (there + torch.tensor(1.0) + 1).tolist() == [3.0, 4.0, 5.0]
    assert there[torch.tensor([2, 0])].cpu().tolist() == [3.0, 1.0]
    assert float(there[0]) == 1.0
    here = torch.zeros(3)
    here.copy_(there)
    there.copy_(torch.ones(3))
    assert here.tolist() == [1.0, 2.0, 3.0]
    assert there.cpu().numpy().tolist() == [1.0, 1.0, 1.0]


def test_learning_there_is_learning_here() -> None:
    """Attention, its gradients, and an optimiser's step."""
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0))
    there = copy.deepcopy(here).to("cuda")
    again = copy.deepcopy(there)
    values = torch.randn(5, 3, 4)
    for network, seen in ((here, values), (there, values.to("cuda")), (again, values.cuda())):
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
        out = network(seen)
        classes = torch.zeros(out.shape[:2], dtype=torch.long, device=out.device)
        # Only a part is used, so that autograd fills in zeros.
        (out.split(1)[0].sum() + (functional.one_hot(classes, 8) * out).sum()).backward()
        optimiser.step()
    for name, weight in here.state_dict().items():
        for other in (there, again):
            assert other.state_dict()[name].is_cuda
            torch.testing.assert_close(other.state_dict()[name].cpu(), weight)
