"""Which episodes are worth filming."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.rollout import Episodes


def choose_episodes(played: Mapping[str, Episodes], per_outcome: int) -> dict[str, list[int]]:
    """Positions of the episodes to film: successes, then failures, of every policy.

    Initial states on which the policies disagree most come first, in one order for all, so that a
    failure and another policy's success on the same state meet on the page.
    """
    # Bool [episodes] by policy.
    outcomes = {name: episodes.success_at_end for name, episodes in played.items()}
    solved = np.mean(list(outcomes.values()), axis=0)
    # Share that solves a state near 0.5: they disagree. Ties stay in the order of the seeds.
    order = np.argsort(np.abs(solved - 0.5), kind="stable")
    return {
        name: [
            int(position)
            for wanted in (True, False)
            for position in order[success[order] == wanted][:per_outcome]
        ]
        for name, success in outcomes.items()
    }
