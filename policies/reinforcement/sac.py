"""Soft actor-critic with an ensemble of critics, demonstrations and hindsight.

Source: Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications (arXiv:1812.05905),
equations 5 (critic), 7 (actor) and 18 (temperature). The ensemble, the minimum over a random subset
and the mean over all for the actor: Chen et al. 2021 (REDQ, arXiv:2101.05982), algorithm 1.
Departures:

- A chunk is one macro-step: its log density is the sum of those of its control steps.
- One step of Adam moves critics, actor and temperature together, from one batch: the actor follows
  the critics of before the step.
- Refining a clone, the actor's loss has a penalty on the KL to the clone, the policy regularisation
  of Wu et al. 2019 (BRAC-p, arXiv:1911.11361): without it the actor climbs the critics'
  errors at chunks that nobody played, and forgets the clone within a thousand steps.
- With `critics=1,subset=1,temperature=0` this is the plain Q-learning target of an actor-critic,
  r + gamma Q'(s', a'), with an actor that ascends Q, as in Lillicrap et al. 2016 (DDPG,
  arXiv:1509.02971) but for its random actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from policies.optimisation import require_finite
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.q_ensemble import QEnsemble
from policies.reinforcement.replay import Transitions
from vla.model.features import Features
from vla.settings import require_numbers

_REFERENCE_KL = 0.5  # of a clone
_SAMPLES = 8  # of the chunks whose value is averaged


@dataclass(frozen=True)
class SACConfig:
    """Hyperparameters for refining a clone; sources in the module's docstring.

    Attributes:
        gamma: discount a control step.
        n_step: macro-steps of rewards before a value stands for the rest.
        critics: of the ensemble.
        subset: critics drawn for each target, whose least value counts.
        hidden: width of a critic's two hidden layers.
        layer_norm: normalise a critic's hidden layers.
        batch_size: macro-steps a gradient step; half are demonstrations where there are any.
        learning_rate: of Adam for the actor.
        critic_learning_rate: of Adam for the critics.
        temperature: weight of the entropy; None learns it, 0 leaves the entropy out.
        temperature_start: where a learned one begins.
        target_entropy: nats an action dimension of a control step, to which the learned temperature
            drives the actor.
        tau: share of the critics that their slow copies take over in each gradient step.
        updates_per_step: gradient steps for each macro-step that is collected.
        capacity: the policy's own episodes that are kept.
        hindsight: share of the sampled macro-steps whose goal is replaced by one that was reached;
            only for a policy that reads the simulator's state.
        step_reward: added to every control step's reward; -1 makes of a reward of 1 at success a
            cost of 1 a step until then, for which untried actions look better than tried ones.
        log_std_start: log standard deviation, before squashing, at which exploration starts.
        reference_kl: weight of the KL to the clone, in nats a chunk; None is 0.5 for a clone, and 0
            from scratch.
    """

    gamma: float = 0.98
    n_step: int = 2
    critics: int = 5
    subset: int = 2
    hidden: int = 256
    layer_norm: bool = True
    batch_size: int = 256
    learning_rate: float = 1e-4
    critic_learning_rate: float = 3e-4
    temperature: float | None = None
    temperature_start: float = 0.01
    target_entropy: float = -0.8
    tau: float = 0.005
    updates_per_step: float = 2.0
    capacity: int = 10_000
    hindsight: float = 0.0
    step_reward: float = 0.0
    log_std_start: float = -1.7
    reference_kl: float | None = None

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("n_step", "critics", "subset", "hidden", "batch_size", "capacity"),
            above_0=("tau", "updates_per_step", "temperature_start"),
            any_sign=("target_entropy", "step_reward", "log_std_start"),
            at_most={"gamma": 1 - 1e-6, "tau": 1, "hindsight": 1, "subset": self.critics},
        )


class ReparameterisedActor(Protocol):
    """What SAC trains: features to random chunks that have a gradient."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What is trained."""
        ...

    def rsample(
        self, features: Features, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions [n, k, a] and their log density a control step [n, k], both with a gradient."""
        ...

    def keep_in_range(self) -> None:
        """Bring parameters back into ranges beyond which they have no gradient."""
        ...


class SAC:
    """Critics, their slow copies, an actor and a temperature.

    Args:
        actor: trained in place.
        critic: trained in place.
        action_numbers: of a chunk that the robot executes.
        config: hyperparameters.
        distance: KL to the clone in nats a control step [m, k], of what the actor does given
            features; None for an actor that begins from scratch.

    Raises:
        ValueError: a weight of a KL to nothing.
    """

    def __init__(
        self,
        actor: ReparameterisedActor,
        critic: QEnsemble,
        action_numbers: int,
        config: SACConfig,
        distance: Callable[[Features, torch.Generator], Tensor] | None = None,
    ):
        if config.reference_kl and distance is None:
            raise ValueError(
                f"reference_kl={config.reference_kl} is to a clone, and this actor, of noise or "
                "from scratch, begins from none: leave it out"
            )
        self.config, self._actor, self.critic = config, actor, critic
        self._distance = distance
        self._reference_kl = _REFERENCE_KL if config.reference_kl is None else config.reference_kl
        self._target_entropy = config.target_entropy * action_numbers
        self.target = deepcopy(critic)
        # The statistics of the inputs are shared, all of them; the weights follow in `_step`.
        for name, statistic in critic.named_buffers():
            setattr(self.target, name, statistic)
        self._slow, self._fast = list(self.target.parameters()), list(critic.parameters())
        start = config.temperature_start if config.temperature is None else 1.0
        self.log_temperature = torch.full((), math.log(start), device=critic.mean.device)
        self.log_temperature.requires_grad_(config.temperature is None)
        groups = [
            {"params": self._fast, "lr": config.critic_learning_rate},
            {"params": list(actor.parameters()), "lr": config.learning_rate},
            {"params": [self.log_temperature], "lr": config.learning_rate},
        ]
        self._adam = torch.optim.Adam(groups, fused=True)

    @property
    def temperature(self) -> Tensor:
        """Weight of the entropy, without a gradient."""
        if self.config.temperature is None:
            return self.log_temperature.detach().exp()
        return torch.full_like(self.log_temperature, self.config.temperature)

    def update(
        self, batches: Sequence[Transitions], generator: torch.Generator, critic_alone: bool = False
    ) -> Metrics:
        """One gradient step a batch; means of what was measured.

        Args:
            batches: from the replay buffer.
            generator: of everything random.
            critic_alone: leave actor and temperature as they are.

        Raises:
            NotFiniteError: a loss is not finite.
        """
        measured = [self._step(batch, generator, critic_alone) for batch in batches]
        # Read once for all steps: each transfer waits for the device.
        means = {name: torch.stack([m[name] for m in measured]).mean() for name in measured[0]}
        require_finite({"the loss": means["critic/loss"] + means.get("policy/loss", 0.0)})
        means["critic/grad_norm"] = _grad_norm(self._fast)  # of the last step, which stands for all
        if not critic_alone:
            means["policy/grad_norm"] = _grad_norm(self._actor.parameters())
            if self.config.temperature is None:
                means["policy/target_entropy"] = torch.tensor(self._target_entropy)
        return {name: float(mean) for name, mean in means.items()}

    def _step(
        self, batch: Transitions, generator: torch.Generator, critic_alone: bool
    ) -> dict[str, Tensor]:
        loss, metrics = self.critic_loss(batch, self.targets(batch, generator))
        if not critic_alone:
            actor_loss, more = self.actor_loss(batch, generator)
            loss, metrics = loss + actor_loss, metrics | more
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        self._adam.step()
        self._actor.keep_in_range()
        with torch.no_grad():
            for slow, fast in zip(self._slow, self._fast, strict=True):
                slow.lerp_(fast, self.config.tau)
        return metrics

    @torch.no_grad()
    def targets(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """Returns to regress on, [m]: equation 5 with the minimum over a subset of critics."""
        config = self.config
        action, log_prob = self._actor.rsample(batch.next_features, generator)
        # Drawn by the generator, on whose device numbers are, only where there is a choice.
        members = None
        if config.subset < config.critics:
            order = torch.randperm(config.critics, generator=generator, device=generator.device)
            members = order[: config.subset].tolist()
        value = self.target(batch.next_critic_obs, action, members).amin(0)  # [m]
        # log pi of the whole chunk: its control steps are independent given the features.
        soft = value - self.temperature * log_prob.sum(1)
        return batch.reward + batch.discount * soft

    @torch.no_grad()
    def entropy_bonus(self, features: Features, generator: torch.Generator) -> Tensor:
        """What the entropy of a decision adds to the values before it, [m]; one sample each."""
        _, log_prob = self._actor.rsample(features, generator)
        return -self.temperature * log_prob.sum(1)

    @torch.no_grad()
    def mean_value(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """The critics' mean value of the actor's own chunks, [m]; over a few samples."""
        drawn = [self._actor.rsample(batch.features, generator)[0] for _ in range(_SAMPLES)]
        values = [self.critic(batch.critic_obs, action).mean(0) for action in drawn]
        return torch.stack(values).mean(0)

    def critic_loss(self, batch: Transitions, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of each critic, summed over critics; mean over the batch."""
        value = self.critic(batch.critic_obs, batch.action)  # [e, m]
        loss = (value - target).square().mean(1).sum()
        return loss, {
            "critic/loss": loss.detach() / len(value),
            "critic/predicted_value": value.detach().mean(),
        }

    def actor_loss(
        self, batch: Transitions, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 7, with the mean over all critics, and equation 18 for the temperature."""
        action, log_prob = self._actor.rsample(batch.features, generator)
        log_prob = log_prob.sum(1)  # [m]
        value = self.critic(batch.critic_obs, action, frozen=True).mean(0)  # [m]
        loss = (self.temperature * log_prob - value).mean()
        if self._distance is not None and self._reference_kl:
            kl = self._distance(batch.features, generator).sum(1)  # [m]
            loss = loss + self._reference_kl * kl.mean()
        entropy = -log_prob.detach().mean()
        metrics = {
            "policy/loss": loss.detach(),
            "policy/entropy": entropy,
            "policy/temperature": self.temperature,
        }
        if self.config.temperature is None:
            # Rises while the entropy is below its target. On the logarithm, so it stays above 0.
            loss = loss + self.log_temperature * (entropy - self._target_entropy)
        return loss, metrics

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the actor's weights."""
        return {
            "critic": dict(self.critic.state_dict()),
            "target": dict(self.target.state_dict()),
            "log_temperature": self.log_temperature.detach(),
            "optimizer": self._adam.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.critic.load_state_dict(state["critic"])
        self.target.load_state_dict(state["target"])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self._adam.load_state_dict(state["optimizer"])


def _grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Of the gradients that the last step has left."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.stack([grad.norm() for grad in grads]).norm()
