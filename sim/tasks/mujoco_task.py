"""Tasks on one compiled MuJoCo model: how they are drawn, and their state as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from sim.tasks.base import Episode, Renderer, Task


class MujocoTask(Task[mujoco.MjData]):
    """A task whose state is an `MjData`; planners can search it, see `pack_state`.

    Attributes:
        model: compiled, shared by every `MjData` of the process.
    """

    model: mujoco.MjModel

    def make_renderer(self, cameras: Sequence[str], size: int, antialias: bool = False) -> Renderer:
        """See `Task.make_renderer`."""
        # Only where something is drawn: machines without a GL library can train from state.
        from sim.render import CameraRenderer

        return CameraRenderer(self.model, cameras, size, antialias)

    def physics(self, data: mujoco.MjData) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """The one model, and this state."""
        return self.model, data


def pack_state(task: MujocoTask, data: mujoco.MjData, episode: Episode) -> np.ndarray:
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


def unpack_state(task: MujocoTask, data: mujoco.MjData, state: np.ndarray) -> Episode:
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
