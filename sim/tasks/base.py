"""What a task is: a robot in a scene, how an episode begins, what a control step does, success.

A task holds no episode state: that lives in what `make_data` makes and in the `Episode`, which the
caller owns, so one task object serves every environment of a worker process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import mujoco
import numpy as np

from sim.camera import Camera
from vla.contract import GoalSpec, RobotSpec

Phrasing = Literal["train", "heldout"]

ROLES = ("gripper", "object", "target")
"""Keys of `Task.points` for what the instruction names, whichever thing of the scene that is."""


class TaskDeclarationError(ValueError):
    """What a task states of itself cannot be used; the message names the mend."""


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


Motion = Callable[[Any, Episode], np.ndarray]
"""The next action of one episode, float32 [action.dim]; it may keep a memory between calls."""


class Renderer(Protocol):
    """Draws the cameras that it was made for."""

    def render(self, data: Any, out: Mapping[str, np.ndarray]) -> None:
        """Draw the present state into camera name → uint8 [size, size, 3]."""
        ...

    def images(self, data: Any) -> dict[str, np.ndarray]:
        """Newly allocated images, camera name → uint8 [size, size, 3]."""
        ...

    def close(self) -> None:
        """Free what it holds; may be called again."""
        ...


class Task[State](ABC):
    """One task; all that other modules need to know of it is stated here.

    A new task is one file with a subclass and one line in the registry. Most derive from
    `sim.tasks.mujoco_task.MujocoTask`, whose state is an `MjData`, or, where there is a gymnasium
    environment, from `sim.tasks.gymnasium_task.GymnasiumTask`.

    Attributes:
        name: registry name.
        variants: of a family of tasks, which is registered as `name/variant` for each of them and
            built with the variant as its second argument.
        spec: the simulated robot's contract.
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

    # These two are set by the registry, too: a name may ask for another length.
    name: str
    episode_length: int = 50
    # Class attributes: grounding reads them from the class, without compiling a model.
    variants: ClassVar[tuple[str, ...]] = ()
    templates: ClassVar[Mapping[Phrasing, tuple[str, ...]]]
    object_phrases: ClassVar[tuple[str, ...]] = ("object",)
    place_phrases: ClassVar[tuple[str, ...]] = ("target",)
    nouns: ClassVar[Mapping[str, str]] = {}
    static_points: ClassVar[tuple[str, ...]] = ("target",)
    unseen_pairs: ClassVar[tuple[tuple[str, str], ...]] = ()
    grounding_frames: ClassVar[int] = 3000
    rest_action: ClassVar[Mapping[str, float]] = {}
    grip_actions: ClassVar[tuple[str, ...]] = ()
    # These depend on the image size or on the compiled model, so `__init__` sets them.
    spec: RobotSpec
    privileged_names: tuple[str, ...]
    goals: GoalSpec | None = None

    @abstractmethod
    def __init__(self, image_size: int = 96):
        """Compile the model, with square images of `image_size` pixels."""

    @abstractmethod
    def make_data(self) -> State:
        """The state of a new environment, in the settled initial configuration."""

    def close(self, data: State) -> None:
        """Free what a state holds beside memory; it is not used again. By default nothing."""
        return

    @abstractmethod
    def make_renderer(self, cameras: Sequence[str], size: int, antialias: bool = False) -> Renderer:
        """What draws states of this task; `place_markers` is called before every image.

        Args:
            cameras: names out of the contract, in order.
            size: pixels a side.
            antialias: multisample the images.

        Raises:
            NoRendererError: nothing can be drawn on this machine.
        """

    @abstractmethod
    def reset(self, data: State, seed: int, phrasing: Phrasing = "train") -> Episode:
        """Put `data` into the initial state of the episode `seed`."""

    @abstractmethod
    def step(self, data: State, episode: Episode, action: np.ndarray) -> None:
        """Execute one control step; `action` float [action.dim] in contract units, clipped here."""

    @abstractmethod
    def is_success(self, data: State, episode: Episode) -> bool:
        """The task's condition, now."""

    def is_terminated(self, data: State, episode: Episode) -> bool:
        """Whether the episode has ended inside the task, before its time; by default it never does.

        Success alone is no such end: staying belongs to the task.
        """
        return False

    def cost(self, data: State, episode: Episode) -> float:
        """Shaped cost for planners, >= 0, metres-like, about 0 when solved.

        Raises:
            TaskDeclarationError: the task has none, which is the default.
        """
        raise TaskDeclarationError(f"{self.name} has no cost, so nothing can be planned in it")

    @abstractmethod
    def proprio(self, data: State) -> np.ndarray:
        """Float32 [proprio.dim]: what the robot measures of itself, never of an object.

        Better without velocities where commands are positions: a clone that sees how fast it moves
        learns to go on as before.
        """

    @abstractmethod
    def privileged(self, data: State, episode: Episode) -> np.ndarray:
        """Float32 [privileged]: simulator state and goal, for critics and planners."""

    def points(self, data: State, episode: Episode) -> dict[str, np.ndarray]:
        """World positions [3] in metres that words can name; copies. By default none.

        A task that is to be grounded has "gripper" and "target"; it has "object" when the
        instruction concerns one; further keys are phrases such as "red block" or "blue zone".
        """
        return {}

    def physics(self, data: State) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """MuJoCo's own state, for projecting points into images.

        Raises:
            TaskDeclarationError: it is not simulated by MuJoCo, which is the default.
        """
        raise TaskDeclarationError(
            f"{self.name} is not simulated by MuJoCo, so its points have no known place in images"
        )

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The contract's cameras as MuJoCo's; by default those of equal name in the model."""
        return tuple(Camera(camera.name) for camera in self.spec.cameras)

    def place_markers(self, data: State, episode: Episode) -> None:
        """Make the state show this episode's goal; called before every image. By default nothing.

        It must not change what the next control step computes.
        """
        return

    def expert_action(self, data: State, episode: Episode) -> np.ndarray:
        """Scripted expert, a function of the present state alone: float32 [action.dim].

        Raises:
            TaskDeclarationError: the task has none, which is the default.
        """
        raise TaskDeclarationError(
            f"{self.name} has no expert: define expert_action in its class, or clone "
            "demonstrations that were recorded elsewhere"
        )

    @classmethod
    def members(cls, variant: str) -> tuple[str, ...]:
        """The variants that one of them stands for, where it plays several; by default itself."""
        return (variant,)

    @classmethod
    def has_expert(cls) -> bool:
        """Whether `expert_action` is defined."""
        return cls.expert_action is not Task.expert_action

    @classmethod
    def can_be_grounded(cls) -> bool:
        """Whether `points` are defined, which grounding learns to find."""
        return cls.points is not Task.points

    def labels(self, data: State, seed: int) -> dict[str, str]:
        """What the episode `seed` is about, see `Episode.labels`; `data` may be reset for it."""
        return self.reset(data, seed).labels

    def with_goal(
        self,
        data: State,
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

    def move_target(self, data: State, episode: Episode, rng: np.random.Generator) -> Episode:
        """The same scene with its target elsewhere, for grounding; the same episode by default."""
        return episode

    def random_motion(self, rng: np.random.Generator) -> Motion:
        """Undirected motion for grounding's scenes: by default smooth noise over the action range.

        It should reach states that the expert avoids, so that perception is taught there, too.
        """
        # All three are float64 [action.dim], in contract units.
        low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
        deviation = np.zeros(self.spec.action.dim)

        def act(data: Any, episode: Episode) -> np.ndarray:
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
