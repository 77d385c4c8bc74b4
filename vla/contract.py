"""The whole contract: single-robot types from the runtime, and batched types of training.

Single-robot types hold numpy arrays and need no torch (`vla_runtime.contract`, which a robot
installs alone); batched types hold torch tensors on the environment's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from vla_runtime.contract import (
    ActionChunk,
    CameraSpec,
    ContractMismatchError,
    FeatureMap,
    Observation,
    RobotSpec,
    VectorSpec,
)

# Annotations alone name torch: this module has to load fast.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "ActionChunk",
    "CameraSpec",
    "ContractMismatchError",
    "Dynamics",
    "FeatureMap",
    "GoalSpec",
    "Observation",
    "ObservationBatch",
    "Policy",
    "RobotSpec",
    "StepBatch",
    "VecEnv",
    "VecEnvWithGoals",
    "VectorSpec",
]


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


@dataclass(frozen=True)
class GoalSpec:
    """Where a goal sits in privileged state, and when it is reached.

    All that hindsight relabelling has to know of a task: what was reached can then stand in the
    place of the goal, and success under that goal follows. The reward is 1 where it is reached.

    Attributes:
        achieved: privileged dimensions that have to reach the goal.
        goal: those that hold it, in the same order and unit.
        tolerance: it is reached within this Euclidean distance.

    Raises:
        ValueError: nothing to reach, unequal numbers of dimensions, or no distance above 0.
    """

    achieved: tuple[str, ...]
    goal: tuple[str, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if not self.goal or len(self.achieved) != len(self.goal) or not self.tolerance > 0:
            raise ValueError(
                "a goal needs as many achieved as goal dimensions, at least one, and a tolerance "
                f"above 0: {self}"
            )


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
class VecEnvWithGoals(VecEnv, Protocol):
    """A `VecEnv` that says where goals sit in its privileged state.

    Attributes:
        goals: None where success is not the distance to a goal.
    """

    goals: GoalSpec | None


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
