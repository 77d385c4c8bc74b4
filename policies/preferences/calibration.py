"""How far a reward model's preferences can be trusted: accuracy and calibration, held out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from policies.preferences.preference_batch import PreferenceBatch
from policies.preferences.reward_model import RewardModel, preference_loss


@torch.no_grad()
def measure(model: RewardModel, heldout: PreferenceBatch) -> dict[str, float]:
    """How well held-out preferences are predicted; nobody is right or wrong about a tie."""
    probability = model.probability(heldout)
    told = heldout.label != 0.5
    loss = preference_loss(model.log_odds(heldout), heldout.label, model.config.error_rate)
    values = {
        "loss/heldout": float(loss.mean()),
        "calibration/error": calibration_error(probability, heldout.label),
    }
    if told.any():
        right = (probability > 0.5) == (heldout.label > 0.5)
        values["accuracy/heldout"] = float(right[told].float().mean())
    return values


def reliability(
    probability: Float[Tensor, " n"], label: Float[Tensor, " n"], bins: int = 10
) -> list[dict[str, float]]:
    """Predicted against actual preference, in bins of equal width that hold anything.

    Source: DeGroot and Fienberg 1983, as in Guo et al. 2017 (arXiv:1706.04599), section 2.
    """
    # A pair has no order, so each counts both ways, and the bins are symmetric.
    both, labels = torch.cat([probability, 1 - probability]), torch.cat([label, 1 - label])
    index = (both * bins).long().clamp(max=bins - 1)
    return [
        {
            "predicted": float(both[inside].mean()),
            "actual": float(labels[inside].mean()),
            "comparisons": float(inside.sum()) / 2,
        }
        for inside in (index == bin_ for bin_ in range(bins))
        if inside.any()
    ]


def calibration_error(probability: Float[Tensor, " n"], label: Float[Tensor, " n"]) -> float:
    """Mean gap between predicted and actual preference, weighted by comparisons (Guo et al.)."""
    rows = reliability(probability, label)
    gaps = sum(row["comparisons"] * abs(row["predicted"] - row["actual"]) for row in rows)
    return gaps / sum(row["comparisons"] for row in rows)
