"""The contract of a LeRobot robot, from its features and the calibration of its motors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_runtime.contract import (
    VELOCITY,
    CameraSpec,
    ContractMismatchError,
    RobotSpec,
    VectorSpec,
)

UNKNOWN_UNIT = "unknown"


def serial_buses(device: Any) -> Iterator[tuple[str, Any]]:
    """Prefix of the motors' names, and bus, of each serial bus of a robot; two of a two-arm one."""
    from lerobot.motors.motors_bus import SerialMotorsBus

    arms = {"": device} | {
        f"{side}_": getattr(device, f"{side}_arm", None) for side in ("left", "right")
    }
    for prefix, arm in arms.items():
        bus = getattr(arm, "bus", None)
        if isinstance(bus, SerialMotorsBus):
            yield prefix, bus


def read_contract(device: Any, control_rate_hz: float) -> RobotSpec:
    """Names and order of LeRobot's features; units and ranges of its motors' calibration.

    A motor in degrees has the range that was calibrated around its middle, a normalised one -100 to
    100 or 0 to 100. Whatever is no motor on a serial bus has no unit and no range that is known.

    Args:
        device: a `lerobot.robots.Robot`; it need not be connected.
        control_rate_hz: control steps a second.

    Raises:
        ValueError: a feature that is neither a number nor an image, or a position that is commanded
            and not measured.
    """
    observed: Mapping[str, Any] = device.observation_features
    proprio = [name for name, kind in observed.items() if kind is float]
    cameras = {name: kind for name, kind in observed.items() if isinstance(kind, tuple)}
    strange = [name for name in observed if name not in proprio and name not in cameras]
    strange += [name for name, kind in device.action_features.items() if kind is not float]
    strange += [name for name, shape in cameras.items() if len(shape) != 3 or shape[2] != 3]
    if strange:
        raise ValueError(f"{device.name}: {strange} are neither numbers nor RGB images")
    actions = list(device.action_features)
    if blind := [n for n in actions if n not in proprio and not n.endswith(VELOCITY)]:
        raise ValueError(f"{device.name} does not measure {blind}, which it is commanded")
    ranges = dict(_motor_ranges(device))
    return RobotSpec(
        robot=device.name,
        action=_vector(actions, ranges),
        proprio=_vector(proprio, ranges),
        cameras=tuple(CameraSpec(name, *shape[:2]) for name, shape in cameras.items()),
        control_rate_hz=control_rate_hz,
    )


def adopt_contract(measured: RobotSpec, path: Path) -> RobotSpec:
    """The robot under the contract of a policy that was trained on its recordings.

    A contract that was derived from a LeRobotDataset knows no units, and its ranges are what the
    recordings reached. Where units are known on both sides they have to agree, and no command may
    leave the range that was calibrated.

    Args:
        measured: of `read_contract`.
        path: contract.json, or a folder that holds one: a checkpoint, an exported policy, or the
            meta folder of a data set.

    Raises:
        FileNotFoundError: nothing there.
        ContractMismatchError: it is of another robot; one line per difference.
        ValueError: it is no contract.
    """
    stated = RobotSpec.read(path)
    comparable = replace(
        measured,
        action=_agreeing(measured.action, stated.action),
        proprio=_agreeing(measured.proprio, stated.proprio),
    )
    comparable.require_match(stated, f"robot {measured.robot}", str(path))
    low, high = measured.action.low, measured.action.high
    bounds = zip(stated.action.names, stated.action.low, stated.action.high, low, high, strict=True)
    if wide := [name for name, *b in bounds if b[0] < b[2] or b[1] > b[3]]:
        raise ContractMismatchError(
            f"{path} allows commands outside the calibrated range of {wide}: calibrate as for the "
            "recordings, or narrow its action.low and action.high"
        )
    return replace(stated, motion=measured.motion)


def _agreeing(ours: VectorSpec, theirs: VectorSpec) -> VectorSpec:
    """Ours, with their ranges, and their units where one side knows none."""
    if ours.names != theirs.names:
        return ours
    units = [
        b if UNKNOWN_UNIT in (a, b) else a for a, b in zip(ours.units, theirs.units, strict=True)
    ]
    return VectorSpec(ours.names, tuple(units), theirs.low, theirs.high)


def _motor_ranges(device: Any) -> Iterator[tuple[str, tuple[str, float, float]]]:
    """Feature → unit, low, high, of every calibrated motor on a serial bus."""
    from lerobot.motors.motors_bus import MotorNormMode

    for prefix, bus in serial_buses(device):
        for name, motor in bus.motors.items():
            if (calibration := bus.calibration.get(name)) is None:
                continue
            if motor.norm_mode is MotorNormMode.DEGREES:
                # As `SerialMotorsBus._normalize`: 0 is the middle of the calibrated range.
                counts = calibration.range_max - calibration.range_min
                half = counts / 2 * 360 / (bus.model_resolution_table[motor.model] - 1)
                found = ("deg", -half, half)
            else:
                signed = motor.norm_mode is MotorNormMode.RANGE_M100_100
                found = ("percent", -100.0 if signed else 0.0, 100.0)
            yield f"{prefix}{name}.pos", found


def _vector(names: list[str], ranges: Mapping[str, tuple[str, float, float]]) -> VectorSpec:
    unlimited = (UNKNOWN_UNIT, -math.inf, math.inf)
    units, lows, highs = zip(*(ranges.get(name, unlimited) for name in names), strict=True)
    return VectorSpec(tuple(names), units, lows, highs)
