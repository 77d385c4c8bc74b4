"""Trust region policy optimisation: one natural gradient step a collection, as long as is safe.

Source: Schulman et al. 2015 (arXiv:1502.05477), equation 14 and appendix C, with the generalised
advantages of Schulman et al. 2016 (arXiv:1506.02438), equation 16. Departures:

- A chunk is one macro-step with one advantage; the ratio is that of an executed control step,
  or of a token; the KL is that of a control step.
- Advantages are standardised over what was collected.
- The curvature is damped, which the paper's published code does too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from policies.optimisation import require_finite
from policies.reinforcement.advantages import gae
from policies.reinforcement.experience import Batch, Experience
from policies.reinforcement.policy_update import Metrics
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor
from vla.model.heads.base import Likelihood
from vla.settings import require_numbers

_ROWS = 1000  # macro-steps whose gradient is computed at once
_SHRINK = 0.8  # of a step that was too long; halves would leave three quarters of the KL unused


@dataclass(frozen=True)
class TRPOConfig:
    """Hyperparameters; sources in the module's docstring.

    Attributes:
        gamma: discount a control step.
        gae_lambda: of the generalised advantages, a macro-step.
        max_kl: how far one step may move the policy, in nats a control step.
        cg_iterations: of the conjugate gradient.
        fisher_rows: macro-steps, drawn at random, on which the curvature is estimated.
        damping: added to the curvature in every direction.
        backtracks: how many lengths of the step are tried, each 0.8 of the one before.
    """

    gamma: float = 0.98
    gae_lambda: float = 0.95
    max_kl: float = 0.05
    cg_iterations: int = 10
    fisher_rows: int = 500
    damping: float = 0.1
    backtracks: int = 10

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("cg_iterations", "fisher_rows", "backtracks"),
            above_0=("max_kl",),
            at_most={"gamma": 1 - 1e-6, "gae_lambda": 1},
        )


class TRPO:
    """The surrogate objective within a trust region of the KL.

    Args:
        actor: trained in place.
        config: hyperparameters.
    """

    needs_critic: ClassVar[bool] = True
    group_size = 1

    def __init__(self, actor: StochasticActor, config: TRPOConfig):
        self.config, self._actor = config, actor
        self._parameters = list(actor.parameters())

    def advantages(self, experience: Experience, values: Tensor, next_values: Tensor) -> Tensor:
        """Generalised advantages, float32 [t, n]."""
        return gae(experience, values, next_values, self.config.gamma, self.config.gae_lambda)

    # The fused kernels of attention have no second derivative.
    @sdpa_kernel(SDPBackend.MATH)
    def update(self, batch: Batch, reference: Reference, generator: torch.Generator) -> Metrics:
        """One step, where the surrogate rises and the KL stays below `max_kl`; else none.

        Raises:
            NotFiniteError: the gradient or the step is not finite; the weights are as before.
        """
        config, batch = self.config, batch.standardised()
        gradient = self.gradient(batch)
        order = torch.randperm(len(batch), generator=generator, device=generator.device)
        fisher = self.fisher_product(batch.select(order[: config.fisher_rows]))
        direction = conjugate_gradient(fisher, gradient, config.cg_iterations)
        # To second order a step x moves the policy by x . F x / 2 nats: the longest one allowed.
        curvature = (direction @ fisher(direction)).clamp_min(torch.finfo(torch.float32).tiny)
        step = (2 * config.max_kl / curvature).sqrt() * direction
        require_finite({"the gradient": gradient, "the natural step": step})
        return {"policy/grad_norm": float(gradient.norm())} | self._line_search(batch, step)

    def gradient(self, batch: Batch) -> Float[Tensor, " weights"]:
        """Of the surrogate (equation 14), all weights one after another."""

        def of_part(part: Batch) -> Tensor:
            gain = _gain(self._likelihood(part), part)
            return _flat(torch.autograd.grad(gain, self._parameters, materialize_grads=True))

        parts = [of_part(part) * _steps(part) for part in batch.parts(_ROWS)]
        return torch.stack(parts).sum(0) / _steps(batch)

    def fisher_product(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The damped Fisher information of the policy as it is, times a vector [weights].

        It is the Hessian of the KL from the policy to itself (appendix C.1), never written out.
        """
        likelihood, weights = self._likelihood(batch), self._parameters
        kl = batch.mean(likelihood.detach().kl(likelihood))
        slope = _flat(torch.autograd.grad(kl, weights, create_graph=True, materialize_grads=True))

        def product(vector: Tensor) -> Tensor:
            curved = torch.autograd.grad(
                slope @ vector, weights, retain_graph=True, materialize_grads=True
            )
            return _flat(curved) + self.config.damping * vector

        return product

    @torch.no_grad()
    def _line_search(self, batch: Batch, step: Tensor) -> Metrics:
        """Take the step, or the longest part of it that is good; see `update`."""
        old = [self._likelihood(part).detach() for part in batch.parts(_ROWS)]
        start, share = _flat(self._parameters), 1.0
        for _ in range(self.config.backtracks):
            self._set_weights(start + share * step)
            gain, kl, entropy = self._measure(batch, old)
            if gain > 0 and kl <= self.config.max_kl:
                break
            share *= _SHRINK
        else:
            self._set_weights(start)
            share = 0.0
            gain, kl, entropy = self._measure(batch, old)
        return {
            "policy/loss": -gain,
            "policy/kl": kl,
            "policy/entropy": entropy,
            "policy/step_share": share,
            "policy/gradient_steps": float(share > 0),
        }

    def _measure(self, batch: Batch, old: list[Likelihood]) -> tuple[float, float, float]:
        """Surrogate and KL(old || now), both in exact terms, and entropy."""
        sums = torch.zeros(3, device=batch.advantage.device)
        for part, before in zip(batch.parts(_ROWS), old, strict=True):
            now = self._likelihood(part)
            values = (_gain(now, part), part.mean(before.kl(now)), part.mean(now.entropy()))
            sums += torch.stack(values) * _steps(part)
        gain, kl, entropy = (sums / _steps(batch)).tolist()
        return gain, kl, entropy

    def _likelihood(self, batch: Batch) -> Likelihood:
        return self._actor.likelihood(batch.features, batch.sample)

    def _set_weights(self, weights: Tensor) -> None:
        for parameter, part in zip(
            self._parameters, weights.split([p.numel() for p in self._parameters]), strict=True
        ):
            parameter.copy_(part.view_as(parameter))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step depends on the weights and on what was collected alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Float[Tensor, " n"], iterations: int
) -> Float[Tensor, " n"]:
    """An x for which the product of a positive definite matrix with x is nearly the target.

    Source: Hestenes and Stiefel 1952, Methods of conjugate gradients for solving linear systems.

    Args:
        product: the matrix times a vector [n].
        target: what it shall be.
        iterations: n at most, if nothing is rounded.
    """
    solution, residual = torch.zeros_like(target), target
    direction, square = residual, residual @ residual
    # Beyond, rounding errors alone would be amplified; a target of 0 has the solution 0.
    enough = 1e-10 * square
    for _ in range(iterations):
        if square <= enough:
            break
        image = product(direction)
        length = square / (direction @ image)
        solution = solution + length * direction
        residual = residual - length * image
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return solution


def _gain(likelihood: Likelihood, batch: Batch) -> Tensor:
    """The surrogate of equation 14, less that of the policy that collected; a scalar."""
    ratio = (likelihood.log_prob() - batch.log_prob).exp()  # [m, p]
    return batch.mean((ratio - 1) * batch.advantage[:, None])


def _steps(batch: Batch) -> Tensor:
    return batch.valid.sum()


def _flat(tensors: Iterable[Tensor]) -> Float[Tensor, " n"]:
    return torch.cat([tensor.flatten() for tensor in tensors])
