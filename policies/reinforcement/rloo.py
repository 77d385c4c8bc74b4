"""REINFORCE leave-one-out: an episode is compared with the mean of the others of its group.

Source: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free! (ICLR 2019 workshop),
with the clipped objective on a vision-language-action policy as in Tan et al. 2025, RIPT-VLA
(arXiv:2505.17016). Groups, clip, masks and what is left out are GRPO's; the
advantage is not divided by the group's standard deviation, so a group that nearly always succeeds,
or fails, weighs less. Departures: see `policies.reinforcement.grpo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.reinforcement.advantages import leave_one_out
from policies.reinforcement.experience import Experience
from policies.reinforcement.grpo import GRPO, GRPOConfig


@dataclass(frozen=True)
class RLOOConfig(GRPOConfig):
    """GRPO's hyperparameters; the clip is the same on both sides, as in RIPT-VLA."""

    clip_high: float | None = None


class RLOO(GRPO):
    """GRPO with leave-one-out advantages."""

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Outcomes above the mean of the others of the group, float32 [t, n]."""
        return leave_one_out(experience)
