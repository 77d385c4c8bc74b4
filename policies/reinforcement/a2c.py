"""Advantage actor-critic: one gradient step a collection.

Source: Mnih et al. 2016, Asynchronous Methods for Deep Reinforcement Learning (arXiv:1602.01783),
section 4 and algorithm S3, in its synchronous form. Departures:

- Whole episodes are collected instead of a few steps, and advantages are generalised
  (arXiv:1506.02438); lambda 1 gives the paper's longest returns.
- A chunk is one macro-step; its advantage weighs the log-probability of its executed control steps.
- Adam in the place of RMSProp, and actor and critic share no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.advantages import gae
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.policy_update import Metrics, describe_step
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor
from vla.settings import require_numbers


@dataclass(frozen=True)
class A2CConfig:
    """Hyperparameters; sources in the module's docstring.

    Attributes:
        gamma: discount a control step.
        gae_lambda: of the generalised advantages, a macro-step.
        learning_rate: of Adam; None for that of the head's kind, see `LEARNING_RATES`.
        log_std_learning_rate: of Adam for the exploration's log standard deviation.
        entropy: weight of the entropy bonus.
        max_grad_norm: gradients are clipped to this norm.
    """

    gamma: float = 0.98
    gae_lambda: float = 0.95
    learning_rate: float | None = None
    log_std_learning_rate: float = 3e-3
    entropy: float = 0.0
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        require_numbers(
            self, above_0=("max_grad_norm",), at_most={"gamma": 1 - 1e-6, "gae_lambda": 1}
        )


class A2C:
    """The policy gradient with a critic's advantages.

    Args:
        actor: trained in place.
        config: hyperparameters.
    """

    needs_critic: ClassVar[bool] = True
    group_size = 1

    def __init__(self, actor: StochasticActor, config: A2CConfig):
        self.config, self._actor = config, actor
        self._optimizer = ActorOptimizer(actor, config)

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Generalised advantages, float32 [t, n]."""
        return gae(experience, values, next_values, self.config.gamma, self.config.gae_lambda)

    def update(self, batch: Batch, reference: Reference, generator: torch.Generator) -> Metrics:
        """One step up the gradient of log-probability times advantage, plus the entropy's."""
        # Of the same weights that collected, so that no ratio corrects for anything.
        likelihood = self._actor.likelihood(batch.features, batch.sample)
        entropy = batch.mean(likelihood.entropy())
        gain = batch.mean(likelihood.log_prob() * batch.advantage[:, None])  # [m, p] * [m, 1]
        # Section 4: ascent on log pi * A + beta * H, as descent for the optimizer.
        loss = -gain - self.config.entropy * entropy
        # The only step on these samples: after it they are of another policy.
        norm = self._optimizer.step(loss)
        return describe_step(self._actor, batch, loss, entropy, norm) | self._optimizer.describe(
            norm
        )

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._optimizer.load_state_dict(state)
