"""What a robot's commands must keep: range, velocity, acceleration, jerk, workspace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vla_runtime.contract import CommandKind, RobotSpec, VectorSpec


class LimitsError(ValueError):
    """A limit is missing, is no usable number, or widens what the contract allows."""


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in metres, in the kinematics' base frame; a named point has to stay in.

    Raises:
        LimitsError: a corner is not three numbers, or low is not below high. An infinite side is
            no limit, and allowed.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.low) != 3 or len(self.high) != 3:
            raise LimitsError(f"a box needs three numbers for low and for high: {self}")
        # Not `low >= high`, which NaN would pass.
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise LimitsError(f"low must be below high on each axis of a box: {self}")


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of every action dimension, all stated and all finite.

    Attributes:
        action: names, units and range of the commands; may be narrower than the contract's.
        kinds: whether a dimension's command is a position or a displacement.
        velocity: unit/s, [action.dim].
        acceleration: unit/s^2, [action.dim].
        jerk: unit/s^3, [action.dim]; empty where jerk is not limited.
        control_rate_hz: nominal control steps a second.
        workspace: name of a point of the robot → the box it has to stay in.

    Raises:
        LimitsError: naming the dimension, what is wrong and what is valid.
    """

    action: VectorSpec
    kinds: tuple[CommandKind, ...]
    velocity: tuple[float, ...]
    acceleration: tuple[float, ...]
    control_rate_hz: float
    jerk: tuple[float, ...] = ()
    workspace: dict[str, Box] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.control_rate_hz < math.inf:
            raise LimitsError(
                f"the control rate has to be positive and finite, got {self.control_rate_hz} Hz"
            )
        columns = {"kinds": self.kinds, "velocity": self.velocity}
        columns |= {"acceleration": self.acceleration}
        columns |= {"jerk": self.jerk} if self.jerk else {}
        for label, values in columns.items():
            if len(values) != self.action.dim:
                raise LimitsError(
                    f"{label} has {len(values)} entries, the action has {self.action.dim}: "
                    f"{list(self.action.names)}"
                )
            if label == "kinds":
                continue
            # `not 0 < value`, which NaN does not pass.
            for name, value in zip(self.action.names, values, strict=True):
                if not 0 < value < math.inf:
                    raise LimitsError(
                        f"{label} of {name!r} has to be positive and finite, got {value}"
                    )
        self._check_ranges()

    def _check_ranges(self) -> None:
        action = self.action
        for name, kind, low, high in zip(
            action.names, self.kinds, action.low, action.high, strict=True
        ):
            if kind == "displacement" and not low <= 0 <= high:
                # Stopping means a displacement of 0: it must be a command that may be sent.
                raise LimitsError(
                    f"the range of displacement {name!r} is [{low}, {high}]: it has to contain 0"
                )
            if kind == "position" and not (math.isfinite(low) and math.isfinite(high)):
                raise LimitsError(
                    f"the range of position {name!r} is [{low}, {high}]: state finite limits, in "
                    "the contract or in a limits file"
                )

    @property
    def period_s(self) -> float:
        """The nominal control period."""
        return 1 / self.control_rate_hz

    @classmethod
    def from_spec(cls, spec: RobotSpec) -> SafetyLimits:
        """The limits that a contract states itself.

        Raises:
            LimitsError: it states no motion limits, or unusable ones.
        """
        if spec.motion is None:
            raise LimitsError(
                f"the contract of robot {spec.robot!r} has no motion limits: give a limits file "
                f"with velocity and acceleration for each of {list(spec.action.names)}"
            )
        motion = spec.motion
        return cls(
            action=spec.action,
            kinds=motion.kinds,
            velocity=motion.velocity,
            acceleration=motion.acceleration,
            jerk=motion.jerk,
            control_rate_hz=spec.control_rate_hz,
        )
