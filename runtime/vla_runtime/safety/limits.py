"""What a robot's commands must keep: range, velocity, acceleration, jerk, workspace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from vla_runtime.contract import (
    VELOCITY,
    CommandKind,
    ContractMismatchError,
    MotionLimits,
    RobotSpec,
    VectorSpec,
    as_tuples,
)

# Beyond this a number limits nothing, and below its inverse nothing moves.
_LARGEST = 1e12


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
        as_tuples(self, "kinds", "velocity", "acceleration", "jerk")
        # A gate in Python does not tick faster; slower than this nothing is controlled.
        if not 0.01 <= self.control_rate_hz <= 10_000:
            raise LimitsError(
                f"the control rate is {self.control_rate_hz} Hz, valid is 0.01 to 10,000 Hz"
            )
        columns: dict[str, tuple[object, ...]] = {
            "kinds": self.kinds,
            "velocity": self.velocity,
            "acceleration": self.acceleration,
        }
        for label, values in (columns | ({"jerk": self.jerk} if self.jerk else {})).items():
            if len(values) != self.action.dim:
                raise LimitsError(
                    f"{label} has {len(values)} entries, the action has {self.action.dim}: "
                    f"{list(self.action.names)}"
                )
        for i in range(self.action.dim):
            self._check_dimension(i)

    def _check_dimension(self, i: int) -> None:
        name, kind = self.action.names[i], self.kinds[i]
        low, high = self.action.low[i], self.action.high[i]
        if kind not in get_args(CommandKind):
            raise LimitsError(f"kind of {name!r} is {kind!r}, valid: {get_args(CommandKind)}")
        unit = self.action.units[i]
        if kind == "position" and (name.endswith(VELOCITY) or unit.endswith("/s")):
            raise LimitsError(
                f"{name!r} is a velocity, in {unit!r}: as a position it would stop by going on at "
                'the same speed. State kind = "displacement", and velocity and acceleration as the '
                "robot's times the control rate"
            )
        if kind == "displacement" and not low <= 0 <= high:
            # Stopping means a displacement of 0: it must be a command that may be sent.
            raise LimitsError(
                f"the range of displacement {name!r} is [{low}, {high}]: it has to contain 0"
            )
        if kind == "position" and not max(abs(low), abs(high)) <= _LARGEST:
            raise LimitsError(
                f"the range of position {name!r} is [{low}, {high}]: state finite limits, in the "
                "contract or in a limits file"
            )
        for label, values in (
            ("velocity", self.velocity),
            ("acceleration", self.acceleration),
            ("jerk", self.jerk),
        ):
            # Not `value < ...`, which NaN would pass.
            if values and not 1 / _LARGEST <= values[i] <= _LARGEST:
                raise LimitsError(
                    f"{label} of {name!r} has to be positive and finite, {1 / _LARGEST:g} to "
                    f"{_LARGEST:g}, got {values[i]}"
                )

    def require_within(self, spec: RobotSpec) -> None:
        """Refuse limits for another robot, and limits that are wider than its contract's.

        Raises:
            ContractMismatchError: other dimensions, units or another rate than the contract's.
            LimitsError: naming the dimension, the limit and what the contract says.
        """
        ours = (self.action.names, self.action.units, self.control_rate_hz)
        theirs = (spec.action.names, spec.action.units, spec.control_rate_hz)
        if ours != theirs:
            raise ContractMismatchError(
                f"the limits are for (names, units, Hz) {ours}, robot {spec.robot!r} has {theirs}"
            )
        for i, name in enumerate(self.action.names):
            low, high = spec.action.low[i], spec.action.high[i]
            if not (low <= self.action.low[i] and self.action.high[i] <= high):
                raise LimitsError(
                    f"the range of {name!r} is [{self.action.low[i]}, {self.action.high[i]}], "
                    f"wider than the contract's [{low}, {high}]"
                )
            if spec.motion is not None:
                self._require_within_motion(i, name, spec.motion)

    def _require_within_motion(self, i: int, name: str, motion: MotionLimits) -> None:
        if self.kinds[i] != motion.kinds[i]:
            raise LimitsError(
                f"kind of {name!r} is {self.kinds[i]!r}, the contract says {motion.kinds[i]!r}"
            )
        for label in ("velocity", "acceleration", "jerk"):
            given, contract = getattr(self, label), getattr(motion, label)
            if contract and not (given and given[i] <= contract[i]):
                raise LimitsError(
                    f"{label} of {name!r} is {given[i] if given else 'not limited'}, wider than "
                    f"the contract's {contract[i]}"
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
