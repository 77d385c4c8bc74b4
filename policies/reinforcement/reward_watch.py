"""The reward that is learned from, kept beside true success to see when the two part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from policies.evaluation.proxy import parted
from policies.optimisation import require_finite
from policies.reinforcement.collect import Reward
from policies.reinforcement.policy_update import Metrics
from policies.rollout import Episodes, Transition


class RewardWatch:
    """Sums a reward over each episode of a rollout, and remembers evaluations.

    Args:
        reward: what is learned from; None for the environment's own rewards.
    """

    def __init__(self, reward: Reward | None):
        self._reward = reward
        self._returns = np.zeros(0)  # [episodes] of the rollout that runs, or ran last
        self._proxy: list[float] = []  # one an evaluation
        self._success: list[float] = []

    def begin(self, episodes: int) -> Reward | None:
        """What a rollout of so many episodes is given as its reward; None for its own."""
        self._returns = np.zeros(episodes)
        return None if self._reward is None else self._add

    def _add(self, transition: Transition) -> Tensor:
        """The rewards of a macro-step, [n, k].

        Raises:
            NotFiniteError: one is NaN or infinite.
            ValueError: they are of another shape.
        """
        assert self._reward is not None
        rewards = self._reward(transition)
        # A reward of one's own may be anything; one of another shape could be added up in silence.
        if rewards.shape != transition.step.valid.shape:
            raise ValueError(
                f"the reward has shape {tuple(rewards.shape)}, expected one a control step: "
                f"{tuple(transition.step.valid.shape)}"
            )
        require_finite({"the reward that is learned from": rewards})
        earned = (rewards * transition.step.valid).sum(1).cpu().numpy()  # [n]
        playing = transition.episodes >= 0
        # An environment plays one episode at a time: no position repeats within a macro-step.
        self._returns[transition.episodes[playing]] += earned[playing]
        return rewards

    def returns(self, episodes: Episodes) -> np.ndarray:
        """What each episode of the rollout that ended earned, undiscounted: float64 [episodes]."""
        if self._reward is None:
            return np.array([e.total_reward for e in episodes.episodes])
        return self._returns

    def judge(self, evaluation: Mapping[str, float]) -> Metrics:
        """Add the evaluation that ended: its mean return, and 1 for an alarm; see `parted`.

        Nothing without a reward of its own: the environment's is the task.
        """
        if self._reward is None:
            return {}
        self._proxy.append(float(self._returns.mean()))
        self._success.append(evaluation["success/end"])
        alarm = bool(parted(self._proxy, self._success, len(self._returns)))
        return {"success/proxy": self._proxy[-1], "reward/alarm": float(alarm)}

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far."""
        return {"proxy": list(self._proxy), "success": list(self._success)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; nothing of an empty one."""
        self._proxy = list(state.get("proxy", ()))
        self._success = list(state.get("success", ()))
