"""State-value critics: on privileged simulator state, or on what the actor sees."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.optimisation import optimizer_step
from policies.reinforcement.experience import sample_std, shuffled
from policies.reinforcement.standardised import Standardised


class Critic(Standardised):
    """An MLP from a vector to a state value; it standardises its input by statistics that it keeps.

    Asymmetric actor-critic (Pinto et al. 2017, arXiv:1710.06542) when the vector is privileged
    state; an image critic when it is the actor's features, detached from the backbone.

    Args:
        inputs: numbers in the vector.
        hidden: width of the two hidden layers.
    """

    def __init__(self, inputs: int, hidden: int = 256):
        super().__init__(inputs)
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )

    def forward(self, critic_obs: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows"]:
        """Values [...] of vectors [..., inputs]."""
        return self.layers(self.standardise(critic_obs)).squeeze(-1)


class CriticLearner:
    """Regression of a critic on returns.

    Args:
        critic: trained in place.
        learning_rate: of Adam.
        minibatch_size: macro-steps a gradient step.
        max_grad_norm: gradients are clipped to this norm.
    """

    def __init__(
        self, critic: Critic, learning_rate: float, minibatch_size: int, max_grad_norm: float
    ):
        self.critic = critic
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=learning_rate, fused=True)
        self._minibatch_size, self._max_grad_norm = minibatch_size, max_grad_norm

    def fit(
        self,
        critic_obs: Float[Tensor, "m inputs"],
        returns: Float[Tensor, " m"],
        epochs: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Epochs over vectors [m, inputs] and their returns [m]; means of loss and gradient norm.

        Raises:
            NotFiniteError: the loss or a gradient is not finite.
        """
        losses, norms = [], []
        # Returns stay as they were estimated: they are not refreshed within a collection.
        for _ in range(epochs):
            for rows in shuffled(len(returns), self._minibatch_size, generator):
                # Plain squared error: a value clip as in some PPO code is not used.
                loss = (self.critic(critic_obs[rows]) - returns[rows]).square().mean()
                norms.append(optimizer_step(self.optimizer, loss, self._max_grad_norm))
                losses.append(float(loss.detach()))
        return {
            "critic/loss": sum(losses) / len(losses),
            "critic/grad_norm": sum(norms) / len(norms),
            "critic/grad_clipped": sum(n > self._max_grad_norm for n in norms) / len(norms),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, input statistics and the optimizer's state."""
        return {
            "critic": dict(self.critic.state_dict()),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])


def describe_fit(values: Float[Tensor, " m"], returns: Float[Tensor, " m"]) -> dict[str, float]:
    """How well values [m] predicted returns [m]."""
    # 1 is perfect, 0 is as good as a constant, below 0 is worse than one.
    variance = sample_std(returns).square().clamp_min(1e-8)
    return {
        "critic/predicted_value": float(values.mean()),
        "critic/actual_return": float(returns.mean()),
        "critic/explained_variance": float(1 - sample_std(returns - values).square() / variance),
    }
