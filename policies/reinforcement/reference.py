"""The policy that refinement started from, kept to measure and to bound how far it has moved."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from policies.reinforcement.exploration import match_exploration
from policies.reinforcement.stochastic_policy import StochasticActor, in_parts
from vla.model.features import Features
from vla.model.heads.base import Likelihood


class Reference:
    """A frozen copy of an actor.

    Args:
        actor: copied as it is now.
    """

    def __init__(self, actor: StochasticActor):
        # Copied before a checkpoint is loaded: in a resumed run it is the clone, too.
        self._actor = deepcopy(actor)
        # The penalty's gradient must move the policy, not what it is compared with.
        for parameter in self._actor.parameters():
            parameter.requires_grad_(False)

    def match_exploration(self, actor: StochasticActor) -> None:
        """Explore as this actor does: a KL then measures how far the means have moved."""
        # Otherwise a schedule that lowers the noise would count as distance to the clone.
        match_exploration(self._actor, actor)

    @torch.no_grad()
    def likelihood(self, features: Features, sample: Tensor) -> Likelihood:
        """Likelihood of samples under the reference."""
        return self._actor.likelihood(features, sample)

    def kl(self, likelihood: Likelihood, features: Features, sample: Tensor) -> Tensor:
        """KL(policy || reference) in nats, part by part: [n, p]."""
        return likelihood.kl(self.likelihood(features, sample))

    @torch.no_grad()
    def distance(self, actor: StochasticActor, features: Features, sample: Tensor) -> Tensor:
        """KL(actor || reference) over many rows, [n, p]; without a gradient."""
        return torch.cat(
            [
                self.kl(actor.likelihood(part, drawn), part, drawn)
                for part, drawn in in_parts(features, sample)
            ]
        )
