"""What an off-policy actor decides: chunks themselves, or what a frozen policy makes chunks of."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from policies.reinforcement.exploration import require_log_std
from policies.reinforcement.reference import Reference
from policies.reinforcement.sac import ReparameterisedActor, SACConfig
from policies.reinforcement.stochastic_policy import StochasticPolicy
from vla.model.features import Features
from vla.model.heads.registry import require_reparameterised


class ActionSpace(Protocol):
    """An actor that is trained, and from its actions to the chunks that are executed."""

    @property
    def actor(self) -> ReparameterisedActor:
        """What is trained."""
        ...

    def chunk(self, features: Features, action: Tensor) -> Tensor:
        """Normalised chunks [n, k, a] of actions [n, k, a]."""
        ...

    def distance(self, features: Features, generator: torch.Generator) -> Tensor:
        """KL to the actor as it began, nats a control step [n, k], with a gradient."""
        ...


class DirectActions:
    """The actor's actions are the chunks.

    Args:
        policy: its actor is trained.
        method: says at which deviation exploration starts.

    Raises:
        NotReparameterisedError: its head gives random actions without a gradient.
        ValueError: that deviation is outside of the head's range.
    """

    def __init__(self, policy: StochasticPolicy[Any], method: SACConfig):
        require_reparameterised(policy.actor.head, "SAC")
        require_log_std(policy.actor.head, method.log_std_start)
        self.actor = policy.actor
        with torch.no_grad():
            for log_std in policy.actor.log_std_parameters():
                log_std.fill_(method.log_std_start)
        self._start = Reference(policy.actor)

    def chunk(self, features: Features, action: Tensor) -> Tensor:
        """The same."""
        return action

    def distance(self, features: Features, generator: torch.Generator) -> Tensor:
        """See `ActionSpace.distance`; also by what the deviation has changed."""
        drawn = self.actor.sample(features, generator).detach()
        return self._start.kl(self.actor.likelihood(features, drawn), features, drawn)
