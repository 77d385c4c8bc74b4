"""What a learner needs of a policy: features, an actor that samples with a likelihood, a decoder.

`VLAPolicy` has all of it, and so has `StatePolicy`, which sees simulator state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from policies.checkpoints import Checkpointed
from vla.contract import ObservationBatch, Policy
from vla.model.features import Features
from vla.model.heads.base import ActionHead, Likelihood

_ROWS = 1000  # likelihoods that are computed at once without a gradient


class PolicyState(Protocol):
    """What a policy remembers, one row an environment."""

    def reset(self, rows: Sequence[int]) -> Self:
        """The memory with new episodes beginning in these rows."""
        ...


class StochasticActor(Protocol):
    """Features to samples, and how likely samples are; a sample stands for one chunk of actions."""

    # Its kind chooses the default learning rate, see `LEARNING_RATES`.
    head: ActionHead

    # As `nn.Module` declares it, so that a module fulfils the protocol.
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What is trained."""
        ...

    def eval(self) -> Any:
        """Switch dropout off: a likelihood must be the same whenever it is computed."""
        ...

    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Samples [n, ...], drawn at random."""
        ...

    def actions(self, samples: Tensor) -> Tensor:
        """The normalised chunks [n, k, action] that samples stand for."""
        ...

    def likelihood(self, features: Features, samples: Tensor) -> Likelihood:
        """How likely samples are, part by part."""
        ...

    def log_std_parameters(self) -> list[nn.Parameter]:
        """Log standard deviations of its exploration; none for a head of tokens."""
        ...

    # The next two are for off-policy methods, which refuse other heads when they are built.

    def rsample(
        self, features: Features, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Chunks with a gradient and their log density; see `ReparameterisedHead`."""
        ...

    def keep_in_range(self) -> None:
        """See `ReparameterisedHead.keep_in_range`."""
        ...


class StochasticPolicy[State: PolicyState](Policy, Checkpointed, Protocol):
    """A policy that can be trained by reinforcement; its memory is a value that is passed."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def actor(self) -> StochasticActor:
        """What is trained."""
        ...

    def initial_state(self, rows: int) -> State:
        """The memory of so many environments at the beginning of their episodes."""
        ...

    def features(self, observation: ObservationBatch, state: State) -> tuple[Features, State]:
        """What the actor sees, and the memory after that; `state` itself stays as it is."""
        ...

    def encode(self, chunk: Tensor) -> Tensor:
        """Chunks [n, k, action.dim] in the contract's units, normalised."""
        ...

    def decode(self, chunk: Tensor) -> Tensor:
        """Normalised chunks [n, k, action] in the contract's units and limits."""
        ...


@torch.no_grad()
def log_probs(
    actor: StochasticActor, features: Features, sample: Shaped[Tensor, "m ..."]
) -> Float[Tensor, "m p"]:
    """Log-probabilities of samples part by part, [m, p], without a gradient."""
    return torch.cat(
        [actor.likelihood(some, drawn).log_prob() for some, drawn in in_parts(features, sample)]
    )


@torch.no_grad()
def score(
    actor: StochasticActor,
    features: Features,
    sample: Shaped[Tensor, "m ..."],
    executed: Bool[Tensor, "m k"],
) -> tuple[Float[Tensor, "m p"], Float[Tensor, "m p"]]:
    """Log-probabilities of samples part by part, and how much of each part was executed."""
    log_prob, weight = [], []
    for (some, drawn), steps in zip(in_parts(features, sample), executed.split(_ROWS), strict=True):
        likelihood = actor.likelihood(some, drawn)
        log_prob.append(likelihood.log_prob())
        weight.append(likelihood.weight(steps))
    return torch.cat(log_prob), torch.cat(weight)


def in_parts(features: Features, sample: Tensor) -> list[tuple[Features, Tensor]]:
    """Rows in parts whose likelihoods fit into memory."""
    # A head that attends to the prompt needs gigabytes for a whole collection at once.
    every = torch.arange(len(sample), device=sample.device)
    return [(features.select(rows), sample[rows]) for rows in every.split(_ROWS)]
