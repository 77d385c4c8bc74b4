"""What a task is: one MuJoCo model, how an episode begins, what a control step does, success.

A task holds no episode state: that lives in the `MjData` and the `Episode` which the caller owns,
so one task object serves every environment of a worker process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import mujoco
import numpy as np

from vla.contract import GoalSpec, RobotSpec

Phrasing = Literal["train", "heldout"]


@dataclass
class Episode:
    """What is fixed for one episode and is not in the physics state.

    Attributes:
        seed: an equal seed (with an equal phrasing) is an equal episode.
        instruction: what the actor is to do, in words.
        goal: float64 [goal], world frame, metres; the layout is the task's own.
        labels: words that fill the instruction ("object" → "red block", "zone" → "blue zone").
        steps: control steps executed so far.
    """

    seed: int
    instruction: str
    goal: np.ndarray
    labels: dict[str, str] = field(default_factory=dict)
    # Counted by `Task.step`; the time limit and `ObservationBatch.time_s` follow from it.
    steps: int = 0


@dataclass(frozen=True)
class ReferringExpression:
    """An instruction, and which points of the scene (keys of `Task.points`) it refers to.

    Attributes:
        text: the instruction.
        object: what is to be moved.
        target: where it is to go; one of `Task.static_points`.
    """

    text: str
    object: str
    target: str


Motion = Callable[[mujoco.MjData, Episode], np.ndarray]
"""The next action of one episode, float32 [action.dim]; it may keep a memory between calls."""


class Task(ABC):
    """One task on one compiled model; all that other modules need to know of it is stated here.

    A new task is one file with a subclass and one line in the registry.

    Attributes:
        name: registry name.
        spec: the simulated robot's contract.
        model: compiled model, shared by every `MjData` of the process.
        episode_length: control steps until truncation.
        templates: instruction templates, training and held-out paraphrases kept apart.
        privileged_names: one name per dimension of `privileged`.
        goals: where the goal sits in `privileged`, for hindsight relabelling; None, the default,
            where success is not the distance to a goal.
        object_phrases: keys of `points` that name what can be moved.
        place_phrases: keys of `points` that name the other objects of the scene.
        nouns: key of `points` → the word for it in a sentence, where that is another one.
        static_points: keys of `points` whose position is fixed at `reset`. Policies average what
            they see of them over an episode, so none of them may ever move.
        unseen_pairs: object and place that grounding can keep from ever naming together, to measure
            whether what was learned of each carries over.
        grounding_frames: images that grounding draws of this task by default.
        rest_action: action dimension → the command that keeps still. Dimensions that are left out
            keep still by repeating the last command.
        grip_actions: action dimensions that open and close a hand. Noise on the expert's actions
            leaves them alone, or it would drop what it carries.
    """

    name: ClassVar[str]
    # Class attributes: grounding reads them from the class, without compiling a model.
    templates: ClassVar[dict[Phrasing, tuple[str, ...]]]
    episode_length: ClassVar[int] = 50
    object_phrases: ClassVar[tuple[str, ...]] = ("object",)
    place_phrases: ClassVar[tuple[str, ...]] = ("target",)
    nouns: ClassVar[Mapping[str, str]] = {}
    static_points: ClassVar[tuple[str, ...]] = ("target",)
    unseen_pairs: ClassVar[tuple[tuple[str, str], ...]] = ()
    grounding_frames: ClassVar[int] = 3000
    rest_action: ClassVar[Mapping[str, float]] = {}
    grip_actions: ClassVar[tuple[str, ...]] = ()
    # These three depend on the image size or on the compiled model, so `__init__` sets them.
    spec: RobotSpec
    model: mujoco.MjModel
    privileged_names: tuple[str, ...]
    goals: GoalSpec | None = None

    @abstractmethod
    def __init__(self, image_size: int = 96):
        """Compile the model, with square images of `image_size` pixels."""

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
        """Float32 [proprio.dim]: what the robot measures of itself; no velocity, no object."""

    @abstractmethod
    def privileged(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Float32 [privileged]: simulator state and goal, for critics and planners."""

    @abstractmethod
    def points(self, data: mujoco.MjData, episode: Episode) -> dict[str, np.ndarray]:
        """World positions [3] in metres that words can name; copies.

        Always has "gripper" and "target"; has "object" when the instruction concerns one; further
        keys are phrases such as "red block" or "blue zone".
        """

    @abstractmethod
    def place_markers(self, data: mujoco.MjData, episode: Episode) -> None:
        """Make `model` and `data` show this episode's goal; call before every image."""

    @abstractmethod
    def expert_action(self, data: mujoco.MjData, episode: Episode) -> np.ndarray:
        """Scripted expert, a function of the present state alone: float32 [action.dim]."""

    def with_goal(
        self,
        data: mujoco.MjData,
        episode: Episode,
        labels: Mapping[str, str],
        phrasing: Phrasing = "train",
    ) -> Episode:
        """The same scene with the goal, and the instruction, that these labels name.

        Args:
            data: in the episode's initial state; unchanged.
            episode: with another goal.
            labels: `Episode.labels` of the goal.
            phrasing: of the instruction.

        Raises:
            ValueError: words do not decide the goal, which is the default.
        """
        raise ValueError(f"{self.name}: every scene has one goal, whatever the words")

    def move_target(
        self, data: mujoco.MjData, episode: Episode, rng: np.random.Generator
    ) -> Episode:
        """The same scene with its target elsewhere, for grounding; the same episode by default."""
        return episode

    def random_motion(self, rng: np.random.Generator) -> Motion:
        """Undirected motion for grounding's scenes: by default smooth noise over the action range.

        It should reach states that the expert avoids, so that perception is taught there, too.
        """
        # All three are float64 [action.dim], in contract units.
        low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
        deviation = np.zeros(self.spec.action.dim)

        def act(data: mujoco.MjData, episode: Episode) -> np.ndarray:
            # First-order autoregression: motion that lasts reaches further than white noise.
            deviation[:] = 0.8 * deviation + rng.normal(0.0, 0.3, len(deviation))
            # 0 is the middle of each range, 1 its edge: the stationary standard deviation is 0.3 /
            # sqrt(1 - 0.8^2) = 0.5, so most of the range is visited and little is clipped.
            centred = (low + high) / 2 + (high - low) / 2 * deviation
            return np.clip(centred, low, high).astype(np.float32)

        return act

    @classmethod
    def held(cls, proprio: np.ndarray, points: Mapping[str, np.ndarray]) -> str | None:
        """Which of `object_phrases` the hand holds; None, the default, where nothing is held.

        Args:
            proprio: float32 [proprio.dim], see `proprio`.
            points: see `points`.
        """
        return None

    @classmethod
    def referring_expressions(cls, phrasing: Phrasing) -> tuple[ReferringExpression, ...]:
        """Every instruction in this phrasing, with the points that it refers to.

        By default each template as it stands moves the first of `object_phrases` to "target", and
        where there is no object the target is all that it refers to.
        """
        # FetchReach has no object: what moves is the gripper, and the target alone can be pointed
        # at.
        moved = cls.object_phrases[0] if cls.object_phrases else "target"
        return tuple(ReferringExpression(text, moved, "target") for text in cls.templates[phrasing])

    @classmethod
    def noun(cls, phrase: str) -> str:
        """The word for a point in a sentence."""
        return cls.nouns.get(phrase, phrase)


def pack_state(task: Task, data: mujoco.MjData, episode: Episode) -> np.ndarray:
    """Everything that decides the future of an episode, as one float64 vector; see `unpack_state`.

    Layout: mjSTATE_INTEGRATION | position and quaternion of every mocap-driven body | steps | goal.
    The driven bodies' poses are stored because a control step starts from the poses that the last
    `mj_step` left behind, which lag `qpos` by one substep and are in no MuJoCo state.
    """
    # Positions, velocities, controls, mocap poses, warm start and time.
    integration = np.empty(mujoco.mj_stateSize(task.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(task.model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    driven = _mocap_driven_bodies(task.model)
    # World frame, metres: [bodies, 3] and [bodies, 4] (wxyz), flattened.
    poses = np.concatenate([data.xpos[driven].ravel(), data.xquat[driven].ravel()])
    return np.concatenate([integration, poses, [episode.steps], episode.goal])


def unpack_state(task: Task, data: mujoco.MjData, state: np.ndarray) -> Episode:
    """Put `data` into a packed state; the inverse of `pack_state`, exact for every later step.

    Site and body positions other than the mocap-driven ones are those of `qpos`, so readings taken
    before the next control step may differ from the original's by one physics substep.

    Returns:
        An episode with the packed goal and step count, but no seed (-1), instruction or labels.
    """
    model = task.model
    size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
    driven = _mocap_driven_bodies(model)
    # 3 + 4 numbers a driven body, one for `steps`, and at least one of the goal.
    if state.ndim != 1 or state.shape[0] <= size + 7 * len(driven) + 1:
        raise ValueError(f"{task.name}: a packed state cannot have shape {state.shape}")
    # mj_setState reads a raw float64 buffer, so a slice of a larger matrix has to be made
    # contiguous.
    integration = np.ascontiguousarray(state[:size], dtype=np.float64)
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)  # also overwrites the solver's warm start, hence set again
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    # Cut after 3n and after 7n numbers, n driven bodies.
    positions, quaternions, rest = np.split(state[size:], np.cumsum([3, 4]) * len(driven))
    # After mj_forward, which has just overwritten them with the poses of `qpos`.
    data.xpos[driven] = positions.reshape(-1, 3)
    data.xquat[driven] = quaternions.reshape(-1, 4)
    return Episode(seed=-1, instruction="", goal=rest[1:].copy(), steps=int(rest[0]))


def _mocap_driven_bodies(model: mujoco.MjModel) -> list[int]:
    # A mocap body has no joints: it moves others through a weld constraint alone, whose two ends
    # may be stated in either order.
    welds = np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_WELD)
    pairs = [(int(model.eq_obj1id[weld]), int(model.eq_obj2id[weld])) for weld in welds]
    return [b if model.body_mocapid[a] >= 0 else a for a, b in pairs]
