"""Group relative policy optimisation: episodes of one initial state are compared, and no critic.

Source: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), equations 3 and 4 with the advantages of
section 4.1.2; asymmetric clip, groups without variance left out and one mean over all tokens:
Yu et al. 2025, DAPO (arXiv:2503.14476), equations 8 to 12; on a vision-language-action policy with
the simulator's verdict as reward: Li et al. 2025, SimpleVLA-RL (arXiv:2509.09674). Departures:

- A part of the objective is a control step for heads that are not of tokens.
- Groups without variance are left out, and not replaced by others.
- Several epochs of large minibatches, which end at `target_kl` as PPO's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.advantages import group_relative
from policies.reinforcement.clipped_objective import ClipConfig, clipped_surrogate, descend
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.policy_update import Metrics, k3, mean_metrics
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor


@dataclass(frozen=True)
class GRPOConfig(ClipConfig):
    """Hyperparameters; sources in the module's docstring, those of `ClipConfig` beside them.

    Attributes:
        group_size: episodes from each initial state; at least 2.
    """

    clip_high: float | None = 0.28
    group_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, got {self.group_size}: an episode is compared "
                "with the others of its group"
            )


class GRPO:
    """The clipped surrogate objective with group relative advantages.

    Args:
        actor: trained in place.
        config: hyperparameters.
    """

    needs_critic: ClassVar[bool] = False

    def __init__(self, actor: StochasticActor, config: GRPOConfig):
        self.config, self._actor = config, actor
        self._optimizer = ActorOptimizer(actor, config)

    @property
    def group_size(self) -> int:
        """Episodes from each initial state."""
        return self.config.group_size

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Those of whole episodes within their groups, float32 [t, n]."""
        return group_relative(experience)

    def update(self, batch: Batch, reference: Reference, generator: torch.Generator) -> Metrics:
        """Epochs over the groups with variance; means of what was measured at each step."""
        # An advantage is exactly 0 where all episodes of a group ended alike.
        informative = batch.advantage != 0
        skipped = {"advantage/skipped": 1 - float(informative.float().mean())}
        if not informative.any():
            return skipped | mean_metrics([])
        return skipped | descend(
            batch.select(informative),
            lambda minibatch: self.loss(minibatch, reference),
            self._optimizer,
            self.config,
            generator,
        )

    def loss(self, batch: Batch, reference: Reference) -> tuple[Tensor, Metrics]:
        """Clipped surrogate and penalty (equation 3), means over control steps."""
        likelihood = self._actor.likelihood(batch.features, batch.sample)
        log_prob = likelihood.log_prob()
        surrogate, metrics = clipped_surrogate(log_prob, batch, self.config)
        loss = -surrogate
        if self.config.reference_kl:
            # Equation 4, on samples of the policy that collected.
            clone = reference.likelihood(batch.features, batch.sample).log_prob()
            loss = loss + self.config.reference_kl * batch.mean(k3(clone - log_prob))
        return loss, {
            "policy/loss": float(loss.detach()),
            "policy/entropy": float(batch.mean(likelihood.entropy().detach())),
            **metrics,
        }

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._optimizer.load_state_dict(state)
