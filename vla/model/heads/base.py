"""What every action head does, and what only a head with a likelihood does.

Likelihood is a capability with a type: an algorithm that needs one takes a `LikelihoodHead`, and a
head without one is refused when the algorithm is built, not when it has run for an hour.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """What a head sees of n observations.

    Attributes:
        vector: float32 [n, vector]: summary, points, ways between them, proprioception.
        memory: float32 [n, tokens, width], the prompt's hidden states; no tokens for a head that
            does not attend to them.
        mask: bool [n, tokens], False at padding.
        real: bool [n, action], False at numbers of an action that the robot does not have; None
            where it has all.
    """

    vector: Tensor
    memory: Tensor
    mask: Tensor
    real: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vector)

    def only_real(self, values: Tensor) -> Tensor:
        """Values [n, ..., action] with 0 where the robot has no such number."""
        return only_real(values, self.real)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the robot's numbers of values [n, horizon, action]: [n, horizon]."""
        if self.real is None:
            return values.mean(-1)
        return self.only_real(values).sum(-1) / self.real.sum(-1, keepdim=True)


def only_real(values: Tensor, real: Tensor | None) -> Tensor:
    """Values [n, ..., action] with 0 where `real` [n, action] is False, if there is one."""
    if real is None:
        return values
    return values.masked_fill(~real.view(len(real), *[1] * (values.ndim - 2), -1), 0.0)


@dataclass(frozen=True)
class Sizes:
    """What a head is built for.

    Attributes:
        vector: width of `Features.vector`.
        memory: width of `Features.memory`.
        horizon: control steps a chunk.
        action: numbers a control step.
    """

    vector: int
    memory: int
    horizon: int
    action: int


@dataclass(frozen=True)
class HeadConfig:
    """Settings of a head; each head has its own kind."""

    def fitted(self, actions: Tensor) -> Self:
        """These settings, with what must be learned from normalised chunks [n, horizon, action]."""
        return self


class ActionHead(nn.Module, ABC):
    """From features to a chunk of normalised actions, [n, horizon, action] in [-1, 1].

    Numbers that the robot does not have (`Features.real`) neither teach nor count in a likelihood,
    and what is given for them is dropped by the processor.
    """

    attends: ClassVar[bool] = False
    """Whether it reads `Features.memory`; the context then carries the prompt's hidden states."""

    @abstractmethod
    def loss(self, features: Features, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Behaviour cloning loss, a scalar; steps under `is_pad` bool [n, horizon] do not count."""

    @abstractmethod
    def act(self, features: Features) -> Tensor:
        """The chunk to execute, the same one for the same features."""


class Likelihood(ABC):
    """How likely decisions were, a control step at a time: every method gives float32 [n, horizon].

    A caller may so count only the steps that were executed.
    """

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Log-probability (or its density) of the decisions."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy of what the decisions were drawn from."""

    @abstractmethod
    def kl(self, reference: Any) -> Tensor:
        """KL(self || reference), for a likelihood of this kind of the same decisions."""


class LikelihoodHead(ActionHead):
    """A head whose stochastic decisions have a likelihood.

    A decision is the tensor [n, ...] from which the likelihood is computed: the sample before
    squashing, the tokens, or the chain of denoising steps.
    """

    learning_rate: ClassVar[float] = 2e-5
    """At which reinforcement with Adam moves the policy a little, not the loss of cloning."""

    @abstractmethod
    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Decisions, drawn at random."""

    @abstractmethod
    def actions(self, decisions: Tensor) -> Tensor:
        """The chunks that they stand for."""

    @abstractmethod
    def likelihood(self, features: Features, decisions: Tensor) -> Likelihood:
        """How likely these decisions are, given features."""

    def noise_parameters(self) -> list[nn.Parameter]:
        """Log standard deviations that reinforcement sets, learns and bounds; none for tokens."""
        return []


class InpaintingHead(ActionHead):
    """A head that can complete a chunk of which a part is given.

    Attributes:
        shape: horizon and numbers a control step.
    """

    shape: tuple[int, int]

    @abstractmethod
    def inpaint(self, features: Features, wish: Tensor, weight: Tensor) -> Tensor:
        """A chunk near `wish` [n, horizon, action] where `weight` [n, horizon] is near 1."""
