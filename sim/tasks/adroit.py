"""Adroit: a hand of 24 joints opens a door, hammers, turns a pen and carries a ball.

The environments are gymnasium-robotics' own (v1), whose dense reward is not used. What differs:
proprioception is the position of every driven joint (the original's observation lacks the door
task's first one), and an action is named after the joint that it drives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sim.camera import Camera, View
from sim.tasks.base import Task
from sim.tasks.gymnasium_task import GymnasiumState, Part
from sim.tasks.robotics_family import RoboticsFamily, Words


class Adroit(RoboticsFamily):
    """One of the four tasks; success is what the environment's `info` calls so, now.

    An action is where a joint is to go: -1 and 1 are the ends of its actuator's range.
    """

    name = "Adroit"
    robot = "adroit-hand"
    episode_length = 200
    success_key = "success"
    env_ids: ClassVar[Mapping[str, str]] = {
        "door": "AdroitHandDoor-v1",
        "hammer": "AdroitHandHammer-v1",
        "pen": "AdroitHandPen-v1",
        "relocate": "AdroitHandRelocate-v1",
    }
    words_of: ClassVar[Mapping[str, Words]] = {
        "door": {
            "train": ("open the door", "turn the latch and pull the door open"),
            "heldout": ("pull the door open",),
        },
        "hammer": {
            "train": ("drive the nail in with the hammer", "pick up the hammer and hit the nail"),
            "heldout": ("hit the nail with the hammer",),
        },
        "pen": {
            "train": ("turn the pen as the green one lies", "rotate the pen like the green one"),
            "heldout": ("rotate the pen as the green one lies",),
        },
        "relocate": {
            "train": ("bring the blue ball to the green sphere", "carry the ball to green"),
            "heldout": ("carry the blue ball to the green sphere",),
        },
    }
    camera_list = (
        Camera("front", view=View((0.0, 0.05, 0.2), 1.3, 90.0, -45.0)),
        Camera("side", view=View((0.0, 0.05, 0.2), 1.3, 150.0, -30.0)),
    )

    def declare(self, state: GymnasiumState) -> None:
        """Joints and actions by the names of the actuators; a pen's hand hangs on no arm."""
        model = state.model
        names = [model.actuator(index).name.removeprefix("A_") for index in range(model.nu)]
        driven = model.actuator_trnid[:, 0]
        # Slides of the arm are in metres, all else turns.
        units = ["m" if model.jnt_type[joint] == 2 else "rad" for joint in driven]
        self.action_names = tuple(names)
        self.action_units = ("half its range",) * model.nu
        self.proprio_parts = (Part(tuple(names), tuple(units)),)
        self._driven_qpos = model.jnt_qposadr[driven]

    def proprio(self, data: GymnasiumState) -> np.ndarray:
        """Positions of the driven joints, metres and radians."""
        return data.data.qpos[self._driven_qpos].astype(np.float32)


TASKS: tuple[type[Task], ...] = (Adroit,)
