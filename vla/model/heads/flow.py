"""Flow matching with an action expert; a likelihood comes with its stochastic samplers.

Source: Black et al. 2024 (pi0, arXiv:2410.24164), equation 1 and appendix B: a straight path from
noise at time 0 to the chunk at time 1, times drawn towards noise, Euler steps. Samplers with a
likelihood, after Chen et al. 2025 (pi_RL, arXiv:2510.25889): Flow-SDE (Liu et al. 2025, Flow-GRPO,
arXiv:2505.05470) turns the ordinary differential equation into a stochastic one with the same
marginals, Flow-Noise (Zhang et al. 2025, ReinFlow, arXiv:2505.22094) adds noise of a learned,
bounded size. Either way a step is a Gaussian, so the chain of steps has an exact likelihood. As in
Ren et al. 2024 (DPPO, arXiv:2409.00588, section 4.3) only the last steps need be drawn at random.
Departures: one level of noise for every dimension and step of the chunk, the drift's time is kept
above one step, and the greedy chunk starts at the mean of the noise, 0, or where a network says
(Wagenmaker et al. 2025, DSRL, arXiv:2506.15799), so that it is the same for the same inputs. Each
sample of a batch is learned at several times at once, as Li et al. 2024 do with diffusion (CogACT,
arXiv:2411.19650): the backbone, which costs most, reads it once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vla.model.heads import normal
from vla.model.heads.base import (
    HeadConfig,
    HeadDims,
    HeadInputs,
    InpaintingHead,
    Likelihood,
    LikelihoodHead,
    mean_of_steps,
    zero_missing,
)
from vla.model.heads.expert import ActionExpert, ExpertConfig
from vla.model.heads.gaussian import GaussianHead, GaussianHeadConfig
from vla.settings import require_numbers

_LATEST = 0.999  # the last time that training draws
_MOST_GUIDANCE = 5.0  # most weight of the guidance in inpainting
_TOWARDS_NOISE = 1.5  # shape of the beta distribution of times


@dataclass(frozen=True)
class FlowHeadConfig(HeadConfig):
    """Sizes and samplers.

    Attributes:
        expert: the transformer.
        steps: Euler steps from noise to chunk.
        sampler: how it samples for reinforcement: "sde" or "noise".
        random_steps: how many of the last steps are random for reinforcement, and trained by it;
            those before are Euler steps from random noise. Where there are fewer, all.
        log_std_start: log of the noise level where reinforcement does not set another one.
        steering: width of a network that chooses the noise at which the greedy chunk starts; 0 for
            none: it starts at the mean of the noise. Reinforcement in the latent noise adds one.
        steering_bound: largest magnitude of the noise that it chooses.
        loss_times: random times, each with noise of its own, at which a sample is learned.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    steps: int = 10
    sampler: Literal["sde", "noise"] = "noise"
    random_steps: int = 3
    log_std_start: float = -1.0
    steering: int = 0
    steering_bound: float = 1.5
    loss_times: int = 4

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("steps", "loss_times", "random_steps"),
            above_0=("steering_bound",),
            any_sign=("log_std_start",),
        )


@dataclass(frozen=True)
class ChainLikelihood(Likelihood):
    """Of chains of Gaussian steps; `k` steps a chain.

    Attributes:
        mean: float32 [n, k, chunk_length, action], of each step.
        log_std: float32 broadcastable to `mean`.
        sample: float32 as `mean`, where each step went.
        action_mask: as in `HeadInputs`.
    """

    mean: Tensor
    log_std: Tensor
    sample: Tensor
    action_mask: Tensor | None = None

    def log_prob(self) -> Tensor:
        """Log density of the chain given its first noise, [n, chunk_length]."""
        return self._per_step(normal.log_density(self.sample, self.mean, self.log_std))

    def entropy(self) -> Tensor:
        """Of the steps of the chain, [n, chunk_length]."""
        return self._per_step(normal.entropy(self.log_std).expand_as(self.mean))

    def kl(self, reference: ChainLikelihood) -> Tensor:
        """KL(self || reference) of the steps along these chains, [n, chunk_length]."""
        each = normal.kl(self.mean, self.log_std, reference.mean, reference.log_std)
        return self._per_step(each)

    def _per_step(self, values: Tensor) -> Tensor:
        # [n, k, chunk_length, action]: log densities of independent steps and dimensions add up.
        return zero_missing(values, self.action_mask).sum((1, 3))


def _make_steering(dims: HeadDims, hidden: int) -> GaussianHead:
    """A network whose greedy choice is 0, the mean of the noise, until it is trained."""
    head = GaussianHead(dims, GaussianHeadConfig(hidden))
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


class FlowHead(LikelihoodHead, InpaintingHead):
    """Noise to chunks; a sample is the chain's end [n, random_steps + 1, chunk_length, action].

    Args:
        dims: of inputs and chunks.
        config: sizes and samplers.
    """

    attends = True

    def __init__(self, dims: HeadDims, config: FlowHeadConfig):
        super().__init__()
        self.config = config
        self.shape = (dims.chunk_length, dims.action)
        width = config.expert.width
        self.position_embedding = nn.Parameter(torch.randn(dims.chunk_length, width) * 0.02)
        self.noisy = nn.Linear(dims.action, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.expert = ActionExpert(dims, config.expert)
        self.out = nn.Linear(width, dims.action)
        self.raw_log_std = nn.Parameter(torch.full(self.shape, config.log_std_start))
        # Only while reinforcing: how much smaller than `raw_log_std` the noise is, here and now.
        self.noise_scale_head = nn.Linear(width, dims.action) if config.sampler == "noise" else None
        if self.noise_scale_head is not None:
            # softplus(-4) = 0.02, so before training the noise is 2% below its level everywhere.
            nn.init.zeros_(self.noise_scale_head.weight)
            nn.init.constant_(self.noise_scale_head.bias, -4.0)
        self.steering = _make_steering(dims, config.steering) if config.steering else None

    def loss(self, inputs: HeadInputs, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Mean squared error of the velocity over unpadded steps, at `loss_times` random times."""
        target = actions[:, None]  # [n, 1, chunk_length, action]
        k = self.config.loss_times
        noise = torch.randn_like(target.expand(-1, k, -1, -1))
        # u ~ Beta(1.5, 1) by the inverse of its distribution function; time = s (1 - u) as in pi0.
        u = torch.rand(len(actions), k, device=actions.device).pow(1 / _TOWARDS_NOISE)
        time = _LATEST * (1 - u)
        along = time[..., None, None]
        # x_t = t actions + (1 - t) noise, so dx/dt = actions - noise, which the velocity has to
        # match.
        velocity, _ = self._velocity(inputs, along * target + (1 - along) * noise, time)
        # [n, chunk_length, action], the mean over times
        errors = (velocity - (target - noise)).square().mean(1)
        return mean_of_steps(inputs.mean(errors), is_pad)

    def act(self, inputs: HeadInputs) -> Tensor:
        """Euler steps from `start`, clipped to [-1, 1]."""
        return self.act_from(inputs, self.start(inputs))

    def act_from(self, inputs: HeadInputs, noise: Tensor) -> Tensor:
        """The chunk that this noise [n, chunk_length, action] leads to."""
        return self._flow(inputs, noise, self.config.steps).clamp(-1, 1)

    def inpaint(self, inputs: HeadInputs, target: Tensor, weight: Tensor) -> Tensor:
        """Euler steps as in `act`, pulled so that the chunk they lead to meets the target.

        Source: Black et al. 2025 (arXiv:2506.07339), equations 2 to 4.
        """
        at = self.start(inputs)
        for time in self.times(at):
            at = self.guided_step(inputs, at, time, target, weight)
        return at.clamp(-1, 1)

    def start(self, inputs: HeadInputs) -> Tensor:
        """Noise at which the greedy chunk starts, [n, chunk_length, action]; see `steering`."""
        if self.steering is not None:
            return self.config.steering_bound * self.steering.act(inputs)
        return inputs.vector.new_zeros(inputs.vector.shape[0], *self.shape)

    def times(self, like: Tensor) -> Tensor:
        """When the steps begin, float32 [steps]."""
        return torch.arange(self.config.steps, device=like.device) / self.config.steps

    def step(self, inputs: HeadInputs, at: Tensor, time: Tensor) -> Tensor:
        """The Euler step from `at` [n, chunk_length, action] at a time, a scalar."""
        velocity, _ = self._velocity(inputs, at[:, None], time.expand(1, 1))
        return at + velocity[:, 0] / self.config.steps

    def guided_step(
        self, inputs: HeadInputs, at: Tensor, time: Tensor, target: Tensor, weight: Tensor
    ) -> Tensor:
        """As `step`, pulled towards the target; see `inpaint`."""
        with torch.enable_grad():
            here = at.detach().requires_grad_()
            velocity = self._velocity(inputs, here[:, None], time.expand(1, 1))[0][:, 0]
            end = here + (1 - time) * velocity  # equation 3: the chunk it leads to
            error = inputs.zero_missing((target - end) * weight[..., None]).detach()
            # The vector-Jacobian product of equation 2.
            (guidance,) = torch.autograd.grad(end, here, error)
        # Equation 4; at time 0 the gain is infinite, so the bound holds.
        variance = (1 - time) ** 2 / (time**2 + (1 - time) ** 2)
        gain = ((1 - time) / (time * variance)).clamp(max=_MOST_GUIDANCE)
        return at + (velocity.detach() + gain * guidance) / self.config.steps

    def sample(self, inputs: HeadInputs, generator: torch.Generator | None = None) -> Tensor:
        """Chains from noise to chunks."""

        def noise() -> Tensor:
            like = inputs.vector
            return torch.randn(
                (len(inputs), *self.shape),
                generator=generator,
                device=like.device,
                dtype=like.dtype,
            )

        # Each [n, chunk_length, action]; the first is a result of Euler steps, and is given.
        chain = [self._flow(inputs, noise(), self._first)]
        for step in range(self._first, self.config.steps):
            mean, log_std = self._step(inputs, chain[-1][:, None], step)
            chain.append((mean + log_std.exp() * noise()[:, None])[:, 0])
        return torch.stack(chain, dim=1)

    def actions(self, samples: Tensor) -> Tensor:
        """Where the chains end, clipped to [-1, 1]."""
        return samples[:, -1].clamp(-1, 1)

    def likelihood(self, inputs: HeadInputs, samples: Tensor) -> ChainLikelihood:
        """Of chains, all their random steps in one pass."""
        mean, log_std = self._step(inputs, samples[:, :-1], self._first)
        return ChainLikelihood(mean, log_std, samples[:, 1:], inputs.action_mask)

    def log_std_parameters(self) -> list[nn.Parameter]:
        """The log level of the noise, [chunk_length, action]."""
        return [self.raw_log_std]

    @property
    def _first(self) -> int:
        """The first random step."""
        return max(0, self.config.steps - self.config.random_steps)

    def _flow(self, inputs: HeadInputs, at: Tensor, count: int) -> Tensor:
        """The first `count` Euler steps."""
        for time in self.times(at)[:count]:
            at = self.step(inputs, at, time)
        return at

    def _step(self, inputs: HeadInputs, at: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Mean and log std of the steps that begin at `at` [n, k, chunk_length, action]."""
        count = self.config.steps
        time = self.times(at)[first : first + at.shape[1]]
        velocity, log_std = self._velocity(inputs, at, time[None])
        if self.config.sampler == "noise":
            # The level is that of all k random steps together: independent ones of level / sqrt(k).
            return at + velocity / count, log_std - 0.5 * math.log(count - self._first)
        now = time[:, None, None]
        after_start = now.clamp_min(1 / count)
        # sigma^2 = level^2 (1 - t) / t; sigma^2 / 2 times the score of the marginal at t is:
        level = log_std.exp()
        drift = velocity + level.square() / (2 * after_start) * (now * velocity - at)
        # sigma sqrt(dt), with dt = 1 / steps
        step_log_std = log_std + 0.5 * ((1 - now) / (after_start * count)).log()
        return at + drift / count, step_log_std

    def _velocity(self, inputs: HeadInputs, at: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [n, k, chunk_length, action] and log noise level, at k chunks and times."""
        k, chunk_length = at.shape[1:3]
        # Noise in dimensions that the robot does not have must not reach those that it has.
        at = inputs.zero_missing(at)
        queries = (
            self.noisy(at)
            + self.position_embedding
            + self.time(self._time_embedding(time))[:, :, None]
        )
        # The k copies of the chunk share one pass, and do not see each other.
        copy = torch.arange(k * chunk_length, device=at.device) // chunk_length
        visible = None if k == 1 else copy[:, None] == copy[None]
        hidden = self.expert(queries.flatten(1, 2), inputs, visible).unflatten(1, (k, chunk_length))
        # [chunk_length, action], or with the learned scale [n, k, chunk_length, action].
        log_std = self.raw_log_std
        if self.noise_scale_head is not None:
            log_std = log_std - nn.functional.softplus(self.noise_scale_head(hidden))
        return self.out(hidden), log_std

    def _time_embedding(self, time: Tensor) -> Tensor:
        half = self.config.expert.width // 2
        # 1 to 1000 radians per unit of time, which runs from 0 to 1.
        rates = torch.logspace(0, 3, half, device=time.device)
        angle = time[..., None] * rates
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
