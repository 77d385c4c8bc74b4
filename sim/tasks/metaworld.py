"""Meta-World v3: its fifty tasks, one by one and as the suites MT10, MT50 and ML45.

The environments and their scripted experts are those of the package `metaworld`, which has to be
installed without its dependencies, since it asks for an old MuJoCo (`docs/tasks/metaworld.md`).
`reset(seed)` equals the original's `env.seed(seed); env.reset()` with random initial states, which
is what LeRobot evaluates on.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import mujoco
import numpy as np

from sim.camera import Camera
from sim.tasks.base import Episode, Phrasing, Task, TaskDeclarationError
from sim.tasks.gymnasium_task import GymnasiumState, GymnasiumTask, Part
from sim.tasks.metaworld_words import WORDS
from vla.contract import CameraSpec, RobotSpec, VectorSpec

if TYPE_CHECKING:
    import gymnasium

TASK_NAMES: tuple[str, ...] = tuple(sorted(WORDS))
"""All fifty, in the order of the one-hot code of the privileged state."""
MT10 = (
    *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close"),
    *("button-press-topdown", "peg-insert-side", "window-open", "window-close"),
)
ML45_TEST = ("bin-picking", "box-close", "hand-insert", "door-lock", "door-unlock")
SUITES: Mapping[str, tuple[str, ...]] = {
    "MT10": MT10,
    "MT50": TASK_NAMES,
    "ML45-train": tuple(name for name in TASK_NAMES if name not in ML45_TEST),
    "ML45-test": ML45_TEST,
}
_MEDIUM = (
    *("basketball", "bin-picking", "box-close", "coffee-pull", "coffee-push", "hammer"),
    *("peg-insert-side", "push-wall", "soccer", "sweep", "sweep-into"),
)
_HARD = ("assembly", "hand-insert", "pick-out-of-hole", "pick-place", "push", "push-back")
_VERY_HARD = ("disassemble", "pick-place-wall", "shelf-place", "stick-pull", "stick-push")
DIFFICULTY: Mapping[str, str] = {
    **dict.fromkeys(TASK_NAMES, "easy"),
    **dict.fromkeys(_MEDIUM, "medium"),
    **dict.fromkeys(_HARD, "hard"),
    **dict.fromkeys(_VERY_HARD, "very hard"),
}
"""Task → the group in which results are published: 28 easy, 11 medium, 6 hard, 5 very hard."""

CONTROL_RATE_HZ = 80.0
"""5 physics steps of 2.5 ms a control step."""
CAMERAS = (Camera("corner2", turned=True), Camera("wrist", "gripperPOV"))
_CAMERA_POSITION_M = (0.75, 0.075, 0.7)
"""Of "corner2", as LeRobot moves it."""


def metaworld_robot_spec(image_size: int) -> RobotSpec:
    """The contract of Meta-World's Sawyer arm.

    `dx, dy, dz` displace the set point of the hand, in multiples of 0.01 m a control step.
    `gripper` is the effort with which the fingers close (1) or open (-1).
    """
    return RobotSpec(
        robot="sawyer",
        action=VectorSpec(
            names=("dx", "dy", "dz", "gripper"),
            units=("0.01 m", "0.01 m", "0.01 m", "effort"),
            low=(-1.0,) * 4,
            high=(1.0,) * 4,
        ),
        proprio=VectorSpec(
            names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
            # The distance of the fingers in units of 0.1 m.
            units=("m", "m", "m", "0.1 m"),
            low=(-0.525, 0.348, -0.0525, 0.0),
            high=(0.525, 1.025, 0.7, 1.0),
        ),
        cameras=tuple(CameraSpec(c.name, image_size, image_size) for c in CAMERAS),
        control_rate_hz=CONTROL_RATE_HZ,
    )


class MetaWorld(GymnasiumTask):
    """One task, or a suite: then the seed decides which task an episode is, all equally often.

    In a suite of n tasks the episode of seed s is one of task `s % n`. `Episode.labels` say which,
    and how difficult it is.

    The privileged state is Meta-World's observation with the goal, and which of the fifty tasks it
    is. The actor sees the goal in images alone, where Meta-World draws it.
    """

    name = "MetaWorld"
    variants = (*SUITES, *TASK_NAMES)
    episode_length = 500
    camera_list = CAMERAS
    success_key = "success"
    # The distance of the fingers in units of 0.1 m.
    proprio_parts = (
        Part(("hand_x", "hand_y", "hand_z", "gripper_opening"), ("m", "m", "m", "0.1 m")),
    )
    rest_action: ClassVar[Mapping[str, float]] = {"dx": 0.0, "dy": 0.0, "dz": 0.0}
    grip_actions = ("gripper",)
    templates: ClassVar[Mapping[Phrasing, tuple[str, ...]]] = {
        phrasing: tuple(sentence for one in WORDS.values() for sentence in one[phrasing])
        for phrasing in ("train", "heldout")
    }

    def __init__(self, image_size: int = 96, variant: str = "MT10"):
        self.member_tasks = SUITES.get(variant, (variant,))
        self.spec = metaworld_robot_spec(image_size)
        observation = (f"observation_{position}" for position in range(36))
        is_task = (f"is_{name}" for name in TASK_NAMES)
        self.privileged_names = (*observation, "goal_x", "goal_y", "goal_z", *is_task)
        # Environments that no state holds now: making one takes longer than an episode's reset.
        self._idle: dict[str, list[gymnasium.Env]] = {}
        self._experts: dict[str, Any] = {}

    @classmethod
    def members(cls, variant: str) -> tuple[str, ...]:
        """The tasks of a suite."""
        return SUITES.get(variant, (variant,))

    def make_data(self) -> GymnasiumState:
        """The first task in the state of seed 0."""
        state = GymnasiumState(self._take(self.member_tasks[0]), geometry=self.member_tasks[0])
        self.reset(state, 0)
        return state

    def close(self, data: GymnasiumState) -> None:
        """Keep its environment for the next state: an episode's demonstration makes one."""
        self._idle.setdefault(data.geometry, []).append(data.env)

    def reset(self, data: GymnasiumState, seed: int, phrasing: Phrasing = "train") -> Episode:
        """The task that the seed decides, in the initial state that it decides."""
        member = self._member(seed)
        if data.geometry != member:
            self._idle.setdefault(data.geometry, []).append(data.env)
            data.env, data.geometry = self._take(member), member
        data.env.seed(seed)  # pyright: ignore[reportAttributeAccessIssue]
        episode = super().reset(data, seed, phrasing)
        # Meta-World moves bodies and the goal after its last forward computation: the first image
        # would show them where they were. Only derived positions change, no state.
        mujoco.mj_kinematics(data.model, data.data)
        mujoco.mj_camlight(data.model, data.data)
        episode.labels = self._labels(member)
        return episode

    def labels(self, data: GymnasiumState, seed: int) -> dict[str, str]:
        """From the seed alone: a reset computes a hundred control steps."""
        return self._labels(self._member(seed))

    def words(self, data: GymnasiumState, phrasing: Phrasing) -> tuple[str, ...]:
        """Those of the task."""
        return WORDS[data.geometry][phrasing]

    def privileged(self, data: GymnasiumState, episode: Episode) -> np.ndarray:
        """Meta-World's observation, float32 [39], then one number a task, 1 for this one."""
        is_task = [name == data.geometry for name in TASK_NAMES]
        return np.concatenate([data.observation, is_task]).astype(np.float32)

    def expert_action(self, data: GymnasiumState, episode: Episode) -> np.ndarray:
        """Meta-World's scripted policy for the task."""
        if data.geometry not in self._experts:
            # Its experts warn wherever a command is beyond the limits, to which it is clipped.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            self._experts[data.geometry] = _import("metaworld.policies").ENV_POLICY_MAP[
                f"{data.geometry}-v3"
            ]()
        action = self._experts[data.geometry].get_action(data.observation)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _member(self, seed: int) -> str:
        return self.member_tasks[seed % len(self.member_tasks)]

    def _labels(self, member: str) -> dict[str, str]:
        # A single task has one goal, which needs no word.
        return {"task": member, "difficulty": DIFFICULTY[member]} if self._is_suite else {}

    @property
    def _is_suite(self) -> bool:
        return len(self.member_tasks) > 1

    def _take(self, member: str) -> gymnasium.Env:
        return idle.pop() if (idle := self._idle.get(member)) else make_env(member)


def make_env(member: str) -> gymnasium.Env:
    """Meta-World's environment of one task: random initial states, and the goal observed.

    Raises:
        ModuleNotFoundError: the package is missing; the message says how to install it.
    """
    env = _import("metaworld.env_dict").ALL_V3_ENVIRONMENTS[f"{member}-v3"]()
    # Computed with the goal hidden; else every goal would be clipped to 0.
    env._partially_observable = False
    del env.sawyer_observation_space
    # Of a seeded generator, instead of one of fifty frozen states.
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    # The episode's length is ours: the environment refuses to be stepped beyond its own.
    env.max_path_length = 10**9
    env.model.camera("corner2").pos = _CAMERA_POSITION_M
    return env


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "metaworld":
            raise
        raise TaskDeclarationError(
            "the package metaworld is missing: pip install --no-deps metaworld==3.1.1, beside the "
            'extra "metaworld" of this package (it asks for an old MuJoCo, but runs on ours)'
        ) from error


TASKS: tuple[type[Task], ...] = (MetaWorld,)
