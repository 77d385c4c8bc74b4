"""Proximal policy optimisation of a policy that decides in chunks.

Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7, with the generalised advantages of
Schulman et al. 2016 (arXiv:1506.02438), equation 16. Departures:

- A chunk is one macro-step with one advantage; the ratio is that of an executed control step,
  or of a token, since one over a whole chunk saturates the clip.
- The clip may have another bound above than below.
- Advantages are standardised over what was collected, not over a minibatch.
- Learning from a collection ends, before the next gradient step, once the policy has moved
  `target_kl` away from the one that collected.
- A penalty on the KL to the policy that refinement started from, which the paper does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.advantages import gae
from policies.reinforcement.clipped_objective import ClipConfig, clipped_surrogate, descend
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor


@dataclass(frozen=True)
class PPOConfig(ClipConfig):
    """Hyperparameters; sources in the module's docstring, those of `ClipConfig` beside them.

    Attributes:
        gamma: discount a control step.
        gae_lambda: of the generalised advantages, a macro-step.
        entropy: weight of the entropy bonus.
    """

    clip_range: float = 0.3
    gamma: float = 0.98
    gae_lambda: float = 0.95
    entropy: float = 0.0

    AT_MOST: ClassVar[Mapping[str, float]] = {"gamma": 1 - 1e-6, "gae_lambda": 1}


class PPO:
    """The clipped surrogate objective, several epochs a collection.

    Args:
        actor: trained in place.
        config: hyperparameters.
    """

    needs_critic: ClassVar[bool] = True
    group_size = 1

    def __init__(self, actor: StochasticActor, config: PPOConfig):
        self.config, self._actor = config, actor
        self._optimizer = ActorOptimizer(actor, config)

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Generalised advantages, float32 [t, n]."""
        return gae(experience, values, next_values, self.config.gamma, self.config.gae_lambda)

    def update(self, batch: Batch, reference: Reference, generator: torch.Generator) -> Metrics:
        """Epochs over one collection; means of what was measured at each gradient step."""
        return descend(
            batch.standardised(),
            lambda minibatch: self.loss(minibatch, reference),
            self._optimizer,
            self.config,
            generator,
        )

    def loss(self, batch: Batch, reference: Reference) -> tuple[Tensor, Metrics]:
        """Clipped surrogate (equation 7), entropy and penalty; means over control steps."""
        config = self.config
        likelihood = self._actor.likelihood(batch.features, batch.sample)
        surrogate, metrics = clipped_surrogate(likelihood.log_prob(), batch, config)
        entropy = batch.mean(likelihood.entropy())
        # Equation 9 without its value term: the critic is fitted apart, with weights of its own.
        loss = -surrogate - config.entropy * entropy
        if config.reference_kl:
            moved = reference.kl(likelihood, batch.features, batch.sample)
            loss = loss + config.reference_kl * batch.mean(moved)
        return loss, {
            "policy/loss": float(loss.detach()),
            "policy/entropy": float(entropy.detach()),
            **metrics,
        }

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._optimizer.load_state_dict(state)
