"""Our simulated robot in LeRobot's commands: `--robot.type=vla_sim --robot.task=FetchPush`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig

from sim.seeds import DEVELOPMENT
from vla.settings import refusals_logged, require_numbers


@RobotConfig.register_subclass("vla_sim")
@dataclass(kw_only=True)
class SimulatedRobotConfig(RobotConfig):
    """Which world the robot stands in.

    Attributes:
        task: registry name.
        seed: of the initial state.
        image_size: pixels a side of an image.
    """

    task: str = "FetchPush"
    seed: int = DEVELOPMENT.start
    image_size: int = 96

    @refusals_logged()
    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(self, at_least_1=("image_size",))
