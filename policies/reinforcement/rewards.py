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

_NEAR_M = 0.05  # from the block's centre to the gripper that touches it


def distance_to_goal(names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Distance in metres [n] from what has to arrive to its goal, of privileged states [n, d].

    Raises:
        ValueError: the state has no goal position.
    """
    moved = "object" if "object_x" in names else "gripper"
    return _distance(names, moved, "goal")


def distance_reward(names: Sequence[str]) -> Reward:
    """1 at the goal, falling by 1 every 20 cm: honest, since nothing else earns more."""
    distance = distance_to_goal(names)
    return lambda transition: _paid(transition, 1 - distance(transition.step.privileged) / 0.2)


def near_object_reward(names: Sequence[str]) -> Reward:
    """1 while the gripper touches the object, plus the honest reward weighed by a tenth.

    Flawed on purpose. It is meant to bring an arm to the block, but who pushes the block to the
    goal and leaves it there earns less than who stays with it, so a policy learns to hold on.
    """
    gap, distance = _distance(names, "gripper", "object"), distance_to_goal(names)

    def reward(transition: Transition) -> Tensor:
        state = transition.step.privileged
        near = (1 - (gap(state) - _NEAR_M).clamp_min(0) / 0.1).clamp_min(0)  # [n], 0 from 15 cm on
        return _paid(transition, near + 0.1 * (1 - distance(state) / 0.2))

    return reward


REWARDS: dict[str, Callable[[Sequence[str]], Reward]] = {
    "distance": distance_reward,
    "near-object": near_object_reward,
}
"""Name → the reward, made for the names of an environment's privileged state."""


def make_reward(name: str, privileged_names: Sequence[str]) -> Reward:
    """A reward by name.

    Raises:
        ValueError: no such reward, or the state lacks what it reads; lists what is valid.
    """
    if name not in REWARDS:
        raise ValueError(f"no reward {name!r}; valid: {', '.join(REWARDS)}")
    return REWARDS[name](privileged_names)


def _distance(names: Sequence[str], one: str, other: str) -> Callable[[Tensor], Tensor]:
    columns = [[f"{point}_{axis}" for axis in "xyz"] for point in (one, other)]
    if missing := [name for point in columns for name in point if name not in names]:
        raise ValueError(
            f"this reward reads {', '.join(missing)}, which the task's state does not have; it has "
            f"{', '.join(names)}"
        )
    first, second = ([names.index(name) for name in point] for point in columns)

    def distance(state: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return (state[:, first] - state[:, second]).norm(dim=1)

    return distance


def _paid(transition: Transition, amount: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """An amount [n] for each executed control step of a macro-step, float32 [n, k]."""
    return torch.where(transition.step.valid, amount[:, None], 0.0)
