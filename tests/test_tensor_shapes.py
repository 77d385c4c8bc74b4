"""Annotated shapes are checked while the tests run, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tensor_shapes
import torch
from jaxtyping import TypeCheckError

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from jaxtyping import Float, Int64
from torch import Tensor
if TYPE_CHECKING:
    from elsewhere import Unknown

def pick(
    rows: Float[Tensor, "n width"], at: Int64[Tensor, " n"], by: Unknown
) -> Float[Tensor, " n"]:
    return rows[range(len(at)), at] if by == "row" else rows.sum()

@dataclass(frozen=True)
class Batch:
    states: Float[Tensor, "n state"]
    rewards: Float[Tensor, " n"]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.rewards

    @classmethod
    def empty(cls, like: Float[Tensor, " n"]) -> Batch:
        return cls(like[:, None], like)

def plain(rows: Tensor) -> Tensor:
    return rows
"""


@pytest.fixture
def module() -> ModuleType:
    """A module with annotations of every kind, after the checks were put on."""
    made = ModuleType("sim.made_up")
    sys.modules[made.__name__] = made  # where dataclasses look for it
    exec(SOURCE, made.__dict__)
    tensor_shapes.check_shapes(made)
    del sys.modules[made.__name__]
    return made


def test_right_shapes_pass(module: ModuleType) -> None:
    """Results are those of the plain function, also where pyright alone knows an annotation."""
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert module.pick(rows, torch.tensor([1, 0]), "row").tolist() == [2.0, 3.0]
    assert module.Batch.empty(torch.ones(3)).states.shape == (3, 1)


def test_wrong_shapes_dtypes_and_results_are_refused(module: ModuleType) -> None:
    """One name, one size; the kind of number; the number of axes; the result, too."""
    rows = torch.ones(2, 3)
    with pytest.raises(TypeCheckError, match="at"):
        module.pick(rows, torch.tensor([0, 1, 2]), "row")
    with pytest.raises(TypeCheckError, match="at"):
        module.pick(rows, torch.tensor([0.0, 1.0]), "row")
    with pytest.raises(TypeCheckError, match="rows"):
        module.pick(rows[0], torch.tensor([0, 1]), "row")
    with pytest.raises(TypeCheckError, match="return value"):
        module.pick(rows, torch.tensor([0, 1]), "total")
    with pytest.raises(TypeCheckError, match="rewards"):
        module.Batch(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeCheckError, match="return value"):
        _ = module.Batch(torch.ones(2, 3), torch.ones(2)).total
    with pytest.raises(TypeCheckError, match="like"):
        module.Batch.empty(torch.ones(2, 2))


def test_functions_without_shapes_are_left_alone(module: ModuleType) -> None:
    """They cost nothing."""
    assert not hasattr(module.plain, "__wrapped__")
    assert hasattr(module.pick, "__wrapped__")


def test_compilers_see_the_plain_function(module: ModuleType) -> None:
    """The checks add no break to a compiled graph."""
    pick = torch.compile(module.pick, backend="eager", fullgraph=True)
    assert pick(torch.ones(2, 3), torch.tensor([0, 1]), "row").tolist() == [1.0, 1.0]


def test_the_modules_of_the_packages_are_checked() -> None:
    """The hook of conftest.py reached them: hidden states of a wrong width are refused."""
    from vla.model.backbone import Hidden

    images, prompt = torch.zeros(1, 3, 9, 8), torch.zeros(1, 4, 8)
    mask = torch.ones(1, 4, dtype=torch.bool)
    Hidden(images, torch.zeros(1, 4, 8), prompt, mask)
    with pytest.raises(TypeCheckError, match="readout"):
        Hidden(images, torch.zeros(1, 4, 7), prompt, mask)


def test_a_late_hook_is_refused() -> None:
    """What was imported before would stay unchecked without a word."""
    with pytest.raises(RuntimeError, match="imported before"):
        tensor_shapes.install()


def test_nothing_is_checked_outside_the_tests() -> None:
    """What runs on a robot needs no type checker."""
    program = (
        "import sys; from vla.model.backbone import Hidden; "
        "assert not hasattr(Hidden.__init__, '__wrapped__'); assert 'beartype' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
