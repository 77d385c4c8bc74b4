"""Points of the robot, from commands by forward kinematics, and the boxes they have to stay in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_runtime.contract import Reading
from vla_runtime.safety.limits import Box, LimitsError


class Kinematics(Protocol):
    """Where named points of the robot are once it has done what it was told.

    Attributes:
        points: names of the points, in the order of `locate`.
    """

    points: tuple[str, ...]

    def measure(self, reading: Reading) -> None:
        """Take note of where the robot stands now; from here displacements are counted."""
        ...

    def locate(self, configurations: np.ndarray) -> np.ndarray:
        """Positions in metres, in one fixed frame, float64 [step, point, 3].

        Args:
            configurations: float64 [step, action.dim]: the command of a "position" dimension; for a
                "displacement" the sum of all commands since `measure`.
        """
        ...


class Workspace:
    """Boxes for points of the robot.

    Args:
        boxes: point's name → box.
        kinematics: locates at least these points.

    Raises:
        LimitsError: naming the points that the kinematics does not know, and those it does.
    """

    def __init__(self, boxes: Mapping[str, Box], kinematics: Kinematics) -> None:
        if unknown := sorted(set(boxes) - set(kinematics.points)):
            raise LimitsError(
                f"workspace limits for {unknown}: the kinematics knows {list(kinematics.points)}"
            )
        self.kinematics = kinematics
        self._rows = [kinematics.points.index(name) for name in boxes]
        self._low = np.array([box.low for box in boxes.values()])  # [box, 3]
        self._high = np.array([box.high for box in boxes.values()])
        self._names = tuple(boxes)

    def excess(self, configurations: np.ndarray) -> np.ndarray:
        """How far each point is out of its box; 0 inside, NaN where not known.

        Args:
            configurations: [step, action.dim].

        Returns:
            Metres, [step, box, 3].
        """
        points = self.kinematics.locate(configurations)[:, self._rows]
        return np.maximum(np.maximum(self._low - points, points - self._high), 0.0)

    def allows(self, now: np.ndarray, path: np.ndarray) -> bool:
        """Whether no point goes further out than it is.

        Args:
            now: the current configuration, [action.dim].
            path: the next one and those of the stop after it, [step, action.dim].
        """
        excess = self.excess(np.vstack([now, path]))
        # Not `> excess[0]`, which NaN would pass.
        return bool((excess[1:] <= excess[0]).all())

    def outside(self, configuration: np.ndarray) -> list[str]:
        """The points that are out of their boxes, in words."""
        far = self.excess(configuration[None])[0].max(axis=1)
        return [
            f"{name} is {distance:.4g} m out of its workspace"
            for name, distance in zip(self._names, far, strict=True)
            if not distance <= 0
        ]


class MujocoKinematics:
    """Forward kinematics of a MuJoCo model; needs the `mujoco` extra.

    Args:
        model: an MJCF or URDF file, or an `mjModel`.
        joints: the model's joint of each action dimension; None where it has none.
        points: sites or bodies to locate.
        scale: from the action's unit to the model's (radians, metres), [action.dim].

    Raises:
        LimitsError: the model has no such joint or point; the message lists those it has.
    """

    def __init__(
        self,
        model: Any,
        joints: Sequence[str | None],
        points: Sequence[str],
        scale: Sequence[float] | None = None,
    ) -> None:
        import mujoco

        if isinstance(model, (str, Path)):
            model = mujoco.MjModel.from_xml_path(str(model))
        self._kinematics = mujoco.mj_kinematics
        self._model, self._data = model, mujoco.MjData(model)
        self._qpos = self._data.qpos
        names = {model.joint(i).name: int(model.jnt_qposadr[i]) for i in range(model.njnt)}
        if unknown := [joint for joint in joints if joint is not None and joint not in names]:
            raise LimitsError(f"the model has no joint {unknown}; it has {list(names)}")
        used = [(i, joint) for i, joint in enumerate(joints) if joint is not None]
        self._from = np.array([i for i, _ in used], int)
        self._to = np.array([names[joint] for _, joint in used], int)
        self._scale = np.ones(len(joints)) if scale is None else np.asarray(scale, np.float64)
        self.points = tuple(points)
        sites = {model.site(i).name: self._data.site_xpos[i] for i in range(model.nsite)}
        bodies = {model.body(i).name: self._data.xpos[i] for i in range(model.nbody)}
        # Views of the data: they show what mj_kinematics has written last.
        located = bodies | sites
        if unknown := [point for point in points if point not in located]:
            raise LimitsError(f"the model has no site or body {unknown}; it has {list(located)}")
        self._located = [located[point] for point in points]

    def measure(self, reading: Reading) -> None:
        """Nothing to note: the commands are absolute."""

    def locate(self, configurations: np.ndarray) -> np.ndarray:
        """Positions of the points in the model's world frame, [step, point, 3]."""
        joints = (configurations * self._scale)[:, self._from]
        positions = np.empty((len(joints), len(self._located), 3))
        mj_kinematics, model, data, qpos = self._kinematics, self._model, self._data, self._qpos
        for k, angles in enumerate(joints):
            qpos[self._to] = angles
            mj_kinematics(model, data)
            for i, point in enumerate(self._located):
                positions[k, i] = point
        return positions


class EndEffectorKinematics:
    """One point that displacement commands move along x, y and z.

    Args:
        point: its name.
        proprio: indices of its measured x, y, z in `Reading.proprio`, metres.
        action: indices of the displacements along x, y, z in the action.
        scale: from the action's unit to metres, one for x, y, z.
    """

    def __init__(
        self,
        point: str,
        proprio: tuple[int, int, int],
        action: tuple[int, int, int],
        scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.points = (point,)
        self._proprio, self._action = list(proprio), list(action)
        self._scale = np.array(scale)
        self._measured = np.full(3, np.nan)

    def measure(self, reading: Reading) -> None:
        """Where the point was measured; NaN there makes every later position NaN: no motion."""
        self._measured = np.asarray(reading.proprio, np.float64)[self._proprio]

    def locate(self, configurations: np.ndarray) -> np.ndarray:
        """The measured position moved by the displacements since, [step, 1, 3]."""
        return (self._measured + configurations[:, self._action] * self._scale)[:, None]
