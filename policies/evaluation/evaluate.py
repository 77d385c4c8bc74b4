"""Success rates during training, on given initial states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from policies.rollout import Transition, rollout
from vla.contract import Policy, VecEnv


def evaluate(
    env: VecEnv,
    policy: Policy,
    seeds: Sequence[int],
    on_step: Callable[[Transition], object] | None = None,
) -> tuple[dict[str, float], int]:
    """Success rates and mean return of one episode per seed, and the simulator steps they took.

    The steps belong in the ledger of whoever selects a checkpoint by the result: choosing costs
    simulation as training does.

    Args:
        env: what it was playing is dropped.
        policy: acts as it would on a robot; a trainer passes its greedy policy.
        seeds: one per episode.
        on_step: see `rollout`.

    Returns:
        "success/end" and "success/ever" between 0 and 1, "success/return" undiscounted, all three
        means over the episodes, whose number is "success/episodes"; and control steps.

    Raises:
        ContractMismatchError, RuntimeError, ValueError: see `rollout`.
    """
    # The same loop as collection and final evaluation, so scores can be compared.
    episodes = rollout(env, policy, seeds, on_step)
    metrics = {
        # Ranks checkpoints: "ever" would favour a policy that only passes through the goal.
        "success/end": float(episodes.success_at_end.mean()),
        "success/ever": float(episodes.success_ever.mean()),
        "success/return": float(np.mean([e.total_reward for e in episodes.episodes])),
        "success/episodes": float(len(seeds)),
    }
    return metrics, episodes.simulator_steps
