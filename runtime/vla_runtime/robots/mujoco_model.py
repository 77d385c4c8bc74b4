"""An MJCF or URDF file as a model with position servos, and the contract that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from vla_runtime.contract import CameraSpec, RobotSpec, VectorSpec

_UNITS = {mujoco.mjtJoint.mjJNT_HINGE: "rad", mujoco.mjtJoint.mjJNT_SLIDE: "m"}
_SERVO_RAD_S = 2 * math.pi * 5
"""Natural frequency of the servos that a URDF gets, which states none: 5 Hz, critically damped."""


def load_model(path: Path) -> mujoco.MjModel:
    """Compile a model whose actuators are all position servos; a URDF's joints get one each.

    A URDF says nothing of motors. Its servos are critically damped with a natural frequency of
    5 Hz at the pose of zero. Gravity is taken off its links, since a servo with an integrator does
    not sag, and so are contacts: a URDF holds nothing that the robot could touch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: MuJoCo cannot read it, or an actuator is no position servo.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no robot model {path}: expected an MJCF (.xml) or URDF file")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        model = spec.compile()
        if path.suffix == ".urdf":
            _add_servos(spec, model)
            model = spec.compile()
    except ValueError as error:
        raise ValueError(
            f"MuJoCo cannot read {path}: {error}; expected an MJCF (.xml) or URDF file"
        ) from error
    _require_position_servos(model, path)
    return model


def _add_servos(spec: mujoco.MjSpec, model: mujoco.MjModel) -> None:
    # A geared motor's own inertia: without it a light wrist would be thrown about by the arm.
    armature = 0.1 * float(model.dof_M0.max())
    for body in spec.bodies:
        body.gravcomp = 1.0
    for geom in spec.geoms:
        # The file holds the robot alone, and hulls of neighbouring links often overlap.
        geom.contype = geom.conaffinity = 0
    for joint in spec.joints:
        if joint.type not in _UNITS:
            continue
        # Inertia that the servo moves at the pose of zero, kg m^2 or kg.
        inertia = float(model.dof_M0[model.joint(joint.name).dofadr[0]]) + armature
        stiffness = inertia * _SERVO_RAD_S**2
        joint.armature = armature
        servo = spec.add_actuator(name=joint.name, target=joint.name)
        servo.trntype = mujoco.mjtTrn.mjTRN_JOINT
        servo.gaintype, servo.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
        servo.gainprm[0] = stiffness
        # force = stiffness * (command - position) - damping * velocity
        servo.biasprm[1:3] = -stiffness, -2 * inertia * _SERVO_RAD_S


def _require_position_servos(model: mujoco.MjModel, path: Path) -> None:
    gain, bias = model.actuator_gainprm[:, 0], model.actuator_biasprm
    servo = (
        (model.actuator_gaintype == mujoco.mjtGain.mjGAIN_FIXED)
        & (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE)
        & (model.actuator_dyntype == mujoco.mjtDyn.mjDYN_NONE)
        & (gain > 0)
        & np.isclose(bias[:, 1], -gain)
    )
    names = [model.actuator(index).name or f"actuator {index}" for index in range(model.nu)]
    if bad := [name for name, good in zip(names, servo, strict=True) if not good]:
        raise ValueError(f"{path}: {bad} are no position servos: write them as <position ...>")
    if not names:
        raise ValueError(f"{path} has no actuator: give each driven joint a <position ...>")


def model_contract(
    model: mujoco.MjModel,
    name: str,
    cameras: Sequence[str],
    size: tuple[int, int],
    control_rate_hz: float,
) -> RobotSpec:
    """The contract: a command and a measured position for each actuator.

    The range of a command is the actuator's `ctrlrange`, cut to its joint's range where it has one.
    Motion limits are left out, since neither format states them: MJCF has no velocity limit, and
    that of a URDF is often a placeholder.

    Args:
        model: of `load_model`.
        name: of the robot.
        cameras: names, in the order in which a policy takes them.
        size: height and width of an image.
        control_rate_hz: control steps a second.

    Raises:
        ValueError: an actuator without any range, or a camera that the model does not have.
    """
    names, units, lows, highs = [], [], [], []
    for index in range(model.nu):
        joint = int(model.actuator_trnid[index, 0])
        on_joint = model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT
        low, high = -math.inf, math.inf
        if model.actuator_ctrllimited[index]:
            low, high = model.actuator_ctrlrange[index]
        if on_joint and model.jnt_limited[joint]:
            # An actuator's length is its gear times the joint's position.
            bounds = sorted(model.jnt_range[joint] * model.actuator_gear[index, 0])
            low, high = max(low, bounds[0]), min(high, bounds[1])
        label = model.actuator(index).name or (model.joint(joint).name if on_joint else "")
        if not label or not -math.inf < low < high < math.inf:
            raise ValueError(
                f"{name}: actuator {label or index} needs a name, and a ctrlrange or a joint range"
            )
        names.append(label)
        units.append(_UNITS.get(int(model.jnt_type[joint]), "unknown") if on_joint else "unknown")
        lows.append(float(low))
        highs.append(float(high))
    known = [model.camera(index).name for index in range(model.ncam)]
    if unknown := [camera for camera in cameras if camera not in known]:
        raise ValueError(f"{name} has no camera {unknown}; it has {known}")
    vector = VectorSpec(tuple(names), tuple(units), tuple(lows), tuple(highs))
    views = tuple(CameraSpec(camera, *size) for camera in cameras)
    return RobotSpec(name, vector, vector, views, control_rate_hz)
