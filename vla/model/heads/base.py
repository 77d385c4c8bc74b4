"""What every action head does, and what only a head with a likelihood does.

Likelihood is a capability with a type: an algorithm that needs one takes a `LikelihoodHead`, and a
head without one is refused when the algorithm is built, not when it has run for an hour.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadInputs:
    """What a head reads of n observations.

    Attributes:
        vector: float32 [n, vector]: projected readout, points, relative positions, proprioception.
        prompt: [n, tokens, width], the prompt's hidden states in the backbone's precision; no
            tokens for a head that does not attend to them.
        prompt_mask: bool [n, tokens], False at padding.
        action_mask: bool [n, action], False at action dimensions that the robot does not have;
            None where it has all.
    """

    vector: Float32[Tensor, "n vector"]
    prompt: Float[Tensor, "n tokens width"]
    prompt_mask: Bool[Tensor, "n tokens"]
    action_mask: Bool[Tensor, "n action"] | None = None

    def __len__(self) -> int:
        return len(self.vector)

    def zero_missing(self, values: Tensor) -> Tensor:
        """Values [n, ..., action] with 0 at dimensions that the robot does not have."""
        return zero_missing(values, self.action_mask)

    def mean(self, values: Float[Tensor, "n chunk action"]) -> Float[Tensor, "n chunk"]:
        """Mean over the robot's dimensions of [n, chunk_length, action]: [n, chunk_length]."""
        if self.action_mask is None:
            return values.mean(-1)  # [n, chunk]
        # Over its own dimensions: by the padded width a robot with few joints would weigh less.
        return self.zero_missing(values).sum(-1) / self.action_mask.sum(-1, keepdim=True)


def zero_missing(values: Tensor, action_mask: Tensor | None) -> Tensor:
    """Values [n, ..., action] with 0 where `action_mask` [n, action] is False, if there is one."""
    if action_mask is None:
        return values
    # [n, 1, ..., 1, action], so that it broadcasts over whatever lies between. Filled and not
    # multiplied, since 0 times inf or NaN is NaN.
    between = [1] * (values.ndim - 2)
    return values.masked_fill(~action_mask.view(action_mask.shape[0], *between, -1), 0.0)


def mean_of_steps(
    per_step: Float[Tensor, "n chunk"], is_pad: Bool[Tensor, "n chunk"]
) -> Float[Tensor, ""]:
    """Mean of [n, chunk_length] over steps that are not padding; 0, not NaN, where all are."""
    kept = (~is_pad).float()
    return (per_step * kept).sum() / kept.sum().clamp_min(1.0)


@dataclass(frozen=True)
class HeadDims:
    """What a head is built for.

    Attributes:
        vector: width of `HeadInputs.vector`.
        prompt: width of `HeadInputs.prompt`.
        chunk_length: control steps a chunk.
        action: dimensions of a control step.
    """

    vector: int
    prompt: int
    chunk_length: int
    action: int


@dataclass(frozen=True)
class HeadConfig:
    """Settings of a head; each head has its own kind."""

    def fitted(self, actions: Tensor) -> Self:
        """These settings, with what is fitted to chunks [n, chunk_length, action] in [-1, 1]."""
        return self


class ActionHead(nn.Module, ABC):
    """From inputs to a chunk of actions [n, chunk_length, action] in [-1, 1]; see `Actor`.

    Dimensions that the robot does not have (`HeadInputs.action_mask`) add nothing to a loss or a
    likelihood, and what a head gives for them is dropped by the processor.
    """

    attends: ClassVar[bool] = False
    """Whether it reads `HeadInputs.prompt`; `Features` then hold the prompt's hidden states."""

    @abstractmethod
    def loss(self, inputs: HeadInputs, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Cloning loss, a scalar; steps in `is_pad` bool [n, chunk_length] do not count."""

    @abstractmethod
    def act(self, inputs: HeadInputs) -> Tensor:
        """The chunk to execute, the same one for the same inputs."""


@dataclass(frozen=True)
class Likelihood(ABC):
    """How likely samples were, part by part: a part is a token, or else a control step.

    What is computed of a part is float32 [n, parts]; times `weight`, and summed, it is that of the
    executed control steps alone.
    """

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Log-probability (or its density) of the samples, [n, parts]."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy of what the samples were drawn from, [n, parts]."""

    @abstractmethod
    def kl(self, reference: Any) -> Tensor:
        """KL(self || reference), for a likelihood of this kind of the same samples, [n, parts]."""

    def weight(self, executed: Bool[Tensor, "n chunk"]) -> Float[Tensor, "n parts"]:
        """How much of each part belongs to the executed control steps bool [n, chunk_length]."""
        return executed.float()

    def detach(self) -> Self:
        """The same as constants: without a gradient, and unmoved when the weights change."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # Copies: a tensor may be a view of a parameter, which an optimizer changes in place.
        constants = {k: v.detach().clone() for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **constants)


class LikelihoodHead(ActionHead):
    """A head that can sample, and tell how likely a sample was.

    A sample is the tensor [n, ...] from which the likelihood is computed: the Gaussian's value
    before squashing, the tokens, or the chain of denoising steps.
    """

    @abstractmethod
    def sample(self, inputs: HeadInputs, generator: torch.Generator | None = None) -> Tensor:
        """Samples [n, ...], drawn at random."""

    @abstractmethod
    def actions(self, samples: Tensor) -> Tensor:
        """The chunks that they stand for."""

    @abstractmethod
    def likelihood(self, inputs: HeadInputs, samples: Tensor) -> Likelihood:
        """How likely these samples are, given the inputs; as they were drawn."""

    # Kept apart from the other parameters, since exploration is scheduled and not only learned.
    def log_std_parameters(self) -> list[nn.Parameter]:
        """Log standard deviations that reinforcement sets, learns and bounds; none for tokens."""
        return []


class ReparameterisedHead(ActionHead):
    """A head whose random actions are a differentiable function of its parameters and of noise."""

    @abstractmethod
    def rsample(
        self, inputs: HeadInputs, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Random chunks [n, chunk_length, action], and their log density a control step [n, k].

        A gradient flows through both.
        """

    @abstractmethod
    def keep_in_range(self) -> None:
        """Bring parameters back into ranges beyond which they have no gradient."""


class InpaintingHead(ActionHead):
    """A head that can complete a chunk of which a part is given.

    Attributes:
        shape: control steps a chunk, and dimensions of a control step.
    """

    shape: tuple[int, int]

    @abstractmethod
    def inpaint(self, inputs: HeadInputs, target: Tensor, weight: Tensor) -> Tensor:
        """A chunk near `target` [n, chunk_length, action] where `weight` [n, chunk_length] is 1."""
