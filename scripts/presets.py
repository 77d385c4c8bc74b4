"""The settings behind the results in docs/results.md: one preset a task, for every command.

`vla refine --preset FetchPush --seed 1` starts from these instead of from the defaults; flags that
follow still win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from policies.imitation.bc import CloningConfig
from scripts.pretrain import PretrainConfig
from scripts.refine import RefineConfig
from sim.demonstrate import RecordConfig


@dataclass(frozen=True)
class Preset:
    """One task's settings for `vla collect`, `vla pretrain` and `vla refine`."""

    collect: RecordConfig
    pretrain: PretrainConfig
    refine: RefineConfig


def reach() -> Preset:
    """Cloning is enough: the hand goes straight to the target."""
    return Preset(
        RecordConfig(("FetchReach",)),
        PretrainConfig("FetchReach"),
        RefineConfig("FetchReach"),
    )


def push() -> Preset:
    """Cloned well from above the block; PPO mends the rest."""
    return Preset(
        RecordConfig(("FetchPush",)),
        PretrainConfig("FetchPush", training=CloningConfig(updates=1000, evaluate_every=500)),
        RefineConfig("FetchPush"),
    )


def pick_and_place() -> Preset:
    """Little noise: the fingers must not open in the air."""
    return Preset(
        RecordConfig(("FetchPickAndPlace",)),
        PretrainConfig(
            "FetchPickAndPlace", training=CloningConfig(updates=1000, evaluate_every=500)
        ),
        RefineConfig("FetchPickAndPlace"),
    )


def tabletop() -> Preset:
    """One policy for all twelve instructions, 50 demonstrations of each; a larger head."""
    return Preset(
        RecordConfig(("Tabletop",), episodes=600),
        PretrainConfig(
            "Tabletop",
            head="gaussian:hidden=512,dropout=0.2",
            selection_episodes=100,
            training=CloningConfig(updates=4000, evaluate_every=1000),
        ),
        RefineConfig("Tabletop"),
    )


PRESETS: dict[str, Callable[[], Preset]] = {
    "FetchReach": reach,
    "FetchPush": push,
    "FetchPickAndPlace": pick_and_place,
    "Tabletop": tabletop,
}


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: unknown; the message lists the valid names.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; valid: {', '.join(PRESETS)}")
    return PRESETS[name]()
