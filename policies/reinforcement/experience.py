"""What was collected, and the batches that a policy learns from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from vla.model.features import Features


@dataclass(frozen=True)
class Experience:
    """`t` macro-steps of `n` environments; a macro-step is a chunk of `k` control steps.

    An environment plays one episode after another, and idles once there are no more: `ended` marks
    where the next row is another episode, `active` where there is one. A chunk was drawn in `p`
    parts, see `Likelihood`.

    Attributes:
        features: of t * n observations, environment by environment within each macro-step.
        critic_obs: what a critic sees, float32 [t, n, d].
        next_critic_obs: the same after the macro-step, before any reset: at an end the final one.
        sample: what the actor drew, [t, n, ...].
        log_prob: of each part when it was drawn, float32 [t, n, p].
        weight: how much of each part was executed, float32 [t, n, p].
        rewards: float32 [t, n, k], zero where not executed.
        valid: bool [t, n, k], the control steps that were executed, a prefix.
        terminated: bool [t, n], the episode ended inside the task: the value after it is 0.
        ended: bool [t, n], it terminated, or reached the time limit.
        episode: int64 [t, n], the number of the episode that was being played; -1 where none was.
        group: int64 [episodes], equal for episodes that began in the same state, from 0.
        outcome: float32 [episodes], the verdict on a whole episode: 1 if it succeeded at its end,
            else 0; with a reward model the sum of its rewards.
    """

    features: Features
    critic_obs: Float[Tensor, "t n d"]
    next_critic_obs: Float[Tensor, "t n d"]
    sample: Shaped[Tensor, "t n ..."]
    log_prob: Float[Tensor, "t n p"]
    weight: Float[Tensor, "t n p"]
    rewards: Float[Tensor, "t n k"]
    valid: Bool[Tensor, "t n k"]
    terminated: Bool[Tensor, "t n"]
    ended: Bool[Tensor, "t n"]
    episode: Int64[Tensor, "t n"]
    group: Int64[Tensor, " episodes"]
    outcome: Float[Tensor, " episodes"]

    @property
    def active(self) -> Bool[Tensor, "t n"]:
        """Where an episode was being played."""
        return self.episode >= 0

    def batch(self, advantage: Float[Tensor, "t n"]) -> Batch:
        """The macro-steps of episodes, with their advantages [t, n]."""
        # Idle environments were stepped along with the others; nothing is learned from them.
        active = self.active
        return Batch(
            features=self.features.select(active.flatten().nonzero()[:, 0]),
            sample=self.sample[active],
            log_prob=self.log_prob[active],
            weight=self.weight[active],
            valid=self.valid[active],
            advantage=advantage[active],
        )


@dataclass(frozen=True)
class Batch:
    """`m` macro-steps to learn from, in any order.

    Attributes:
        features: what the actor saw.
        sample: what it drew, [m, ...].
        log_prob: of each part when it was drawn, float32 [m, p].
        weight: how much of each part was executed, float32 [m, p].
        valid: bool [m, k], the control steps that were executed.
        advantage: float32 [m].
    """

    features: Features
    sample: Shaped[Tensor, "m ..."]
    log_prob: Float[Tensor, "m p"]
    weight: Float[Tensor, "m p"]
    valid: Bool[Tensor, "m k"]
    advantage: Float[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.advantage)

    def select(self, rows: Tensor) -> Batch:
        """These macro-steps."""
        return Batch(
            self.features.select(rows),
            self.sample[rows],
            self.log_prob[rows],
            self.weight[rows],
            self.valid[rows],
            self.advantage[rows],
        )

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """All macro-steps once, in a random order, in parts of equal size; see `shuffled`."""
        for rows in shuffled(len(self), size, generator):
            yield self.select(rows)

    def parts(self, size: int) -> list[Batch]:
        """All macro-steps in their order, in parts of this size."""
        every = torch.arange(len(self), device=self.advantage.device)
        return [self.select(rows) for rows in every.split(size)]

    def standardised(self) -> Batch:
        """With advantages of mean 0 and standard deviation 1; a single one becomes 0."""
        # Over the collection, not a minibatch: the sign of an advantage then means the same in all.
        advantage = self.advantage - self.advantage.mean()
        return replace(self, advantage=advantage / (sample_std(self.advantage) + 1e-8))

    def mean(self, values: Shaped[Tensor, "m p"]) -> Float[Tensor, ""]:
        """Mean over the executed control steps of what parts [m, p] add up to, a scalar."""
        # Steps after an episode's end weigh nothing; each executed step weighs the same.
        return (values * self.weight).sum() / self.valid.sum().clamp_min(1)

    def fraction(self, marked: Bool[Tensor, "m p"]) -> Float[Tensor, ""]:
        """How many of the executed parts are marked, 0 to 1."""
        return (marked * self.weight).sum() / self.weight.sum()


def shuffled(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Positions 0 to count - 1 in a random order, in parts that differ by one at most.

    A last part of the few that are left over would be a gradient step as large as the others on
    nearly nothing, so there are as many parts as bring their size nearest to `size`.
    """
    # A CUDA generator can only draw on its own device.
    order = torch.randperm(count, generator=generator, device=generator.device)
    # Equal parts also keep the noise of every gradient step the same.
    return order.tensor_split(max(1, round(count / size)))


def sample_std(values: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Standard deviation of values [m]; 0 of a single one, where torch has NaN."""
    return values.std() if len(values) > 1 else values.new_zeros(())
