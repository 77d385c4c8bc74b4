"""Any gymnasium environment as a task, from a declaration in one class.

What is declared is what a robot's contract needs and an environment does not say: the names and
units of actions and of proprioception, cameras, the instruction, and where success stands.
`docs/tasks/gymnasium.md` has a worked example; `vla doctor --task` checks a declaration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import mujoco
import numpy as np

from sim.camera import Camera, as_cameras
from sim.tasks.base import Episode, Phrasing, Renderer, Task, TaskDeclarationError
from sim.tasks.declaration import require_tuple
from vla.contract import CameraSpec, RobotSpec, VectorSpec

if TYPE_CHECKING:
    import gymnasium

RENDERED = "rendered"
"""Name of the camera that is the environment's own `render()`."""

_UNLIMITED = 1e12
"""From here on a limit stands for none: many environments write the largest float32."""


@dataclass(frozen=True)
class Part:
    """Some numbers of an observation, with their names.

    Attributes:
        names: one a number.
        units: one a number.
        key: of the observation, where that is a dictionary; "a/b" is key "b" of what is at "a".
            Those of a tuple are "0", "1" and so on.
        start: position of the first of them.

    Raises:
        TaskDeclarationError: names or units that are no tuple.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    key: str = ""
    start: int = 0

    def __post_init__(self) -> None:
        for name in ("names", "units"):
            require_tuple("Part", name, getattr(self, name))

    def read(self, observation: Any) -> np.ndarray:
        """Float32 [names]."""
        numbers = np.ravel(_leaves(observation)[self.key])
        return numbers[self.start : self.start + len(self.names)].astype(np.float32)


@dataclass
class GymnasiumState:
    """One environment, and what it said last.

    Attributes:
        env: its own; nobody else steps it.
        observation: after the last step or reset.
        info: after the last step or reset.
        terminated: the environment ended inside the task.
        geometry: name of what its MuJoCo model is made of; states of equal geometry differ in poses
            and colours at most, and are drawn in one GL context.
    """

    env: gymnasium.Env
    observation: Any = None
    info: dict[str, Any] = field(default_factory=dict)
    terminated: bool = False
    geometry: str = ""

    @property
    def model(self) -> mujoco.MjModel:
        """Of an environment that MuJoCo simulates."""
        return self.env.unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def data(self) -> mujoco.MjData:
        """Of an environment that MuJoCo simulates."""
        return self.env.unwrapped.data  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def has_mujoco(self) -> bool:
        """Whether MuJoCo simulates it, through its Python bindings."""
        env = self.env.unwrapped
        return isinstance(getattr(env, "model", None), mujoco.MjModel) and isinstance(
            getattr(env, "data", None), mujoco.MjData
        )


class GymnasiumTask(Task[GymnasiumState]):
    """A task on a gymnasium environment; a subclass declares it.

    Every state has an environment of its own. An equal seed is an equal episode where the
    environment's `reset(seed=...)` makes it one; MuJoCo's data are cleared before it, so that the
    warm start and controls of the episode before leave no trace.

    Attributes:
        robot: name of the embodiment.
        env_id: of the environment, for `gymnasium.make`.
        env_arguments: for `gymnasium.make`.
        action_names: one a dimension of the action.
        action_units: one a dimension of the action.
        action_limits: low and high of every dimension, where those of the environment's action
            space are not finite or not meant.
        proprio_parts: what of the observation the robot measures of itself.
        privileged_parts: what of the observation critics may see; by default all of it, apart from
            images.
        camera_list: names of cameras in the MuJoCo model, views of it, or `RENDERED`.
        success_key: of `info`, where success stands.
        control_rate_hz: control steps a second; by default the environment's own.
    """

    # Stated by the class, or by `declare` where they follow from the environment.
    robot: str
    env_id: str = ""
    env_arguments: ClassVar[Mapping[str, Any]] = {}
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_limits: tuple[tuple[float, float], ...] | None = None
    proprio_parts: tuple[Part, ...]
    privileged_parts: tuple[Part, ...] | None = None
    camera_list: Sequence[str | Camera] = (RENDERED,)
    success_key: str = "is_success"
    control_rate_hz: float | None = None
    static_points = ()
    object_phrases = ()
    place_phrases = ()

    def __init__(self, image_size: int = 96):
        if not self.env_id and type(self).make_env is GymnasiumTask.make_env:
            raise TaskDeclarationError(
                f"{type(self).__name__} declares neither env_id nor make_env"
            )
        # For its spaces; the first environment that is asked for is this one.
        first = self._new_state()
        self._unused: list[GymnasiumState] = [first]
        self.declare(first)
        self._require_declared()
        self._check_cameras(first)
        self._privileged = self.privileged_parts or whole_observation(first.observation)
        self._check_parts(first.observation, self.proprio_parts, "proprio_parts")
        self._check_parts(first.observation, self._privileged, "privileged_parts")
        self.privileged_names = tuple(n for part in self._privileged for n in part.names)
        if not self.privileged_names:
            raise TaskDeclarationError(
                f"{self.name}: the observation is images alone; define privileged(self, data, "
                "episode) and name what it gives in privileged_parts"
            )
        self.spec = RobotSpec(
            robot=self.robot,
            action=self._action(first.env),
            proprio=_sensors(self.proprio_parts),
            cameras=tuple(CameraSpec(c.name, image_size, image_size) for c in self.cameras),
            control_rate_hz=self.control_rate_hz or _rate_hz(first.env),
        )

    def declare(self, state: GymnasiumState) -> None:
        """State what follows from the environment; by default nothing."""
        return

    def make_env(self) -> gymnasium.Env:
        """A new environment; by default `gymnasium.make` of what is declared."""
        import gymnasium

        # Its time limit is replaced by `episode_length`.
        arguments: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
        # Many environments that MuJoCo simulates, and that we draw, cannot be asked for images.
        if any(camera.name == RENDERED for camera in self.cameras):
            arguments["render_mode"] = "rgb_array"
        try:
            return gymnasium.make(self.env_id, **{**arguments, **self.env_arguments})
        # A TypeError is of an argument that the environment does not take.
        except (gymnasium.error.Error, TypeError) as error:
            raise TaskDeclarationError(
                f"{type(self).__name__}: gymnasium cannot make {self.env_id!r}: {error} An id of "
                "a package is module:Id, or needs that package to be imported"
            ) from error

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """As declared."""
        return as_cameras(self.camera_list)

    def make_data(self) -> GymnasiumState:
        """An environment of its own, in the state of seed 0."""
        if self._unused:
            return self._unused.pop()
        return self._new_state()

    def close(self, data: GymnasiumState) -> None:
        """Close its environment, which may have processes or connections of its own."""
        data.env.close()

    def _new_state(self) -> GymnasiumState:
        state = GymnasiumState(self.make_env())
        state.observation, state.info = state.env.reset(seed=0)
        return state

    def make_renderer(self, cameras: Sequence[str], size: int, antialias: bool = False) -> Renderer:
        """See `Task.make_renderer`."""
        from sim.gymnasium_render import GymnasiumRenderer

        wanted = {camera.name: camera for camera in self.cameras}
        return GymnasiumRenderer([wanted[name] for name in cameras], size, antialias)

    def reset(self, data: GymnasiumState, seed: int, phrasing: Phrasing = "train") -> Episode:
        """The environment's own `reset(seed=seed)`, then words."""
        if data.has_mujoco:
            mujoco.mj_resetData(data.model, data.data)
        data.observation, data.info = data.env.reset(seed=seed)
        data.terminated = False
        # A stream of its own, so that the phrasing changes nothing else.
        words = self.words(data, phrasing)
        require_tuple(self.name, "words", words)
        choice = np.random.default_rng([seed, 1]).integers(len(words))
        return Episode(seed, words[choice], np.zeros(0))

    def words(self, data: GymnasiumState, phrasing: Phrasing) -> tuple[str, ...]:
        """Instructions that fit the episode which has just begun."""
        return self.templates[phrasing]

    def step(self, data: GymnasiumState, episode: Episode, action: np.ndarray) -> None:
        """One step of the environment; what it calls truncated has to be the episode's end."""
        limits = self.spec.action
        space = data.env.action_space
        clipped = np.clip(action, limits.low, limits.high)
        if np.issubdtype(space.dtype, np.integer):
            clipped = np.rint(clipped)  # a mere cast would cut off, and pull every action to 0
        command = clipped.astype(space.dtype or np.float32)
        data.observation, _, data.terminated, truncated, data.info = data.env.step(command)
        episode.steps += 1
        if truncated and not data.terminated and episode.steps < self.episode_length:
            raise TaskDeclarationError(
                f"{self.name}: the environment truncates an episode after {episode.steps} steps, "
                f"but episode_length is {self.episode_length}; make that at most {episode.steps}, "
                "or make the environment without its time limit"
            )

    def is_terminated(self, data: GymnasiumState, episode: Episode) -> bool:
        """What the environment says."""
        return bool(data.terminated)

    def is_success(self, data: GymnasiumState, episode: Episode) -> bool:
        """What stands at `success_key` of the last step's info; False before the first step."""
        if episode.steps == 0:
            return False
        if self.success_key not in data.info:
            raise TaskDeclarationError(
                f"{self.name}: success is not in info[{self.success_key!r}], which has "
                f"{sorted(data.info)}; set success_key to one of these, or define "
                "is_success(self, data, episode)"
            )
        found = np.asarray(data.info[self.success_key])
        # NaN, a share, a text and an empty array would all count as true.
        if found.dtype.kind not in "biuf" or not found.size or not np.isin(found, (0, 1)).all():
            raise TaskDeclarationError(
                f"{self.name}: info[{self.success_key!r}] is {data.info[self.success_key]!r}, "
                "which says neither yes nor no; define is_success(self, data, episode)"
            )
        return bool(found.all())

    def proprio(self, data: GymnasiumState) -> np.ndarray:
        """What `proprio_parts` name."""
        return np.concatenate([part.read(data.observation) for part in self.proprio_parts])

    def privileged(self, data: GymnasiumState, episode: Episode) -> np.ndarray:
        """What `privileged_parts` name."""
        return np.concatenate([part.read(data.observation) for part in self._privileged])

    def physics(self, data: GymnasiumState) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Those of the environment."""
        return (data.model, data.data) if data.has_mujoco else super().physics(data)

    # --- checks of the declaration

    def _require_declared(self) -> None:
        needed = ("name", "robot", "templates", "action_names", "action_units", "proprio_parts")
        lacking = [one for one in needed if not hasattr(self, one)]
        if lacking:
            raise TaskDeclarationError(f"{type(self).__name__} does not declare {lacking}")
        for name in ("action_names", "action_units", "proprio_parts", "camera_list"):
            require_tuple(self.name, name, getattr(self, name))
        if not self.proprio_parts:
            raise TaskDeclarationError(
                f"{self.name}: proprio_parts are none; name what of the observation the robot "
                "measures of itself, which a policy needs beside images"
            )

    def _action(self, env: gymnasium.Env) -> VectorSpec:
        from gymnasium.spaces import Box

        space = env.action_space
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise TaskDeclarationError(
                f"{self.name}: the action space is {space}, and a policy's actions are numbers in "
                "a row: wrap the environment so that it takes a Box of one axis"
            )
        limits = self.action_limits or tuple(
            zip(space.low.tolist(), space.high.tolist(), strict=True)
        )
        if not all(np.shape(ends) == (2,) for ends in limits):
            raise TaskDeclarationError(
                f"{self.name}: action_limits are {limits}; every dimension has a (low, high), as "
                "in ((-1.0, 1.0), (-1.0, 1.0))"
            )
        counts = {len(self.action_names), len(self.action_units), len(limits), space.shape[0]}
        if len(counts) != 1 or not limits:
            raise TaskDeclarationError(
                f"{self.name}: {len(self.action_names)} action_names, {len(self.action_units)} "
                f"action_units and {len(limits)} action_limits for the {space.shape[0]} dimensions "
                f"of the action space {space}"
            )
        low, high = zip(*limits, strict=True)
        named = [*zip(self.action_names, limits, strict=True)]
        # Not `abs >= _UNLIMITED`, which NaN would pass.
        if unlimited := [n for n, ends in named if not all(abs(e) < _UNLIMITED for e in ends)]:
            raise TaskDeclarationError(
                f"{self.name}: the actions {unlimited} have no limits in the action space; declare "
                "action_limits, the (low, high) of every dimension, so that nothing can be "
                "commanded that the robot must not do"
            )
        if fixed := [name for name, (least, most) in named if not least < most]:
            raise TaskDeclarationError(
                f"{self.name}: the actions {fixed} have a low limit that is not below the high "
                "one; mend action_limits, or wrap the environment so that it does not take them"
            )
        return VectorSpec(self.action_names, self.action_units, low, high)

    def _check_parts(self, observation: Any, parts: Sequence[Part], label: str) -> None:
        leaves = _leaves(observation)
        for part in parts:
            if part.key not in leaves:
                raise TaskDeclarationError(
                    f"{self.name}: {label} name the key {part.key!r} of the observation, which has "
                    f"{[*leaves]}"
                )
            if np.asarray(leaves[part.key]).dtype.kind not in "biuf":
                raise TaskDeclarationError(
                    f"{self.name}: {label} name {part.key or 'the observation'}, which holds "
                    f"{leaves[part.key]!r:.80} and no numbers; declare {label} without it"
                )
            count = np.size(leaves[part.key])
            if part.start + len(part.names) > count or len(part.units) != len(part.names):
                raise TaskDeclarationError(
                    f"{self.name}: {label} name {len(part.names)} numbers ({len(part.units)} "
                    f"units) from position {part.start} of {part.key or 'the observation'}, which "
                    f"has {count}"
                )

    def _check_cameras(self, state: GymnasiumState) -> None:
        for camera in self.cameras:
            if camera.name == RENDERED:
                continue
            if not state.has_mujoco:
                raise TaskDeclarationError(
                    f"{self.name}: there is no camera {camera.name!r}, since the environment has "
                    f"no MuJoCo model; camera_list can be ({RENDERED!r},), its own render()"
                )
            try:
                camera.in_model(state.model)
            except ValueError as error:
                raise TaskDeclarationError(
                    f"{self.name}: {error}. camera_list takes these names, Camera(name, view=...) "
                    f"for a view of your own, or {RENDERED!r} for the environment's render()"
                ) from error


def whole_observation(observation: Any) -> tuple[Part, ...]:
    """Every number of an observation but those of images, named by its key and position."""
    parts = []
    for key, value in _leaves(observation).items():
        # A million numbers, of which cameras show the same.
        if np.ndim(value) == 3 and np.asarray(value).dtype == np.uint8:
            continue
        label = key.replace("/", "_") or "observation"
        names = tuple(f"{label}_{position}" for position in range(np.size(value)))
        parts.append(Part(names, ("",) * len(names), key))
    return tuple(parts)


def _leaves(observation: Any, before: str = "") -> dict[str, Any]:
    """What an observation consists of, by key, see `Part.key`."""
    if isinstance(observation, tuple):
        observation = {str(index): value for index, value in enumerate(observation)}
    if not isinstance(observation, Mapping):
        return {before: observation}
    found: dict[str, Any] = {}
    for name, value in observation.items():
        found |= _leaves(value, f"{before}/{name}" if before else str(name))
    return found


def _sensors(parts: Sequence[Part]) -> VectorSpec:
    names = tuple(name for part in parts for name in part.names)
    units = tuple(unit for part in parts for unit in part.units)
    # An observation space seldom says what a sensor can read, and nothing is clipped to it.
    return VectorSpec(names, units, (-np.inf,) * len(names), (np.inf,) * len(names))


def _rate_hz(env: gymnasium.Env) -> float:
    """Control steps a second of an environment: one over its `dt`, else its render rate."""
    if (dt := getattr(env.unwrapped, "dt", None)) is not None:
        return round(1.0 / float(dt), 6)
    rate = env.metadata.get("render_fps")
    if not rate:
        raise TaskDeclarationError(
            f"{env} states neither dt nor render_fps; declare control_rate_hz"
        )
    return float(rate)
