"""The same scene with another goal: are words obeyed, or is the likeliest goal pursued anyway?"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.tasks.base import Episode, Phrasing, Task

_TRIES = 100
"""Later seeds whose goal is considered for a scene."""


def swap_instruction(
    task: Task, data: Any, episode: Episode, phrasing: Phrasing = "train"
) -> Episode:
    """The episode's scene with the goal of the next seed that asks for something else.

    The new goal names only what this scene holds, and is not reached at the beginning.

    Args:
        task: of the episode.
        data: in the episode's initial state; unchanged.
        episode: with its own goal.
        phrasing: of the new instruction.

    Raises:
        ValueError: every later seed asks for the same, or for what this scene does not hold.
    """
    # Words of the labels that are no phrase of the task, such as a verb, need no object here.
    here = task.points(data, episode).keys()
    phrases = {*task.object_phrases, *task.place_phrases}
    # The later seeds only lend their labels: the caller's scene must stay as it is.
    scratch = task.make_data()
    for seed in range(episode.seed + 1, episode.seed + 1 + _TRIES):
        other = task.reset(scratch, seed, phrasing)
        if other.labels == episode.labels or not phrases & {*other.labels.values()} <= here:
            continue
        swapped = task.with_goal(data, episode, other.labels, phrasing)
        # A goal that already holds would count as obeyed by a policy that stands still.
        if not task.is_success(data, swapped):
            return swapped
    raise ValueError(
        f"{task.name}: no other goal for the scene of seed {episode.seed} among the next {_TRIES}: "
        "instructions can be swapped where they decide what an episode is about, as in Tabletop"
    )


def original_success(task: Task, seed: int, actions: np.ndarray) -> np.ndarray:
    """Whether the seed's own goal held after each step of an episode that had another one.

    An equal seed and equal actions are an equal episode, so the physics is computed again.

    Args:
        task: of the episode.
        seed: of its scene.
        actions: float32 [steps, action.dim], as they were executed.

    Returns:
        Bool [steps].
    """
    data = task.make_data()
    # Phrasing changes words alone, so the default one gives the same physics and goal.
    episode = task.reset(data, seed)
    success = np.zeros(len(actions), dtype=bool)
    for step, action in enumerate(actions):
        task.step(data, episode, action)
        success[step] = task.is_success(data, episode)
    return success
