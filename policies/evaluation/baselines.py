"""Policies that learn nothing: the floor and the ceiling of every table, and blinded actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vla.contract import ObservationBatch, Policy, RobotSpec


class RandomPolicy:
    """Uniform actions within the limits.

    Every reset of a row opens a new stream, so a rollout's result does not depend on `num_envs`.
    """

    def __init__(self, spec: RobotSpec, chunk: int = 1, seed: int = 0) -> None:
        self.spec = spec
        self.chunk = chunk
        # `spawn` counts: the n-th reset gets the n-th stream, whichever row it is.
        self._seeds = np.random.SeedSequence(seed)
        self._streams: dict[int, np.random.Generator] = {}

    def reset(self, indices: Sequence[int]) -> None:
        """Open a new stream for each of these rows."""
        for row, seed in zip(indices, self._seeds.spawn(len(indices)), strict=True):
            self._streams[row] = np.random.default_rng(seed)

    def act(self, observation: ObservationBatch) -> Tensor:
        """Float32 [n, chunk, action.dim], uniform within the limits."""
        low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
        shape = (self.chunk, self.spec.action.dim)
        # [n, chunk, action.dim]; rows that were never reset play no episode and stay zero.
        actions = np.zeros((len(observation), *shape), dtype=np.float32)
        for row, stream in self._streams.items():
            actions[row] = stream.uniform(low, high, size=shape)
        return torch.from_numpy(actions).to(observation.proprio.device)


class ZeroPolicy:
    """The command zero, always: what happens when nothing is done."""

    def __init__(self, spec: RobotSpec, chunk: int = 1) -> None:
        self.spec = spec
        self.chunk = chunk

    def reset(self, indices: Sequence[int]) -> None:
        """Nothing to forget."""

    def act(self, observation: ObservationBatch) -> Tensor:
        """Zeros, float32 [n, chunk, action.dim]."""
        return observation.proprio.new_zeros(len(observation), self.chunk, self.spec.action.dim)


class ExpertPolicy:
    """The simulator's scripted expert, one control step at a time.

    Args:
        get_actions: float32 [n, action.dim] for the environments' present states; it sees
            privileged state, so this policy is a reference and can never be deployed.
        spec: the environments' contract.
    """

    def __init__(self, get_actions: Callable[[], Tensor | np.ndarray], spec: RobotSpec) -> None:
        self.spec = spec
        self._get_actions = get_actions

    def reset(self, indices: Sequence[int]) -> None:
        """Nothing to forget: the expert is a function of the present state."""

    def act(self, observation: ObservationBatch) -> Tensor:
        """The expert's actions, float32 [n, 1, action.dim]."""
        # From the simulator and not from `observation`, which holds no privileged state.
        actions = torch.as_tensor(self._get_actions(), dtype=torch.float32)
        # [n, 1, action.dim]: a feedback law has nothing to say about later steps.
        return actions.to(observation.proprio.device)[:, None]


class BlankImages:
    """A policy that is given black images: what it achieves without vision."""

    def __init__(self, policy: Policy) -> None:
        self.spec = policy.spec
        self._policy = policy

    def reset(self, indices: Sequence[int]) -> None:
        """Reset the policy itself."""
        self._policy.reset(indices)

    def act(self, observation: ObservationBatch) -> Tensor:
        """Act on black images, the true proprioception and the true instruction."""
        # Same shapes and type: what differs is only what the images show.
        black = {name: torch.zeros_like(image) for name, image in observation.images.items()}
        return self._policy.act(replace(observation, images=black))
