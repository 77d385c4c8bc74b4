"""Statistics of demonstrations, and the affine map between physical and normalised vectors.

The map never clips, so that it has an exact inverse, and never passes values through in silence:
a missing statistic is an error. Commands are clipped to the contract's limits after it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.contract import ContractMismatchError, VectorSpec

_LOG = logging.getLogger(__name__)

Normalisation = Literal["limits", "min_max", "quantile", "mean_std"]
NORMALISATIONS: tuple[Normalisation, ...] = ("limits", "min_max", "quantile", "mean_std")


@dataclass(frozen=True)
class VectorStatistics:
    """Statistics of one vector, one number per dimension, in physical units.

    Raises:
        ValueError: lengths differ, a number is not finite, or an order is broken.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if len({len(value) for value in values.values()}) != 1:
            raise ValueError(f"statistics need one equal length: {values}")
        # NaN first: it would pass every comparison of the orders below.
        for name, value in values.items():
            if not all(math.isfinite(number) for number in value):
                raise ValueError(f"statistics have {name} that is not finite: {value}")
        for low, high in (("min", "max"), ("q01", "q99")):
            if any(a > b for a, b in zip(values[low], values[high], strict=True)):
                raise ValueError(f"statistics have {low} above {high}: {values}")
        if any(number < 0 for number in self.std):
            raise ValueError(f"statistics have a negative std: {self.std}")

    @classmethod
    def measure(cls, values: np.ndarray) -> VectorStatistics:
        """Statistics of finite rows [n, d]; n >= 1; std is that of the population."""
        # float64: float32 sums over a million frames lose digits, and the std with them.
        rows = np.asarray(values, dtype=np.float64)
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"statistics need rows [n, d] with n >= 1, got shape {rows.shape}")
        # Quantiles ignore single spikes of a sensor or a command, which extremes do not.
        q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
        measured = (rows.mean(0), rows.std(0), rows.min(0), rows.max(0), q01, q99)
        return cls(*(tuple(column.tolist()) for column in measured))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VectorStatistics:
        """Rebuild from `asdict`, also after JSON.

        Raises:
            ValueError: a statistic is missing.
        """
        if missing := [field.name for field in fields(cls) if field.name not in data]:
            raise ValueError(f"statistics lack {missing}; they have {sorted(data)}")
        return cls(**{field.name: tuple(data[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class Statistics:
    """Statistics of actions and proprioception in the demonstrations."""

    action: VectorStatistics
    proprio: VectorStatistics

    @classmethod
    def measure(cls, actions: np.ndarray, proprio: np.ndarray) -> Statistics:
        """Statistics of action rows [n, a] and proprioception rows [m, p]."""
        return cls(VectorStatistics.measure(actions), VectorStatistics.measure(proprio))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its exact inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Statistics:
        """Rebuild from `to_dict`, also after JSON.

        Raises:
            ValueError: a statistic is missing or not valid.
        """
        if missing := [name for name in ("action", "proprio") if name not in data]:
            raise ValueError(f"statistics lack {missing}; they have {sorted(data)}")
        return cls(*(VectorStatistics.from_dict(data[name]) for name in ("action", "proprio")))


class AffineNormaliser(nn.Module):
    """`encode(x) = (x - offset) / scale` per dimension, and its inverse.

    Its numbers are buffers, so that it moves and is exported with the network around it. They are
    float64, and are subtracted before anything is rounded to float32: a counter of 16,777,217 must
    not become 16,777,216.

    Args:
        label: what the vector is, for messages.
        spec: names and limits of the vector.
        statistics: of the vector; None where the normalisation needs none.
        normalisation: where offset and scale come from.
        width: of the normalised vector, zeros after the vector's own numbers; None adds none.

    Raises:
        ValueError: statistics are missing, limits are infinite, or the width is too small.
        ContractMismatchError: the statistics have another number of dimensions.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        label: str,
        spec: VectorSpec,
        statistics: VectorStatistics | None,
        normalisation: Normalisation,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.label = label
        self.names = spec.names
        self.width = spec.dim if width is None else width
        if self.width < spec.dim:
            raise ValueError(f"{label} has {spec.dim} numbers, {self.width} places are too few")
        first, second = _anchors(label, spec, statistics, normalisation)
        # x -> (x - mean) / std, or the range from first to second onto [-1, 1].
        if normalisation == "mean_std":
            offset, scale = first, second
        else:
            offset, scale = (first + second) / 2, (second - first) / 2
        # A dimension that never moved gets scale 1, which keeps the inverse exact. Rounding leaves
        # a tiny range of equal float64 numbers: that is no variance either.
        flat = scale <= np.maximum(1e-8, 1e-12 * np.abs(offset))
        # The statistics are what a checkpoint saves; these follow from them.
        for name, values in (("offset", offset), ("scale", np.where(flat, 1.0, scale))):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)

    def forward(self, physical: Tensor) -> Tensor:
        """Physical [..., dim], finite, to normalised float32 [..., width]."""
        # The module may be on a GPU with its network while actions of a data set are on the CPU.
        offset, scale = (numbers.to(physical.device) for numbers in (self.offset, self.scale))
        normalised = ((physical.double() - offset) / scale).float()
        # Padding goes to the end, so a robot's own dimensions keep their index.
        return F.pad(normalised, (0, self.width - len(self.names)))

    def inverse(self, normalised: Tensor) -> Tensor:
        """Normalised [..., width] to physical float32 [..., dim]; what was padded is dropped."""
        offset, scale = (numbers.to(normalised.device) for numbers in (self.offset, self.scale))
        return (normalised[..., : len(self.names)].double() * scale + offset).float()

    def encode(self, physical: Tensor | np.ndarray) -> Tensor:
        """As `forward`, checked.

        Raises:
            ContractMismatchError: wrong shape, or a dimension that is not finite.
        """
        values = torch.as_tensor(physical)
        self.require(values)
        return self(values)

    def decode(self, normalised: Tensor) -> Tensor:
        """Exact inverse of `encode`, up to float32 rounding; its shape is checked."""
        self._require_shape(normalised, self.width)
        return self.inverse(normalised)

    def require(self, physical: Tensor) -> None:
        """Refuse physical vectors of another shape, or with dimensions that are not finite.

        Raises:
            ContractMismatchError: naming the dimensions.
        """
        self._require_shape(physical, len(self.names))
        _require_finite(self.label, self.names, physical)

    def _require_shape(self, values: Tensor, width: int) -> None:
        if values.ndim < 2 or values.shape[-1] != width:
            padded = f" padded to {width}" if width != len(self.names) else ""
            raise ContractMismatchError(
                f"{self.label} has shape {tuple(values.shape)}, "
                f"contract says [..., {len(self.names)}]{padded}: {list(self.names)}"
            )


class Limits(nn.Module):
    """The closed range of every dimension of a command, enforced.

    Args:
        label: what the vector is, for messages.
        spec: names, units and limits of the vector.
    """

    low: Tensor
    high: Tensor

    def __init__(self, label: str, spec: VectorSpec) -> None:
        super().__init__()
        self.label, self.spec = label, spec
        # A policy that leaves its limits does so at every step: once is enough for a log.
        self._reported: set[str] = set()
        for name in ("low", "high"):
            numbers = torch.tensor(getattr(spec, name), dtype=torch.float32)
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, physical: Tensor) -> Tensor:
        """Physical [..., dim], clipped; NaN stays NaN."""
        return physical.clamp(self.low.to(physical.device), self.high.to(physical.device))

    def enforce(self, physical: Tensor) -> Tensor:
        """Physical [..., dim], clipped; each dimension that needed it is logged once.

        Raises:
            ContractMismatchError: a dimension is not finite.
        """
        _require_finite(self.label, self.spec.names, physical)
        clipped = self(physical)
        excess = (physical - clipped).abs().flatten(0, -2).amax(0).tolist()  # [dim]
        # A command on its limit may exceed it by rounding: not worth a warning.
        spans = zip(self.spec.names, self.spec.units, excess, self._tolerances(), strict=True)
        for name, unit, over, tolerance in spans:
            if over > tolerance and name not in self._reported:
                self._reported.add(name)
                _LOG.warning(
                    "%s %r is beyond its limits by %.3g %s and is clipped; logged once",
                    self.label,
                    name,
                    over,
                    unit,
                )
        return clipped

    def _tolerances(self) -> list[float]:
        pairs = zip(self.spec.low, self.spec.high, strict=True)
        # Relative to the limit: float32 rounds 1000 mm far more coarsely than 1 rad.
        return [1e-5 * max(abs(low), abs(high), 1.0) for low, high in pairs]


def _require_finite(label: str, names: Sequence[str], values: Tensor) -> None:
    finite = torch.isfinite(values)
    # The only wait for a GPU in the usual case; names are looked up only where something is wrong.
    if finite.all():
        return
    by_name = zip(names, finite.flatten(0, -2).all(0).tolist(), strict=True)
    raise ContractMismatchError(
        f"{label} is not finite in {[name for name, good in by_name if not good]}"
    )


def _anchors(
    label: str,
    spec: VectorSpec,
    statistics: VectorStatistics | None,
    normalisation: Normalisation,
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high, or mean and standard deviation; float64 [dim] each."""
    if normalisation == "limits":
        low, high = np.array(spec.low), np.array(spec.high)
        # Also catches finite limits whose difference overflows.
        endless = ~np.isfinite(high - low)
        if endless.any():
            bad = [name for name, flag in zip(spec.names, endless, strict=True) if flag]
            raise ValueError(
                f"{label} has no finite limits in {bad}: normalise it by 'quantile', 'min_max' or "
                "'mean_std'"
            )
        return low, high
    if statistics is None:
        raise ValueError(
            f"{label} is to be normalised by {normalisation!r}, which needs statistics: measure "
            "them with Statistics.measure, or choose 'limits'"
        )
    if len(statistics.mean) != spec.dim:
        raise ContractMismatchError(
            f"statistics of {label} have {len(statistics.mean)} dimensions, contract says "
            f"{spec.dim}: {list(spec.names)}"
        )
    pairs = {"min_max": ("min", "max"), "quantile": ("q01", "q99"), "mean_std": ("mean", "std")}
    first, second = pairs[normalisation]
    return np.array(getattr(statistics, first)), np.array(getattr(statistics, second))
