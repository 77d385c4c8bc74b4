"""Diffusion steering: soft actor-critic in the latent noise of a frozen flow policy.

Source: Wagenmaker et al. 2025 (DSRL, arXiv:2506.15799), section 4.1: the noise from which the flow
starts is the action, and the flow is a part of the environment. Departures: the paper's variant
with a second critic on actions (section 4.2) is left out, and the noise is squashed to a range
around 0, where the flow's greedy chunk starts, so that training begins at the cloned policy.

The network that chooses the noise is a part of the flow head, `FlowHeadConfig.steering`: the
refined checkpoint is one like any other, and its greedy chunk starts where the network says.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from policies.reinforcement.exploration import require_log_std
from policies.reinforcement.sac import SACConfig
from policies.reinforcement.stochastic_policy import StochasticPolicy
from vla.model.features import Features
from vla.model.heads.flow import FlowHead
from vla.policy import VLAPolicy
from vla.settings import require_numbers


class NotSteerableError(TypeError):
    """The policy starts from no noise that could be chosen."""


@dataclass(frozen=True)
class DSRLConfig(SACConfig):
    """Hyperparameters, beside those of `SACConfig`, some of which have other defaults here.

    The noise begins at the cloned policy whatever the network chooses first, so it may explore.

    Attributes:
        steering: width of the network that chooses the noise.
        noise_bound: largest magnitude of the noise; the flow was trained on a standard deviation
            of 1.
    """

    n_step: int = 1
    critics: int = 2
    learning_rate: float = 3e-4
    temperature_start: float = 0.1
    target_entropy: float = -1.0
    updates_per_step: float = 1.0
    log_std_start: float = -1.0
    steering: int = 256
    noise_bound: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(
            self,
            at_least_1=("steering",),
            above_0=("noise_bound",),
            any_sign=("target_entropy", "step_reward", "log_std_start"),
        )


class LatentNoise:
    """The actor's actions are noise, in units of its bound, that a frozen flow makes chunks of.

    Args:
        policy: gets a network that chooses the noise, unless it has one of these settings.
        method: its width, and the bound.

    Raises:
        NotSteerableError: the policy has no flow head.
        ValueError: the deviation at the start is outside of the network's range.
    """

    def __init__(self, policy: StochasticPolicy[Any], method: DSRLConfig):
        head = policy.actor.head
        if not isinstance(policy, VLAPolicy) or not isinstance(head, FlowHead):
            raise NotSteerableError(
                f"dsrl chooses the noise from which a flow starts, which {type(head).__name__} "
                "does not have; clone with the head flow, or refine with sac, ppo or another"
            )
        steered = replace(head.config, steering=method.steering, steering_bound=method.noise_bound)
        if steered != head.config:
            policy.model.extend_head(steered)
        self._actor = policy.actor.eval()
        head = policy.actor.head
        assert isinstance(head, FlowHead)
        assert head.steering is not None
        self._head, self._steering = head, head.steering
        require_log_std(head.steering, method.log_std_start)
        with torch.no_grad():
            self._steering.raw_log_std.fill_(method.log_std_start)
        self._start = deepcopy(self._steering)

    @property
    def actor(self) -> LatentNoise:
        """Itself: the network that chooses the noise."""
        return self

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the network: all else stays as it was cloned."""
        return self._steering.parameters(recurse)

    def rsample(
        self, features: Features, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise over its bound, [n, chunk_length, action], and its log density."""
        with torch.no_grad():
            inputs = self._actor.head_inputs(features)
        return self._steering.rsample(inputs, generator)

    def keep_in_range(self) -> None:
        """See `ReparameterisedHead.keep_in_range`."""
        self._steering.keep_in_range()

    @torch.no_grad()
    def chunk(self, features: Features, action: Tensor) -> Tensor:
        """The chunks that the flow makes of the noise, normalised."""
        inputs = self._actor.head_inputs(features)
        noise = self._head.config.steering_bound * action
        return self._head.act_from(inputs, noise) * self._actor.action_bound

    def distance(self, features: Features, generator: torch.Generator) -> Tensor:
        """See `ActionSpace.distance`; of the noise that is chosen."""
        with torch.no_grad():
            inputs = self._actor.head_inputs(features)
        # A Gaussian's KL is exact: it needs no sample.
        anywhere = inputs.vector.new_zeros(len(inputs), *self._steering.shape)
        now, then = (h.likelihood(inputs, anywhere) for h in (self._steering, self._start))
        return now.kl(then)
