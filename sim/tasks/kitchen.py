"""FrankaKitchen: an arm opens, turns and moves things of a kitchen, one or four of them.

The environment is gymnasium-robotics' own (v1), with its noise on readings. What differs: it never
terminates, and success is that all things of the task are where they should be now, instead of
that each was there once. Its 12.5 control steps a second are stated as they are (it rounds to 12).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sim.camera import Camera, View
from sim.tasks.base import Episode, Task
from sim.tasks.gymnasium_task import GymnasiumState, Part
from sim.tasks.robotics_family import RoboticsFamily, Words

if TYPE_CHECKING:
    import gymnasium

_JOINTS = (*(f"joint_{number}" for number in range(1, 8)), "finger_left", "finger_right")
THINGS: Mapping[str, tuple[str, ...]] = {
    "microwave": ("microwave",),
    "kettle": ("kettle",),
    "bottom-burner": ("bottom burner",),
    "top-burner": ("top burner",),
    "light-switch": ("light switch",),
    "slide-cabinet": ("slide cabinet",),
    "hinge-cabinet": ("hinge cabinet",),
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
"""Variant → what has to be changed; the last two are D4RL's."""


class Kitchen(RoboticsFamily):
    """One thing of the kitchen, or four.

    An action is the velocity that a joint is asked for; the original clips it further.
    """

    name = "Kitchen"
    robot = "franka-kitchen"
    episode_length = 280
    env_ids: ClassVar[Mapping[str, str]] = dict.fromkeys(THINGS, "FrankaKitchen-v1")
    words_of: ClassVar[Mapping[str, Words]] = {
        "microwave": {
            "train": ("open the microwave", "pull the microwave's door open"),
            "heldout": ("pull open the microwave",),
        },
        "kettle": {
            "train": ("move the kettle to the back burner", "push the kettle onto the back burner"),
            "heldout": ("push the kettle to the back burner",),
        },
        "bottom-burner": {
            "train": ("turn the knob of the bottom burner", "turn on the bottom burner"),
            "heldout": ("turn on the bottom burner by its knob",),
        },
        "top-burner": {
            "train": ("turn the knob of the top burner", "turn on the top burner"),
            "heldout": ("turn on the top burner by its knob",),
        },
        "light-switch": {
            "train": ("turn on the light", "flip the light switch"),
            "heldout": ("flip on the light",),
        },
        "slide-cabinet": {
            "train": ("slide the cabinet open", "open the sliding cabinet"),
            "heldout": ("slide open the cabinet",),
        },
        "hinge-cabinet": {
            "train": ("open the cabinet with the hinge", "swing the cabinet's door open"),
            "heldout": ("swing open the cabinet with the hinge",),
        },
        "complete": {
            "train": (
                "open the microwave, move the kettle to the back burner, turn on the light and "
                "slide the cabinet open",
            ),
            "heldout": (
                "slide the cabinet open, turn on the light, move the kettle to the back burner and "
                "open the microwave",
            ),
        },
        "mixed": {
            "train": (
                "open the microwave, move the kettle to the back burner, turn on the bottom burner "
                "and turn on the light",
            ),
            "heldout": (
                "turn on the light, turn on the bottom burner, move the kettle to the back burner "
                "and open the microwave",
            ),
        },
    }
    # Of the physics; the environment states 12 images a second.
    control_rate_hz = 12.5
    action_names = _JOINTS
    action_units = ("2 rad/s",) * 7 + ("2 m/s",) * 2
    proprio_parts = (Part(_JOINTS, ("rad",) * 7 + ("m",) * 2, "observation"),)
    camera_list = (
        Camera("front", view=View((-0.2, 0.5, 2.0), 2.2, 70.0, -35.0)),
        Camera("top", view=View((-0.3, 0.4, 1.9), 1.9, 90.0, -60.0)),
    )

    def make_env(self) -> gymnasium.Env:
        """The kitchen, asked for this variant's things."""
        import gymnasium

        return gymnasium.make(
            self.env_id,
            max_episode_steps=-1,
            disable_env_checker=True,
            tasks_to_complete=list(THINGS[self.variant]),
            terminate_on_tasks_completed=False,
            # Else it would forget what it has seen in place once.
            remove_task_when_completed=False,
        )

    def is_success(self, data: GymnasiumState, episode: Episode) -> bool:
        """Everything is in place now, within the original's 0.3 (metres or radians)."""
        wanted, now = data.observation["desired_goal"], data.observation["achieved_goal"]
        return all(np.linalg.norm(now[thing] - wanted[thing]) < 0.3 for thing in wanted)


TASKS: tuple[type[Task], ...] = (Kitchen,)
