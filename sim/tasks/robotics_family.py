"""What the families of gymnasium-robotics share: environments and instructions by variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sim.tasks.base import Phrasing
from sim.tasks.gymnasium_task import GymnasiumState, GymnasiumTask

Words = Mapping[Phrasing, tuple[str, ...]]


class RoboticsFamily(GymnasiumTask):
    """Tasks of one robot, a variant each; a subclass states both tables.

    Attributes:
        env_ids: variant → environment of gymnasium-robotics.
        words_of: variant → its instructions.
        variant: of this task.
    """

    env_ids: ClassVar[Mapping[str, str]]
    words_of: ClassVar[Mapping[str, Words]]

    def __init_subclass__(cls) -> None:
        cls.variants = tuple(cls.env_ids)
        phrasings: tuple[Phrasing, ...] = ("train", "heldout")
        cls.templates = {
            phrasing: tuple(said for words in cls.words_of.values() for said in words[phrasing])
            for phrasing in phrasings
        }

    def __init__(self, image_size: int = 96, variant: str = ""):
        self.variant = variant
        # The part before the colon is a module that registers the environment.
        self.env_id = f"gymnasium_robotics:{self.env_ids[variant]}"
        super().__init__(image_size)

    def words(self, data: GymnasiumState, phrasing: Phrasing) -> tuple[str, ...]:
        """Those of the variant."""
        return self.words_of[self.variant][phrasing]
