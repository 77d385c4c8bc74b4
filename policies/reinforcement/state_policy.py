"""A small policy on simulator state, without images: for benchmarks, and to try out a method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.reinforcement.standardised import Standardised
from vla.checkpoint.folder import save_checkpoint
from vla.checkpoint.ledger import Ledger
from vla.contract import ObservationBatch, RobotSpec, VecEnv
from vla.model.features import Features
from vla.model.heads.base import (
    ActionHead,
    HeadConfig,
    HeadDims,
    HeadInputs,
    Likelihood,
    LikelihoodHead,
)
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.registry import (
    head_to_dict,
    make_head,
    require_likelihood,
    require_reparameterised,
)
from vla.processing.normalisation import AffineNormaliser, Limits


class StateActor(Standardised):
    """An action head that reads a state vector, standardised by statistics that a trainer sets.

    Args:
        dims: sizes of the state and of chunks.
        head: the head's settings.

    Raises:
        NoLikelihoodError: the head has no likelihood.
    """

    def __init__(self, dims: HeadDims, head: HeadConfig):
        super().__init__(dims.vector)
        self.head: ActionHead = require_likelihood(make_head(dims, head), "a state policy")

    # A property: as a second submodule its weights would be saved twice.
    @property
    def _sampler(self) -> LikelihoodHead:
        return require_likelihood(self.head, "a state policy")

    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Samples [n, ...], drawn at random."""
        return self._sampler.sample(self._inputs(features), generator)

    def actions(self, samples: Tensor) -> Tensor:
        """The chunks [n, k, action] that samples stand for, in [-1, 1]."""
        return self._sampler.actions(samples)

    def likelihood(self, features: Features, samples: Tensor) -> Likelihood:
        """How likely samples are, a control step at a time."""
        return self._sampler.likelihood(self._inputs(features), samples)

    def rsample(
        self, features: Features, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ReparameterisedHead.rsample`."""
        return require_reparameterised(self.head, "rsample").rsample(
            self._inputs(features), generator
        )

    def keep_in_range(self) -> None:
        """See `ReparameterisedHead.keep_in_range`."""
        require_reparameterised(self.head, "rsample").keep_in_range()

    def log_std_parameters(self) -> list[nn.Parameter]:
        """See `LikelihoodHead.log_std_parameters`."""
        return self._sampler.log_std_parameters()

    def act(self, features: Features) -> Tensor:
        """The greedy chunk [n, k, action] in [-1, 1]."""
        return self.head.act(self._inputs(features))

    def _inputs(self, features: Features) -> HeadInputs:
        vector = self.standardise(features.proprio)
        return HeadInputs(vector, features.prompt, features.prompt_mask)


@dataclass(frozen=True)
class NoMemory:
    """The state of a policy that remembers nothing."""

    def reset(self, rows: Sequence[int]) -> Self:
        """The same."""
        return self


class StatePolicy:
    """A policy that reads the simulator's state of one environment.

    Args:
        env: whose state it reads, and whose contract it follows.
        chunk_length: control steps a chunk.
        head: the head's settings.
    """

    def __init__(self, env: VecEnv, chunk_length: int, head: HeadConfig | None = None):
        self.spec: RobotSpec = env.spec
        self.ledger = Ledger()
        self._env, self._head = env, head or GaussianHeadConfig()
        # State in the place of proprioception, and no hidden states of a prompt.
        self._dims = HeadDims(len(env.privileged_names), 0, chunk_length, self.spec.action.dim)
        self.actor = StateActor(self._dims, self._head)
        # By the contract's limits alone: there are no demonstrations to measure statistics on.
        self._normaliser = AffineNormaliser("action", self.spec.action, None, "limits")
        self._limits = Limits("action", self.spec.action)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.actor.parameters()).device

    def initial_state(self, rows: int) -> NoMemory:
        """Nothing is remembered."""
        return NoMemory()

    def features(self, observation: ObservationBatch, state: NoMemory) -> tuple[Features, NoMemory]:
        """The simulator's present state, in the place of the observation."""
        # Also at an end: environments do not reset themselves, so it is the final state.
        return self.read(self._env.observe()[1]), state

    def read(self, privileged: Tensor) -> Features:
        """Features of simulator states [n, privileged], such as recorded ones."""
        return Features.of_vector(privileged.to(self.device), self.spec.action.dim)

    def encode(self, chunk: Tensor) -> Tensor:
        """Chunks in the contract's units, normalised."""
        return self._normaliser.encode(chunk)

    def decode(self, chunk: Tensor) -> Tensor:
        """Normalised chunks in the contract's units and limits."""
        return self._limits.enforce(self._normaliser.decode(chunk))

    def reset(self, indices: Sequence[int]) -> None:
        """Nothing is remembered."""

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """The greedy chunk, float32 [n, k, action.dim]."""
        # The observation only gives the device: the state is the environment's present one.
        features, _ = self.features(observation, NoMemory())
        return self.decode(self.actor.act(features)).to(observation.proprio.device)

    def describe(self) -> dict[str, Any]:
        """Sizes, head and contract."""
        return {
            # Compared when a run resumes, see `Checkpoints`.
            "dims": vars(self._dims),
            "head": head_to_dict(self._head),
            "contract": self.spec.to_dict(),
        }

    def save(
        self,
        folder: Path,
        training_state: dict[str, Any] | None = None,
        command: str | None = None,
    ) -> Path:
        """Write a checkpoint, which only `load_weights` reads."""
        return save_checkpoint(
            folder,
            model_config=self.describe(),
            weights=self.actor.state_dict(),
            # Nothing is normalised by statistics, so the contract is all that conversion needs.
            processor=_Contract(self.spec),
            training_state=training_state,
            ledger=self.ledger.amounts,
        )

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a checkpoint of a policy of the same sizes."""
        self.actor.load_state_dict(load_file(folder / "model.safetensors"))


@dataclass(frozen=True)
class _Contract:
    """What stands in a checkpoint for a processor: the contract alone."""

    spec: RobotSpec

    def save(self, folder: Path) -> None:
        (folder / "contract.json").write_text(json.dumps(self.spec.to_dict()), encoding="utf-8")
