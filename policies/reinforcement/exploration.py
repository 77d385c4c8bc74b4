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


class Exploration:
    """Log standard deviations before squashing, or the temperature of a head of tokens.

    Args:
        actor: explores.
        log_std: where they start, which is the ceiling at the beginning, and the ceiling at the
            end.
        temperature: at the beginning and at the end.
    """

    def __init__(
        self,
        actor: StochasticActor,
        log_std: tuple[float, float],
        temperature: tuple[float, float],
    ):
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
