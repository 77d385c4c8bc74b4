"""What a task is: one MuJoCo model, how an episode begins, what a control step does, success.

A task holds no episode state: that lives in the `MjData` and the `Episode` which the caller owns,
so one task object serves every environment of a worker process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import mujoco
import numpy as np

from vla.contract import RobotSpec

Phrasing = Literal["train", "heldout"]


@dataclass
class Episode:
    """What is fixed for one episode and is not in the physics state.

    Attributes:
        seed: an equal seed (with an equal phrasing) is an equal episode.
        instruction: what the actor is told.
        goal: float64 [goal], world frame, metres; the layout is the task's own.
        labels: words that fill the instruction ("object" → "red block", "zone" → "blue zone").
        steps: control steps executed so far.
    """

    seed: int
    instruction: str
    goal: np.ndarray
    labels: dict[str, str] = field(default_factory=dict)
    steps: int = 0


class Task(ABC):
    """One task on one compiled model.

    Attributes:
        name: registry name.
        spec: the simulated robot's contract.
        model: compiled model, shared by every `MjData` of the process.
        horizon: control steps until truncation.
        templates: instruction templates, training and held-out paraphrases kept apart.
        privileged_names: one name per dimension of `privileged`.
    """

    name: ClassVar[str]
    templates: ClassVar[dict[Phrasing, tuple[str, ...]]]
    horizon: ClassVar[int] = 50
    spec: RobotSpec
    model: mujoco.MjModel
    privileged_names: tuple[str, ...]

    @abstractmethod
    def __init__(self, image_size: int = 96):
        """Compile the model, with square pictures of `image_size` pixels."""

    @abstractmethod
    def make_data(self) -> mujoco.MjData:
        """New data in the settled initial configuration."""

    @abstractmethod
    def reset(self, data: mujoco.MjData, seed: int, phrasing: Phrasing = "train") -> Episode:
        """Put `data` into the initial state of the episode `seed`."""

    @abstractmethod
    def step(self, data: mujoco.MjData, episode: Episode, action: np.ndarray) -> None:
        """Execute one control step; `action` float [action.dim] in contract units, clipped here."""

    @abstractmethod
    def is_success(self, data: mujoco.MjData, episode: Episode) -> bool:
        """The task's condition, now."""

    @abstractmethod
    def cost(self, data: mujoco.MjData, episode: Episode) -> float:
        """Shaped cost for planners, >= 0, metres-like, about 0 when solved."""

    @abstractmethod
    def proprio(self, data: mujoco.MjData) -> np.ndarray:
        """Float32 [proprio.dim]: what the actor feels; no velocities, no object state."""

    @abstractmethod
    def privileged(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Float32 [privileged]: simulator state and goal, for critics and planners."""

    @abstractmethod
    def points(self, data: mujoco.MjData, episode: Episode) -> dict[str, np.ndarray]:
        """World positions [3] in metres that words can name.

        Always has "gripper" and "target"; has "object" when the instruction concerns one; further
        keys are phrases such as "red block" or "blue zone".
        """

    @abstractmethod
    def place_markers(self, data: mujoco.MjData, episode: Episode) -> None:
        """Make `model` and `data` show this episode's goal; call before every picture."""

    def move_target(
        self, data: mujoco.MjData, episode: Episode, rng: np.random.Generator
    ) -> Episode:
        """The same scene with its target elsewhere, for pictures; as it is where that cannot be."""
        return episode

    @abstractmethod
    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Scripted expert, a function of the present state alone: float32 [action.dim]."""


def pack_state(task: Task, data: mujoco.MjData, episode: Episode) -> np.ndarray:
    """Everything that decides the future of an episode, as one float64 vector; see `unpack_state`.

    Layout: mjSTATE_INTEGRATION | position and quaternion of every mocap-driven body | steps | goal.
    The driven bodies' poses are stored because a control step starts from the poses that the last
    `mj_step` left behind, which lag `qpos` by one substep and are in no MuJoCo state.
    """
    integration = np.empty(mujoco.mj_stateSize(task.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(task.model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    driven = _mocap_driven_bodies(task.model)
    poses = np.concatenate([data.xpos[driven].ravel(), data.xquat[driven].ravel()])
    return np.concatenate([integration, poses, [episode.steps], episode.goal])


def unpack_state(task: Task, data: mujoco.MjData, state: np.ndarray) -> Episode:
    """Put `data` into a packed state; the inverse of `pack_state`, exact for every later step.

    Site and body positions other than the mocap-driven ones are those of `qpos`, so readings taken
    before the next control step may differ from the original's by one physics substep.

    Returns:
        An episode with the packed goal and step count; it has no seed (-1), words or labels.
    """
    model = task.model
    size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
    driven = _mocap_driven_bodies(model)
    if state.ndim != 1 or state.shape[0] <= size + 7 * len(driven) + 1:
        raise ValueError(f"{task.name}: a packed state cannot have shape {state.shape}")
    integration = np.ascontiguousarray(state[:size], dtype=np.float64)
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)  # also overwrites the solver's warm start, hence set again
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    positions, quaternions, rest = np.split(state[size:], np.cumsum([3, 4]) * len(driven))
    data.xpos[driven] = positions.reshape(-1, 3)
    data.xquat[driven] = quaternions.reshape(-1, 4)
    return Episode(seed=-1, instruction="", goal=rest[1:].copy(), steps=int(rest[0]))


def _mocap_driven_bodies(model: mujoco.MjModel) -> list[int]:
    welds = np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_WELD)
    pairs = [(int(model.eq_obj1id[weld]), int(model.eq_obj2id[weld])) for weld in welds]
    return [b if model.body_mocapid[a] >= 0 else a for a, b in pairs]
