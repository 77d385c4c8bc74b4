"""Which points of a scene a model estimates, and in what units: none is normal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.settings import require_numbers

WORLD = "world"
"""Frame of a simulator's own coordinates."""

_LEAST_SCALE_M = 0.01
"""Unit of points that hardly move; that of points that never do would be 0."""


@dataclass(frozen=True)
class PointSpec:
    """A point whose position a model estimates.

    Attributes:
        name: what it is, such as "gripper"; it is supervised with the data's point of that name.
        static: it does not move while the instruction stays the same: its position is averaged
            over the episode, weighted by inverse variances.
        frame: coordinate frame of its position; it is supervised with points of this frame alone.
    """

    name: str
    static: bool = False
    frame: str = WORLD


@dataclass(frozen=True)
class PointsConfig:
    """The points that a model estimates.

    Attributes:
        specs: the points; without any the model has no pointer.
        center_m: origin of the model's coordinates, the middle of the workspace.
        scale_m: unit of length of the model's coordinates, about half the workspace.
        relative: pairs of names: the actor also reads the second's position relative to the first.
        relative_gain: factor on those: at contact, millimetres decide.
    """

    specs: tuple[PointSpec, ...] = ()
    center_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale_m: float = 1.0
    relative: tuple[tuple[str, str], ...] = ()
    relative_gain: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self, above_0=("scale_m", "relative_gain"), any_sign=("center_m",))
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"points have different names, got {', '.join(self.names)}")
        self._require_known({name for pair in self.relative for name in pair})
        frames = {spec.name: spec.frame for spec in self.specs}
        if mixed := [pair for pair in self.relative if len({frames[name] for name in pair}) > 1]:
            raise ValueError(
                f"a position relative to another needs one frame for both, which {mixed} do not "
                f"have: {frames}"
            )

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the order of everything that is over points."""
        return tuple(spec.name for spec in self.specs)

    @property
    def static(self) -> tuple[int, ...]:
        """Which of them are static, ascending."""
        return tuple(index for index, spec in enumerate(self.specs) if spec.static)

    def with_static(self, names: Collection[str]) -> PointsConfig:
        """The same points, these alone static.

        Raises:
            ValueError: a name that is none of the points'.
        """
        self._require_known({*names})
        return replace(
            self, specs=tuple(replace(spec, static=spec.name in names) for spec in self.specs)
        )

    def scaled(self, positions: Tensor) -> Tensor:
        """Positions [..., 3] in metres, float32 in the model's units."""
        return ((positions - torch.tensor(self.center_m)) / self.scale_m).float()

    def truth(self, positions: Mapping[str, Tensor], count: int) -> Tensor:
        """These points of some observations, float32 [count, points, 3], in the model's units.

        Args:
            positions: by name [count, 3], in the world, in metres; NaN where one is not known.
            count: of the observations.

        Returns:
            The known positions; NaN at all others, and at points in another frame.
        """
        unknown = torch.full((count, 3), torch.nan)
        found = [
            positions.get(spec.name, unknown) if spec.frame == WORLD else unknown
            for spec in self.specs
        ]
        return self.scaled(torch.stack(found, dim=1))

    @classmethod
    def measured(cls, positions: Mapping[str, np.ndarray]) -> PointsConfig:
        """Points for a new model, by name, with origin and unit of these positions [m, 3]."""
        # Without the outermost hundredth: a thing that once fell off the table sets no unit.
        low, high = np.quantile(np.concatenate([*positions.values()]), (0.01, 0.99), axis=0)
        x, y, z = ((low + high) / 2).tolist()
        scale_m = max(float((high - low).max()) / 2, _LEAST_SCALE_M)
        # No relative positions: a gain on them pays where pointing is exact to millimetres, and
        # multiplies the noise of a pointer that has yet to learn. The head can subtract by itself.
        return cls(tuple(PointSpec(name) for name in positions), (x, y, z), scale_m)

    def _require_known(self, names: set[str]) -> None:
        if unknown := sorted(names - {*self.names}):
            known = ", ".join(self.names) or "none"
            raise ValueError(f"no points {unknown}; the model knows: {known}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PointsConfig:
        """What `dataclasses.asdict` gave, also after JSON."""
        # JSON has no tuples; a list would not equal the configuration that was saved.
        return cls(
            specs=tuple(PointSpec(**spec) for spec in data["specs"]),
            center_m=tuple(data["center_m"]),
            scale_m=data["scale_m"],
            relative=tuple((first, second) for first, second in data["relative"]),
            relative_gain=data["relative_gain"],
        )
