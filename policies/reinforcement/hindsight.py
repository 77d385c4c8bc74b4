"""Hindsight experience replay: what was reached takes the place of the goal.

Source: Andrychowicz et al. 2017, Hindsight Experience Replay (arXiv:1707.01495), section 3.3 and
the strategy "future" of section 4.5. Relabelled while sampling, so nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vla.contract import GoalSpec, VecEnv, VecEnvWithGoals


class Hindsight:
    """Goals in state vectors, and the reward that follows from them.

    Args:
        goals: where the goal sits, and when it is reached.
        names: of a state vector's dimensions.
        share: of the sampled transitions that are relabelled, 0 to 1.
        step_reward: added to every reward.

    Raises:
        ValueError: a dimension that the vector does not have.
    """

    def __init__(
        self, goals: GoalSpec, names: Sequence[str], share: float, step_reward: float = 0.0
    ):
        if unknown := [name for name in (*goals.achieved, *goals.goal) if name not in names]:
            raise ValueError(f"no dimensions {unknown} in the state; it has {', '.join(names)}")
        self.share, self._step_reward = share, step_reward
        self._achieved = torch.tensor([names.index(name) for name in goals.achieved])
        self._goal = torch.tensor([names.index(name) for name in goals.goal])
        self._tolerance = goals.tolerance

    @classmethod
    def of(cls, env: VecEnv, share: float, step_reward: float) -> Hindsight:
        """Of an environment's privileged state.

        Raises:
            ValueError: the environment does not say where a goal sits.
        """
        goals = env.goals if isinstance(env, VecEnvWithGoals) else None
        if goals is None:
            raise ValueError(
                "hindsight needs a task whose success is the distance to a goal in its state; this "
                f"one names no goal in {', '.join(env.privileged_names)}. Set hindsight=0"
            )
        return cls(goals, env.privileged_names, share, step_reward)

    def achieved(self, state: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows g"]:
        """What could have been the goal of states [..., d]."""
        return state[..., self._achieved]

    def goal(self, state: Float[Tensor, "m d"]) -> Float[Tensor, "m g"]:
        """The goals of states [m, d]."""
        return state[:, self._goal]

    def relabel(self, state: Float[Tensor, "m d"], goal: Float[Tensor, "m g"]) -> Tensor:
        """States [m, d] with other goals, in place."""
        state[:, self._goal] = goal
        return state

    def reward(self, achieved: Float[Tensor, "*rows g"], goal: Float[Tensor, "*#rows g"]) -> Tensor:
        """1 where the goal is reached, else 0, and `step_reward` added."""
        return ((achieved - goal).norm(dim=-1) < self._tolerance).float() + self._step_reward
