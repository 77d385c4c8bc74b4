"""The policy that refinement started from, kept to measure and to bound how far it has moved."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from policies.reinforcement.stochastic_policy import StochasticActor, in_parts
from vla.model.features import Features
from vla.model.heads.base import Likelihood


class Reference:
    """A frozen copy of an actor.

    Args:
        actor: copied as it is now.
    """

    def __init__(self, actor: StochasticActor):
        # Before a run is resumed: it is the clone also then.
        self._actor = deepcopy(actor)
        self._log_std = self._actor.log_std_parameters()
        # The penalty's gradient must move the policy, not what it is compared with.
        for parameter in self._actor.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def match_exploration(self, actor: StochasticActor) -> None:
        """Explore as this actor does: a KL then tells how far the means went, and nothing else."""
        # Else a schedule that lowers the noise would look like a policy that moves away.
        for mine, theirs in zip(self._log_std, actor.log_std_parameters(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def likelihood(self, features: Features, sample: Tensor) -> Likelihood:
        """How likely the reference would have drawn samples."""
        return self._actor.likelihood(features, sample)

    def kl(self, likelihood: Likelihood, features: Features, sample: Tensor) -> Tensor:
        """KL(policy || reference) in nats a control step, [n, k]."""
        return likelihood.kl(self.likelihood(features, sample))

    @torch.no_grad()
    def distance(self, actor: StochasticActor, features: Features, sample: Tensor) -> Tensor:
        """KL(actor || reference) over many rows, [n, k]; without a gradient."""
        return torch.cat(
            [
                self.kl(actor.likelihood(part, drawn), part, drawn)
                for part, drawn in in_parts(features, sample)
            ]
        )
