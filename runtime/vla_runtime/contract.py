"""The contract that data sets, policies, environments, planners, servers and robots share.

A numpy-only leaf. A `RobotSpec` is saved with every checkpoint, data set and exported policy, and
compared whenever two parts meet, so that units, names, limits, cameras and rates can never drift
apart in silence. `vla.contract` adds the batched types, which hold torch tensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np


class ContractMismatchError(ValueError):
    """Two parts that meet do not share one contract; the message lists every difference."""


def as_tuples(spec: object, *names: str) -> None:
    """Make these fields of a frozen dataclass tuples: a list may change, and equals no tuple."""
    for name in names:
        object.__setattr__(spec, name, tuple(getattr(spec, name)))


@dataclass(frozen=True)
class VectorSpec:
    """A named vector: one name, unit and closed range per dimension.

    Raises:
        ValueError: lengths differ, a name repeats, or a range is empty or not a number.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        as_tuples(self, "names", "units", "low", "high")
        # Checked here, so that everyone who holds a spec can zip its fields without asking.
        lengths = {len(self.names), len(self.units), len(self.low), len(self.high)}
        if len(lengths) != 1 or not self.names:
            raise ValueError(f"names, units, low and high need one equal length: {self}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names repeat: {self.names}")
        # Not `low >= high`, which NaN would pass. An infinite limit is allowed: some sensors have
        # none.
        bounds = zip(self.names, self.low, self.high, strict=True)
        if bad := [name for name, low, high in bounds if not low < high]:
            raise ValueError(f"low must be below high for {bad}")

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.names)


@dataclass(frozen=True)
class CameraSpec:
    """One camera: uint8 RGB images of `height` x `width` pixels, row 0 at the top."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class FeatureMap:
    """The features of a LeRobotDataset that hold what the contract describes.

    Attributes:
        action: feature of the commands.
        proprio: feature of proprioception.
        cameras: camera name → feature of its images; by default LeRobot's usual name.
    """

    action: str = "action"
    proprio: str = "observation.state"
    cameras: dict[str, str] = field(default_factory=dict)

    def camera(self, name: str) -> str:
        """The feature that holds a camera's images."""
        return self.cameras.get(name, f"observation.images.{name}")


CommandKind = Literal["position", "displacement"]
VELOCITY = ".vel"
"""How LeRobot's names of velocities end."""


@dataclass(frozen=True)
class MotionLimits:
    """How fast a robot's commands may change; one entry per action dimension.

    The positions themselves are limited by the contract's `action.low` and `action.high`.

    Attributes:
        kinds: "position": the command is where to be, in the action's unit; "displacement": how far
            to go within one control step, so that command times control rate is a velocity.
        velocity: largest magnitude, unit/s.
        acceleration: largest magnitude, unit/s^2.
        jerk: largest magnitude, unit/s^3; empty where it is not limited.

    Raises:
        ValueError: an unknown kind, lengths differ, or a limit is not a positive finite number.
    """

    kinds: tuple[CommandKind, ...]
    velocity: tuple[float, ...]
    acceleration: tuple[float, ...]
    jerk: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "kinds", "velocity", "acceleration", "jerk")
        if unknown := set(self.kinds) - set(get_args(CommandKind)):
            raise ValueError(f"kinds {sorted(unknown)} are none of {get_args(CommandKind)}")
        for name in ("velocity", "acceleration", "jerk"):
            values = getattr(self, name)
            if len(values) != len(self.kinds) and not (name == "jerk" and not values):
                raise ValueError(f"{name} has {len(values)} entries, kinds has {len(self.kinds)}")
            # `not 0 < value` instead of `value <= 0`, which NaN would pass.
            if bad := [value for value in values if not 0 < value < float("inf")]:
                raise ValueError(f"{name} limits have to be positive and finite, got {bad}")


@dataclass(frozen=True)
class RobotSpec:
    """Everything a policy must agree on with whatever it controls.

    Attributes:
        robot: embodiment name.
        action: one control step's command.
        proprio: what the robot measures of itself.
        cameras: in the order in which a policy takes them.
        control_rate_hz: control steps a second.
        features: where a data set keeps all this; no part of what must agree.
        motion: limits of the robot's motion, no part of what must agree; None where nobody has
            stated them, and then no safety gate lets a command through.

    Raises:
        ValueError: the motion limits are of another number of dimensions.
    """

    robot: str
    action: VectorSpec
    proprio: VectorSpec
    cameras: tuple[CameraSpec, ...]
    control_rate_hz: float
    features: FeatureMap = field(default_factory=FeatureMap)
    motion: MotionLimits | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "cameras")
        if self.motion is not None and len(self.motion.kinds) != self.action.dim:
            raise ValueError(
                f"motion limits of {len(self.motion.kinds)} dimensions, the action has "
                f"{self.action.dim}: {list(self.action.names)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        data = asdict(self)
        # Left out where nobody stated it: contracts written before the field stay equal.
        if self.motion is None:
            del data["motion"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RobotSpec:
        """Rebuild from `to_dict`, also after a round trip through JSON."""
        return cls(
            robot=data["robot"],
            action=VectorSpec(**data["action"]),
            proprio=VectorSpec(**data["proprio"]),
            cameras=tuple(CameraSpec(**camera) for camera in data["cameras"]),
            control_rate_hz=data["control_rate_hz"],
            features=FeatureMap(**data.get("features", {})),
            motion=MotionLimits(**data["motion"]) if data.get("motion") else None,
        )

    @classmethod
    def read(cls, path: Path) -> RobotSpec:
        """The contract in a JSON file, or in the contract.json of a folder.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no contract.
        """
        file = path / "contract.json" if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no contract: {error!r}") from error

    def seen_by(self, policy: RobotSpec) -> RobotSpec:
        """This robot without the cameras that a policy does not look at."""
        names = {camera.name for camera in policy.cameras}
        return replace(self, cameras=tuple(c for c in self.cameras if c.name in names))

    def differences(self, other: RobotSpec) -> list[str]:
        """Every leaf that differs, as `path: ours != theirs`; empty when equal."""
        ours, theirs = self.to_dict(), other.to_dict()
        # Where a data set stores a vector says nothing of what the vector means, and how fast the
        # robot may move is the robot's own affair.
        for data in (ours, theirs):
            del data["features"]
            data.pop("motion", None)
        return _differences("", ours, theirs)

    def require_match(self, other: RobotSpec, ours: str, theirs: str) -> None:
        """Refuse a partner with another contract.

        Args:
            other: the partner's contract.
            ours: what this contract belongs to, for the message ("checkpoint runs/a").
            theirs: what the partner is, for the message ("environment FetchPush").

        Raises:
            ContractMismatchError: with one line per difference.
        """
        if lines := self.differences(other):
            listed = "\n  ".join(lines)
            raise ContractMismatchError(
                f"the contract of {ours} differs from that of {theirs}:\n  {listed}"
            )


def _differences(path: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in ours
            for line in _differences(f"{path}.{key}" if path else key, ours[key], theirs[key])
        ]
    # Tuples are compared whole: for limits or names the whole list is what a reader needs.
    return [] if ours == theirs else [f"{path}: {ours} != {theirs}"]


@dataclass(frozen=True)
class Observation:
    """What one robot senses at one moment; it has no field for privileged state.

    Attributes:
        images: camera name → uint8 [height, width, 3].
        proprio: float32 [proprio.dim], in the contract's units.
        instruction: what to do, in words.
        time_s: seconds since the episode began.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str
    time_s: float = 0.0

    def validate(self, spec: RobotSpec) -> None:
        """Check names, shapes, types and finiteness against a contract.

        Raises:
            ContractMismatchError: naming the camera or the dimension that is wrong.
        """
        expected = {camera.name: (camera.height, camera.width, 3) for camera in spec.cameras}
        # A surplus camera is refused too: it is a sign of another robot or another configuration.
        if set(self.images) != set(expected):
            raise ContractMismatchError(
                f"observation has cameras {sorted(self.images)}, contract has {sorted(expected)}"
            )
        for name, shape in expected.items():
            image = self.images[name]
            if image.shape != shape or image.dtype != np.uint8:
                raise ContractMismatchError(
                    f"camera {name!r} is {image.dtype} {image.shape}, contract says uint8 {shape}"
                )
        _require_vector("proprio", self.proprio, spec.proprio)


def _require_vector(label: str, value: np.ndarray, spec: VectorSpec) -> None:
    if value.shape[-1:] != (spec.dim,):
        raise ContractMismatchError(
            f"{label} has shape {value.shape}, contract says {spec.dim}: {list(spec.names)}"
        )
    # One flag a dimension over all rows, [dim]: the message names dimensions.
    finite = np.atleast_1d(np.isfinite(value).reshape(-1, spec.dim).all(axis=0))
    if not finite.all():
        bad = [name for name, good in zip(spec.names, finite, strict=True) if not good]
        raise ContractMismatchError(f"{label} is not finite in {bad}")


@dataclass(frozen=True)
class ActionChunk:
    """Consecutive control steps' commands, the first to be executed now.

    Attributes:
        actions: float32 [chunk_length, action.dim], in the contract's units.
    """

    actions: np.ndarray

    def validate(self, spec: RobotSpec) -> None:
        """Check shape and finiteness against a contract.

        Raises:
            ContractMismatchError: naming what is wrong.
        """
        # `_require_vector` looks at the last axis alone, and would accept a batch or a single step.
        if self.actions.ndim != 2:
            raise ContractMismatchError(
                f"action chunk has shape {self.actions.shape}, expected [chunk_length, action]"
            )
        _require_vector("action chunk", self.actions, spec.action)


@runtime_checkable
class RobotPolicy(Protocol):
    """A policy of one robot, whose memory goes into a decision and comes out of it.

    Attributes:
        spec: the contract.
        chunk_length: control steps a chunk.
    """

    spec: RobotSpec
    chunk_length: int

    def initial_state(self) -> object:
        """The memory where an episode begins; only the policy looks inside."""
        ...

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """The chunk to execute from now on, within the contract's limits, and the memory after it.

        Raises:
            ContractMismatchError: the observation does not follow the contract, or the policy's
                commands are not finite.
        """
        ...


@runtime_checkable
class InpaintingPolicy(RobotPolicy, Protocol):
    """A policy that may be able to complete a chunk of which a part is given.

    Attributes:
        can_inpaint: whether it is.
    """

    can_inpaint: bool

    def inpaint(
        self, observation: Observation, state: object, target: np.ndarray, weight: np.ndarray
    ) -> tuple[ActionChunk, object]:
        """As `decide`, a chunk near `target` where `weight` is near 1, and equal where it is 1.

        Args:
            observation: now.
            state: the memory so far.
            target: float32 [chunk_length, action.dim], in the contract's units; finite.
            weight: float32 [chunk_length], 0 to 1.

        Raises:
            TypeError: it cannot, see `can_inpaint`.
            ContractMismatchError: as `decide`, or target or weight are not as they should be.
        """
        ...


@dataclass(frozen=True)
class Reading:
    """What a robot measured at one moment.

    Attributes:
        images: camera name → uint8 [height, width, 3].
        proprio: float32 [proprio.dim], in the contract's units.
        position: float64 [action.dim], where each action dimension stands now, in the action's
            unit; 0 for displacements.
        time_s: `time.monotonic()` when its oldest part was measured.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    position: np.ndarray
    time_s: float


@runtime_checkable
class Robot(Protocol):
    """A robot, real or simulated. Only the safety gate calls `write`.

    Attributes:
        spec: its contract; `spec.motion` where its maker or its description states them.
        halted: what holds after `halt`, in words for the operator.
    """

    spec: RobotSpec
    halted: str

    def connect(self) -> None:
        """Open the connection; nothing moves.

        Raises:
            ConnectionError: naming the port or address, and what to check.
        """
        ...

    def read(self) -> Reading:
        """Measure now, within a bounded time.

        Raises:
            ConnectionError: no fresh measurement came in time.
        """
        ...

    def write(self, command: np.ndarray) -> None:
        """Send float64 [action.dim] in the contract's units, within a bounded time.

        Raises:
            ConnectionError: it could not be sent.
        """
        ...

    def halt(self) -> None:
        """Keep the last command: positions are held, velocities and displacements become 0.

        Nothing else is commanded, and nothing at all before the first command, since what moves the
        robot has to pass the safety gate: the measured pose lies beside the last command, and may
        lie outside the limits or be wrong. Safe to repeat, and after any error.
        """
        ...

    def disconnect(self) -> None:
        """Close the connection after `halt`; safe to repeat."""
        ...


@runtime_checkable
class SimulatedEpisode(Protocol):
    """What a simulated robot knows of its episode, also after it is disconnected.

    Attributes:
        success: whether the task's condition holds now.
    """

    success: bool

    def film(self, path: Path) -> None:
        """Write the episode so far as a video, MP4; its folder must exist."""
        ...
