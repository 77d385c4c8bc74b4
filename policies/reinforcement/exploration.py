"""How much a policy explores: learned, below a ceiling that falls during the run."""

from __future__ import annotations

import torch

from policies.reinforcement.stochastic_policy import StochasticActor


class Exploration:
    """Log standard deviations before squashing; nothing for a head of tokens.

    Args:
        actor: explores.
        log_std_start: where they start, and the ceiling at the beginning.
        log_std_end: the ceiling at the end.
    """

    def __init__(self, actor: StochasticActor, log_std_start: float, log_std_end: float):
        self._log_std = actor.log_std_parameters()
        self._start, self._end = log_std_start, log_std_end

    @torch.no_grad()
    def begin(self) -> None:
        """Set all to the start."""
        for log_std in self._log_std:
            log_std.fill_(self._start)

    @torch.no_grad()
    def limit(self, progress: float) -> None:
        """Keep all below the line from start to end; progress is 0 at the beginning, then 1."""
        for log_std in self._log_std:
            # A ceiling and not a value: where less noise pays, the gradient may lower it further.
            log_std.clamp_(max=self._start + progress * (self._end - self._start))

    def metrics(self, action_dim: int) -> dict[str, float]:
        """The mean standard deviation of the first `action_dim` numbers, which the robot has."""
        if not self._log_std:
            return {}
        # The others are padding that is never executed, and would dilute the mean.
        stds = torch.cat([p.detach()[..., :action_dim].flatten() for p in self._log_std]).exp()
        return {"policy/std": float(stds.mean())}
