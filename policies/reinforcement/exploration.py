"""How much a policy explores: learned, below a ceiling that falls during the run.

A head of tokens has no standard deviation and is sampled at a temperature instead: with logits
divided by T, a distribution that is about normal keeps its mean, and its standard deviation grows
by sqrt(T).
"""

from __future__ import annotations

import math

import torch

from policies.reinforcement.stochastic_policy import StochasticActor
from vla.model.heads.autoregressive import AutoregressiveHead
from vla.model.heads.base import ActionHead, ReparameterisedHead
from vla.model.heads.gaussian import GaussianHead


class Exploration:
    """Log standard deviations before squashing, or the temperature of a head of tokens.

    Args:
        actor: explores.
        log_std: where they start, which is the ceiling at the beginning, and the ceiling at the
            end.
        temperature: at the beginning and at the end.

    Raises:
        ValueError: the head keeps its deviation to a range that does not hold these.
    """

    def __init__(
        self,
        actor: StochasticActor,
        log_std: tuple[float, float],
        temperature: tuple[float, float],
    ):
        require_log_std(actor.head, *log_std)
        self._actor, self._log_std = actor, actor.log_std_parameters()
        self._ceilings, self._temperatures = log_std, temperature

    @torch.no_grad()
    def begin(self) -> None:
        """Set all to the start."""
        for log_std in self._log_std:
            log_std.fill_(self._ceilings[0])
        _set_temperature(self._actor, self._temperatures[0])

    @torch.no_grad()
    def limit(self, progress: float) -> None:
        """Keep all below the line from start to end; progress is 0 at the beginning, then 1."""
        start, end = self._ceilings
        for log_std in self._log_std:
            # A ceiling and not a value: where less noise pays, the gradient may lower it further.
            log_std.clamp_(max=start + progress * (end - start))
        if isinstance(self._actor.head, ReparameterisedHead):
            # Below the head's own range it has no gradient, and would never rise again.
            self._actor.head.keep_in_range()
        start, end = (math.log(temperature) for temperature in self._temperatures)
        # On the line itself, since nothing learns it; in its logarithm, as a standard deviation.
        _set_temperature(self._actor, math.exp(start + progress * (end - start)))

    def metrics(self, action_dim: int) -> dict[str, float]:
        """The temperature, or the mean deviation of the first `action_dim` numbers of the robot."""
        if isinstance(self._actor.head, AutoregressiveHead):
            return {"policy/temperature": self._actor.head.temperature}
        # The others are padding that is never executed, and would dilute the mean.
        stds = torch.cat([p.detach()[..., :action_dim].flatten() for p in self._log_std]).exp()
        return {"policy/std": float(stds.mean())}


def require_log_std(head: ActionHead, *log_std: float) -> None:
    """Refuse deviations that a head would silently replace by the end of its own range.

    Raises:
        ValueError: one is outside of the range, which is named.
    """
    if not isinstance(head, GaussianHead):
        return
    low, high = head.config.log_std_min, head.config.log_std_max
    if outside := [value for value in log_std if not low <= value <= high]:
        raise ValueError(
            f"a log standard deviation of {outside[0]} is outside of this head's range, {low} to "
            f"{high}: stay within it, or clone with gaussian:log_std_min=...,log_std_max=..."
        )


@torch.no_grad()
def match_exploration(actor: StochasticActor, other: StochasticActor) -> None:
    """Give an actor another one's log standard deviations and temperature."""
    for mine, theirs in zip(actor.log_std_parameters(), other.log_std_parameters(), strict=True):
        mine.copy_(theirs)
    if isinstance(other.head, AutoregressiveHead):
        _set_temperature(actor, other.head.temperature)


def _set_temperature(actor: StochasticActor, temperature: float) -> None:
    if isinstance(actor.head, AutoregressiveHead):
        actor.head.temperature = temperature
