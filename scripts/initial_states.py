"""Which initial states a command plays: named seed ranges, and goals that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sim.seeds import RANGES
from sim.tasks.registry import make_task

States = Literal["development", "final", "selection"]
"""While something is being built; once a release; those by which checkpoints are chosen."""


def choose_seeds(
    task: str, states: States, episodes: int, only: Sequence[str] = ()
) -> Sequence[int]:
    """Seeds of so many initial states, in order.

    Args:
        task: registry name.
        states: range of `sim.seeds`.
        episodes: how many.
        only: words that the goal has to name, all of them.

    Raises:
        ValueError: hardly any state has such a goal, and the message lists those that there are;
            or the range has fewer states.
    """
    if states == "final":
        print(
            "final: these initial states are for the figures of a release. Play them once, and "
            "tune nothing by what comes out.",
            flush=True,
        )
    within = RANGES[states]
    if not only:
        return within.seeds(episodes)
    # A hundred resets for each state that is wanted: enough for goals far rarer than one of
    # Tabletop's twelve instructions.
    tried = within.seeds(min(100 * episodes, len(within)))
    goals = goals_of(task, tried)
    # All words as parts of the goal's text, so "red" matches "red block".
    found = [s for s, g in zip(tried, goals, strict=True) if all(word in g for word in only)]
    if len(found) < episodes:
        raise ValueError(
            f"{len(found)} of {len(tried)} initial states of {task} name all of {list(only)}; "
            f"goals there: {'; '.join(sorted(set(goals)))}"
        )
    return found[:episodes]


def goals_of(name: str, seeds: Sequence[int]) -> tuple[str, ...]:
    """What each episode is about: the words that fill its instruction; "" where there are none."""
    task = make_task(name)
    # Resets at most, no step and no image: thousands of states take seconds.
    data = task.make_data()
    return tuple(", ".join(task.labels(data, seed).values()) for seed in seeds)
