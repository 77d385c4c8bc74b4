"""Reward hacking: when the reward that is learned from and true success part."""

from __future__ import annotations

import math
from collections.abc import Sequence

SIGNIFICANT = 2.5
"""Standard errors that count as more than chance: a newest score is compared with the best of
several, so that 2 would often be exceeded."""


def difference_error(rate: float, episodes: int) -> float:
    """Standard error of a difference of two success rates near `rate`, each over `episodes`."""
    # One more success and failure than seen (Agresti and Caffo 2000), or 0 and 1 had no error.
    p = (rate * episodes + 1) / (episodes + 2)
    return math.sqrt(2 * p * (1 - p) / episodes)


def parted(proxy: Sequence[float], success: Sequence[float], episodes: int) -> str:
    """What to say where proxy and success have parted; empty where they go together.

    They have parted where the newest evaluation earns at least as much as the one with the highest
    success did, but succeeds less often by more than chance. Gao et al. 2023, Scaling Laws for
    Reward Model Overoptimization (arXiv:2210.10760), figure 1, show the shape: true reward rises
    with the proxy and then falls while the proxy still rises.

    Args:
        proxy: mean return of the reward that is learned from, one an evaluation.
        success: true success rate, between 0 and 1, of the same evaluations.
        episodes: of an evaluation.
    """
    # The latest of equal ones: what was earned since then is compared.
    best = max(range(len(success)), key=lambda i: (success[i], i))
    fell = success[best] - success[-1]
    chance = SIGNIFICANT * difference_error(success[best], episodes)
    if proxy[-1] < proxy[best] or fell <= chance:
        return ""
    return (
        f"the reward rose from {proxy[best]:.3g} to {proxy[-1]:.3g} while success fell from "
        f"{success[best]:.0%} to {success[-1]:.0%}: the reward is being hacked"
    )
