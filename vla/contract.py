"""The contract that data sets, policies, environments, planners and robots share.

A numpy-only leaf: importing it loads neither torch nor transformers. A `RobotSpec` is saved with
every checkpoint and data set and compared whenever two parts meet, so that units, names, limits,
cameras and rates can never drift apart in silence.

Single-robot types hold numpy arrays; batched types hold torch tensors on the environment's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

# Annotations alone name torch: this module has to load fast, also where torch is missing.
if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ContractMismatchError(ValueError):
    """Two parts that meet do not share one contract; the message lists every difference."""


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
    """

    robot: str
    action: VectorSpec
    proprio: VectorSpec
    cameras: tuple[CameraSpec, ...]
    control_rate_hz: float
    features: FeatureMap = field(default_factory=FeatureMap)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RobotSpec:
        """Rebuild from `to_dict`, also after a round trip through JSON."""

        def vector(fields: dict[str, Any]) -> VectorSpec:
            # JSON makes lists of tuples, and a list never equals a tuple in `differences`.
            return VectorSpec(**{key: tuple(value) for key, value in fields.items()})

        return cls(
            robot=data["robot"],
            action=vector(data["action"]),
            proprio=vector(data["proprio"]),
            cameras=tuple(CameraSpec(**camera) for camera in data["cameras"]),
            control_rate_hz=data["control_rate_hz"],
            features=FeatureMap(**data.get("features", {})),
        )

    def differences(self, other: RobotSpec) -> list[str]:
        """Every leaf that differs, as `path: ours != theirs`; empty when equal."""
        ours, theirs = self.to_dict(), other.to_dict()
        # Where a data set stores a vector says nothing of what the vector means.
        del ours["features"], theirs["features"]
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


@dataclass
class ObservationBatch:
    """`n` observations.

    Attributes:
        images: camera name → uint8 [n, height, width, 3].
        proprio: float32 [n, proprio.dim].
        instructions: `n` strings.
        time_s: float32 [n].
    """

    images: dict[str, Tensor]
    proprio: Tensor
    instructions: list[str]
    time_s: Tensor

    def __len__(self) -> int:
        return len(self.instructions)

    def select(self, indices: Sequence[int]) -> ObservationBatch:
        """A copy of the rows at `indices`."""
        # Indexing with a list copies; a slice would be a view, and change with its source.
        rows = list(indices)
        return ObservationBatch(
            images={name: image[rows] for name, image in self.images.items()},
            proprio=self.proprio[rows],
            instructions=[self.instructions[row] for row in rows],
            time_s=self.time_s[rows],
        )


@dataclass
class StepBatch:
    """The outcome of one macro-step (a chunk of `k` control steps) in `n` environments.

    An environment that ends inside the chunk executes no further step of it: `valid` is False
    there. `observation` and `privileged` are those after the last executed step, so at an end they
    are the final ones: an environment never resets itself.

    Attributes:
        observation: after the last executed step.
        privileged: float32 [n, privileged], simulator state for critics, never for actors.
        rewards: float32 [n, k], zero where not valid.
        success: bool [n, k], the task's condition after each step.
        valid: bool [n, k], steps that were executed.
        terminated: bool [n], an end inside the task: there is no value beyond it.
        truncated: bool [n], a time limit: the value of `observation` still counts.
    """

    observation: ObservationBatch
    privileged: Tensor
    rewards: Tensor
    success: Tensor
    valid: Tensor
    # Two flags, since a critic bootstraps beyond a time limit but never beyond an end.
    terminated: Tensor
    truncated: Tensor


# Protocols, so that a simulator or a driver needs no base class of ours. `isinstance` looks for the
# attributes alone, not at their types or signatures.
@runtime_checkable
class Policy(Protocol):
    """Anything that turns observations into action chunks."""

    spec: RobotSpec

    def reset(self, indices: Sequence[int]) -> None:
        """Forget what belongs to the episodes of these environments; new ones begin."""
        ...

    def act(self, observation: ObservationBatch) -> Tensor:
        """Float32 [n, chunk_length, action.dim] on the observation's device, in contract units."""
        ...


@runtime_checkable
class VecEnv(Protocol):
    """`num_envs` environments that step together and never reset themselves.

    Attributes:
        spec: the contract of the simulated robot.
        device: of every tensor that it takes and gives.
        num_envs: how many.
        episode_length: control steps until an episode is truncated.
        privileged_names: one name per privileged dimension.
    """

    spec: RobotSpec
    device: torch.device
    num_envs: int
    episode_length: int
    privileged_names: tuple[str, ...]

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin new episodes in these environments; an equal seed is an equal episode."""
        ...

    def observe(self) -> tuple[ObservationBatch, Tensor]:
        """Current observations, and privileged state float32 [n, privileged]."""
        ...

    def step(self, chunks: Tensor) -> StepBatch:
        """Execute float32 [n, k, action.dim]; ended environments stay as they are (valid False)."""
        ...

    def close(self) -> None:
        """End worker processes and free shared memory."""
        ...


@runtime_checkable
class Dynamics(Protocol):
    """A model of the world that planners search: exact simulator or learned ensemble."""

    spec: RobotSpec

    def rollout(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Cost after each control step.

        Args:
            state: float64 [state], as the environment that is controlled exports it.
            actions: float64 [samples, planning_horizon, action.dim], in contract units.

        Returns:
            float64 [samples, planning_horizon]; a broken rollout costs +inf from where it broke.
        """
        ...
