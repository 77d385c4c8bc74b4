"""Curricula: which start states are collected, or how near is good enough, by success so far.

`Frontier` begins episodes where success is neither certain nor hopeless. Source: Florensa et al.
2018, Automatic Goal Generation for Reinforcement Learning Agents (arXiv:1705.06366), goals of
intermediate difficulty (equation 4), and Rutherford et al. 2024 (arXiv:2408.15099), the weight
p (1 - p). Departures: start states come from the task's own distribution and are grouped by a
known difficulty, so no generator of goals is learned. `ShrinkingGoal` pays for coming within a
radius that shrinks to the task's own: the reward begins dense and ends sparse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from policies.reinforcement.collect import Reward
from policies.reinforcement.policy_update import Metrics
from policies.rollout import Episodes, Transition
from vla.settings import require_numbers

Candidates = Callable[[int, int], Sequence[int]]
"""Iteration, from 0, and a count to so many seeds that no other iteration has."""


class Curriculum(Protocol):
    """Chooses what is collected; its state is part of a run's checkpoints."""

    @property
    def config(self) -> Any:
        """Its settings, a dataclass."""
        ...

    @property
    def reward(self) -> Reward | None:
        """What is learned from in place of the run's reward; None for that."""
        ...

    def seeds(self, iteration: int) -> Sequence[int]:
        """The episodes that an iteration, from 0, collects."""
        ...

    def learn(self, episodes: Episodes, returns: np.ndarray) -> Metrics:
        """Take in what was collected, and what each episode earned, float64 [episodes]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


@dataclass(frozen=True)
class FrontierConfig:
    """Settings of `Frontier`.

    Attributes:
        levels: groups of start states of equally wide difficulty; of a suite always its tasks.
        candidates: start states that are looked at for each one that is played; the more, the
            rarer ones are found.
        uniform: share of episodes that begin as the task begins them.
        memory: weight of what was known about a level when an iteration has passed.
    """

    levels: int = 8
    candidates: int = 4
    uniform: float = 0.1
    memory: float = 0.7

    def __post_init__(self) -> None:
        require_numbers(
            self, at_least_1=("levels", "candidates"), at_most={"uniform": 1, "memory": 1}
        )
        if self.levels < 2:
            raise ValueError(
                f"levels must be at least 2, got {self.levels}: one level is no choice"
            )


class Frontier:
    """Start states of intermediate difficulty for the policy as it is.

    Args:
        config: settings.
        episodes: an iteration.
        candidates: start states to choose from.
        difficulty: of a start state by its seed, such as the distance to the goal; any unit.
    """

    reward: Reward | None = None

    def __init__(
        self,
        config: FrontierConfig,
        episodes: int,
        candidates: Candidates,
        difficulty: Callable[[int], float],
    ):
        self.config = config
        self._episodes, self._candidates, self._difficulty = episodes, candidates, difficulty
        self._edges = np.zeros(0)  # [levels + 1], once the first candidates are known
        self._tried, self._solved = np.zeros(config.levels), np.zeros(config.levels)
        self._levels: dict[int, int] = {}  # seed → level, of what is being collected

    @property
    def success(self) -> np.ndarray:
        """Estimated success of each level; 0.5 where nothing was tried: float64 [levels]."""
        return (self._solved + 1) / (self._tried + 2)

    def seeds(self, iteration: int) -> Sequence[int]:
        """Mostly from levels whose success is between 10 and 90%; one may repeat where few are."""
        offered = np.array(self._candidates(iteration, self._episodes * self.config.candidates))
        difficulty = np.array([self._difficulty(int(seed)) for seed in offered])
        if not len(self._edges):
            self._edges = np.linspace(difficulty.min(), difficulty.max(), self.config.levels + 1)
        # Beyond the first candidates' range: the outermost level. [offered]
        level = np.digitize(difficulty, self._edges[1:-1])
        rng = np.random.default_rng(iteration)
        weights = self._weights(np.bincount(level, minlength=self.config.levels) > 0)
        # A choice of levels first: rare start states weigh as much as frequent ones.
        wanted = rng.choice(self.config.levels, self._episodes, p=weights)
        rows = np.array([rng.choice(np.flatnonzero(level == one)) for one in wanted])
        # The first candidates are a fair sample of the task's start states.
        fair = rng.random(self._episodes) < self.config.uniform
        rows = np.where(fair, np.arange(self._episodes), rows)
        self._levels = dict(zip(offered.tolist(), level.tolist(), strict=True))
        return [int(seed) for seed in offered[rows]]

    def _weights(self, is_offered: np.ndarray) -> np.ndarray:
        """Probability of each level, of those with candidates: float64 [levels]."""
        p = self.success
        learnable = p * (1 - p) * is_offered
        at_frontier = learnable * _is_frontier(p)
        # Where all is easy or all is hopeless, whatever is nearest to the frontier.
        weights = at_frontier if at_frontier.any() else learnable
        return weights / weights.sum()

    def learn(self, episodes: Episodes, returns: np.ndarray) -> Metrics:
        """Success of each level, with what is older weighing less."""
        levels = self.config.levels
        # Half for what was reached and left again: it earned something, and can earn more.
        solved = (episodes.success_at_end + episodes.success_ever.astype(float)) / 2
        # By seed: a method that compares groups plays a part of them, each several times.
        playing = np.array([self._levels[episode.seed] for episode in episodes.episodes])
        self._tried *= self.config.memory
        self._solved *= self.config.memory
        self._tried += np.bincount(playing, minlength=levels)
        self._solved += np.bincount(playing, weights=solved, minlength=levels)
        p = self.success
        middles = (self._edges[1:] + self._edges[:-1]) / 2
        return {
            "curriculum/frontier": float(_is_frontier(p)[playing].mean()),
            "curriculum/mastered": float((p >= 0.9).mean()),
            "curriculum/difficulty": float(middles[playing].mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """What is known of the levels."""
        return {
            "edges": torch.from_numpy(self._edges.copy()),
            "tried": torch.from_numpy(self._tried.copy()),
            "solved": torch.from_numpy(self._solved.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._edges, self._tried, self._solved = (
            state[name].numpy().copy() for name in ("edges", "tried", "solved")
        )


def _is_frontier(success: np.ndarray) -> np.ndarray:
    """Bool, where something can be learned: neither hopeless nor mastered."""
    return (success > 0.1) & (success < 0.9)


@dataclass(frozen=True)
class ShrinkingGoalConfig:
    """Settings of `ShrinkingGoal`.

    Attributes:
        start_m: radius around the goal that earns a reward at first, metres.
        end_m: the task's own.
        factor: of the radius each time that it shrinks.
        solved: share of episodes that must come within the radius, at the end of some chunk,
            before it shrinks.
    """

    start_m: float = 0.2
    end_m: float = 0.05
    factor: float = 0.8
    solved: float = 0.7

    def __post_init__(self) -> None:
        require_numbers(
            self,
            above_0=("end_m", "factor"),
            at_most={"factor": 0.99, "solved": 1, "end_m": self.start_m},
        )


class ShrinkingGoal:
    """A reward of 1 within a radius that shrinks by success.

    Args:
        config: settings.
        seeds: iteration, from 0, to the seeds that it collects.
        distance: to the goal in metres [n], of privileged states [n, d].
    """

    def __init__(
        self,
        config: ShrinkingGoalConfig,
        seeds: Callable[[int], Sequence[int]],
        distance: Callable[[Tensor], Tensor],
    ):
        self.config, self.radius_m = config, config.start_m
        self._seeds, self._distance = seeds, distance

    def seeds(self, iteration: int) -> Sequence[int]:
        """As the run draws them."""
        return self._seeds(iteration)

    def reward(self, transition: Transition) -> Tensor:
        """1 for each executed step of a macro-step that ends within the radius, [n, k]."""
        within = self._distance(transition.step.privileged) < self.radius_m  # [n]
        return (within[:, None] & transition.step.valid).float()

    def learn(self, episodes: Episodes, returns: np.ndarray) -> Metrics:
        """Shrink the radius where enough episodes came within it."""
        solved = float((returns > 0).mean())
        metrics = {
            "curriculum/radius_m": self.radius_m,
            "curriculum/frontier": float(0.1 < solved < 0.9),
            "curriculum/mastered": float(self.radius_m <= self.config.end_m),
        }
        if solved >= self.config.solved:
            self.radius_m = max(self.config.end_m, self.config.factor * self.radius_m)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The radius."""
        return {"radius_m": self.radius_m}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.radius_m = state["radius_m"]


CURRICULA: dict[str, type[Any]] = {"frontier": FrontierConfig, "radius": ShrinkingGoalConfig}
"""Name → settings, for `vla refine --curriculum NAME`."""
