"""How far a policy leaves the demonstrated states, and what it achieves by when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from policies.rollout import Transition, rollout
from vla.contract import Policy, VecEnv


@dataclass(frozen=True)
class Drift:
    """Means over episodes, by control steps since they began.

    Attributes:
        steps: how many had been executed; the first is 0.
        distance: from the nearest demonstrated state, in standard deviations of those; of the
            episodes that were observed then.
        success: share of all episodes in which the task's condition held when they were last
            observed; one that has ended stays as it ended.
    """

    steps: list[int]
    distance: list[float]
    success: list[float]


def nearest_distance(
    visited: Float32[Tensor, "n d"], demonstrated: Float32[Tensor, "m d"]
) -> Float32[Tensor, " n"]:
    """Root mean square over dimensions to the nearest demonstrated state, standardised by them.

    Dimensions that the demonstrations hold constant say nothing and are left out.
    """
    mean, std = demonstrated.mean(0), demonstrated.std(0)
    varies = std > 1e-6
    visited, known = (((states - mean) / std)[:, varies] for states in (visited, demonstrated))
    nearest = torch.cat([torch.cdist(part, known).amin(1) for part in visited.split(1000)])
    return nearest / max(1, int(varies.sum())) ** 0.5


def measure_drift(env: VecEnv, policy: Policy, seeds: Sequence[int], demonstrated: Tensor) -> Drift:
    """Play one episode per seed and compare where it leads, decision by decision.

    Args:
        env: what it was playing is dropped.
        policy: acts as it would on a robot.
        seeds: one per episode.
        demonstrated: simulator states of the demonstrations, float32 [m, privileged].

    Raises:
        ValueError: states of other dimensions, or fewer than two.
    """
    if demonstrated.ndim != 2 or demonstrated.shape[1] != len(env.privileged_names):
        raise ValueError(
            f"the demonstrated states have shape {tuple(demonstrated.shape)}, the environment's "
            f"have {len(env.privileged_names)} dimensions"
        )
    if len(demonstrated) < 2:
        raise ValueError("drift needs at least two demonstrated states")
    played = np.zeros(len(seeds), int)  # control steps of each episode so far
    found: dict[int, list[tuple[int, Tensor, bool]]] = {}  # episode, state, success

    def keep(transition: Transition) -> None:
        step = transition.step
        for row in np.flatnonzero(transition.episodes >= 0):
            episode = int(transition.episodes[row])
            if played[episode] == 0:
                found.setdefault(0, []).append((episode, transition.privileged[row].cpu(), False))
            executed = int(step.valid[row].sum())
            played[episode] += executed
            succeeded = bool(step.success[row, executed - 1])
            reached = (episode, step.privileged[row].cpu(), succeeded)
            found.setdefault(int(played[episode]), []).append(reached)

    rollout(env, policy, seeds, keep)
    steps = sorted(found)
    states = torch.stack([state for count in steps for _, state, _ in found[count]])
    lengths = [len(found[count]) for count in steps]
    distances = nearest_distance(states, demonstrated.float()).split(lengths)
    # Where success ends an episode, those that are still played are those that failed so far.
    holds, success = np.zeros(len(seeds), bool), []
    for count in steps:
        for episode, _, succeeded in found[count]:
            holds[episode] = succeeded
        success.append(float(holds.mean()))
    return Drift(steps, [float(distance.mean()) for distance in distances], success)
