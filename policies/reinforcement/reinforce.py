"""REINFORCE with a moving-average baseline: one gradient step a collection, and no critic.

Source: Williams 1992, Simple statistical gradient-following algorithms for connectionist
reinforcement learning (doi:10.1007/BF00992696), equation 11 with the baseline of "reinforcement
comparison" (section 4): a moving average of past returns. Departures:

- A macro-step is credited with the discounted rewards that follow it, not with those before, and
  the baseline is an average for each place in the episode, since what can still come shrinks as
  its time limit comes nearer.
- A chunk is one macro-step; its advantage weighs the log-probability of its executed control steps.
- Adam in the place of plain gradient ascent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from policies.reinforcement.actor_optimizer import ActorOptimizer
from policies.reinforcement.advantages import monte_carlo
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.policy_update import Metrics, describe_step
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor
from vla.settings import require_numbers


@dataclass(frozen=True)
class ReinforceConfig:
    """Hyperparameters; sources in the module's docstring.

    Attributes:
        gamma: discount a control step.
        baseline_rate: weight of the newest collection in the moving average of returns.
        learning_rate: of Adam; None for that of the head's kind, see `LEARNING_RATES`.
        log_std_learning_rate: of Adam for the exploration's log standard deviation.
        max_grad_norm: gradients are clipped to this norm.
    """

    gamma: float = 0.98
    baseline_rate: float = 0.2
    learning_rate: float | None = None
    log_std_learning_rate: float = 3e-3
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        require_numbers(
            self, above_0=("max_grad_norm",), at_most={"gamma": 1 - 1e-6, "baseline_rate": 1}
        )


class Reinforce:
    """The policy gradient with returns above their moving average.

    Args:
        actor: trained in place.
        config: hyperparameters.
    """

    needs_critic: ClassVar[bool] = False
    group_size = 1

    def __init__(self, actor: StochasticActor, config: ReinforceConfig):
        self.config, self._actor = config, actor
        self._optimizer = ActorOptimizer(actor, config)
        self._baseline = torch.zeros(0)  # average return at each place in an episode, [places]

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Returns above the moving average of earlier collections, float32 [t, n]."""
        returns, active = monte_carlo(experience, self.config.gamma), experience.active
        place = places_in_episode(experience.ended)
        # From collections before this one, so that it does not depend on what it is taken from.
        baseline = self._average(place[active], returns[active], len(place))  # [places]
        # Environments that idled have no place of their own; nothing is learned from them.
        return torch.where(active, returns - baseline[place], 0.0)

    def _average(self, place: Tensor, returns: Tensor, places: int) -> Tensor:
        """Take returns [m] at places [m] into the average; what it was before, [places].

        NaN stands for a place that was never seen; its first mean is its own baseline.
        """
        # 0 / 0 is NaN where no episode was that long.
        count = torch.bincount(place, minlength=places)
        mean = torch.zeros_like(count, dtype=returns.dtype).index_add(0, place, returns) / count
        # Episodes of this collection may be longer or shorter than any before.
        known = self._baseline.to(mean)
        old = mean.new_full((max(places, len(known)),), torch.nan)
        old[: len(known)] = known
        mean = torch.cat([mean, old[places:]])
        before = torch.where(old.isnan(), mean, old)
        self._baseline = torch.where(
            mean.isnan(), old, before.lerp(mean, self.config.baseline_rate)
        )
        return before

    def update(self, batch: Batch, reference: Reference, generator: torch.Generator) -> Metrics:
        """One step up the gradient of log-probability times advantage (equation 11)."""
        likelihood = self._actor.likelihood(batch.features, batch.sample)
        loss = -batch.mean(likelihood.log_prob() * batch.advantage[:, None])  # [m, p] * [m, 1]
        entropy = batch.mean(likelihood.entropy())
        # The only step on these samples: after it they are of another policy.
        norm = self._optimizer.step(loss)
        return describe_step(self._actor, batch, loss, entropy, norm) | self._optimizer.describe(
            norm
        )

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the baseline."""
        return {"optimizer": self._optimizer.state_dict(), "baseline": self._baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._baseline = state["baseline"]


def places_in_episode(ended: Bool[Tensor, "t n"]) -> Int64[Tensor, "t n"]:
    """How many macro-steps of its episode lie before each one, int64 [t, n]."""
    place = torch.zeros_like(ended, dtype=torch.int64)
    for step in range(1, len(ended)):
        place[step] = torch.where(ended[step - 1], 0, place[step - 1] + 1)
    return place
