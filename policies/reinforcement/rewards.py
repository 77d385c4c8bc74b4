"""Rewards by name, in place of the task's own: a dense one that is honest, and one that is not.

A `Reward` sees the simulator's state at the end of each macro-step, and pays the same for each of
its executed control steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from policies.reinforcement.collect import Reward
from policies.rollout import Transition


def distance_to_goal(names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Distance in metres [n] from what has to arrive to its goal, of privileged states [n, d].

    Raises:
        ValueError: the state has no goal position.
    """
    # Fetch states say "goal", those of tasks with several places "target".
    place = "target" if "target_x" in names else "goal"
    moved, goal = _columns(names, _moved(names)), _columns(names, place)

    def distance(state: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (state[:, moved] - state[:, goal]).norm(dim=1)

    return distance


def distance_reward(names: Sequence[str]) -> Reward:
    """1 at the goal, falling by 1 every 20 cm: honest, since nothing else earns more."""
    distance = distance_to_goal(names)
    return lambda transition: _paid(transition, 1 - distance(transition.step.privileged) / 0.2)


def motion_reward(names: Sequence[str]) -> Reward:
    """The centimetres that the object, or the gripper where there is none, has moved.

    Flawed on purpose. It is meant to get the object going, but one that lies at its goal earns
    nothing more, so a policy learns to keep it moving.
    """
    moved = _columns(names, _moved(names))

    def reward(transition: Transition) -> Tensor:
        before, after = transition.privileged, transition.step.privileged
        way_m = (after[:, moved] - before[:, moved]).norm(dim=1)  # [n]
        # Shared by the steps of the chunk, so that its length makes no difference.
        return _paid(transition, 100 * way_m / transition.step.valid.sum(1).clamp_min(1))

    return reward


REWARDS: dict[str, Callable[[Sequence[str]], Reward]] = {
    "distance": distance_reward,
    "motion": motion_reward,
}
"""Name → the reward, made for the names of an environment's privileged state."""


def make_reward(name: str, privileged_names: Sequence[str]) -> Reward:
    """A reward by name.

    Raises:
        ValueError: no such reward, or the state lacks what it reads; lists what is valid.
    """
    if name not in REWARDS:
        raise ValueError(f"no reward {name!r}; valid: {', '.join(REWARDS)}, model:FOLDER")
    return REWARDS[name](privileged_names)


def _moved(names: Sequence[str]) -> str:
    return "object" if "object_x" in names else "gripper"


def _columns(names: Sequence[str], point: str) -> list[int]:
    """Where a point's coordinates lie in the state."""
    wanted = [f"{point}_{axis}" for axis in "xyz"]
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(
            f"this reward reads {', '.join(missing)}, which the task's state does not have; it has "
            f"{', '.join(names)}"
        )
    return [names.index(name) for name in wanted]


def _paid(transition: Transition, amount: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """An amount [n] for each executed control step of a macro-step, float32 [n, k]."""
    return torch.where(transition.step.valid, amount[:, None], 0.0)
