"""How chunks are executed: whole, in part, blended, or joined smoothly while the next is computed.

Each executor is a `Policy` around another one, so evaluation, videos and robots use it like the
policy itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from vla_runtime.execution import read_number, require_decay, require_steps, soft_mask

from vla.contract import ObservationBatch, Policy
from vla.model.heads.base import InpaintingHead
from vla.policy import VLAPolicy

_EXECUTIONS = "chunk, receding:STEPS, ensemble[:DECAY], realtime:STEPS:DELAY"


class ChunkPolicy(Policy, Protocol):
    """A policy that says how many control steps a chunk of it has."""

    @property
    def chunk_length(self) -> int:
        """Control steps of a chunk."""
        ...


class RecedingHorizon:
    """Execute the first steps of a chunk, then decide again.

    Source: Chi et al. 2023 (Diffusion Policy, arXiv:2303.04137), section III.C.

    Args:
        policy: decides.
        steps: control steps executed a decision.

    Raises:
        ValueError: fewer than one step, or more than the chunk has.
    """

    def __init__(self, policy: ChunkPolicy, steps: int):
        require_steps("steps", steps, 1, policy.chunk_length)
        self.spec, self._policy, self._steps = policy.spec, policy, steps

    def reset(self, indices: Sequence[int]) -> None:
        """A new episode begins in these rows."""
        self._policy.reset(indices)

    def act(self, observation: ObservationBatch) -> Tensor:
        """The beginning of the chunk, [n, steps, action.dim]."""
        return self._policy.act(observation)[:, : self._steps]


class TemporalEnsemble:
    """Decide at every control step, and execute the mean of all chunks that predict it.

    Source: Zhao et al. 2023 (ACT, arXiv:2304.13705), section IV.B and algorithm 2: weights
    exp(-decay i), i = 0 for the oldest chunk.

    Args:
        policy: decides.
        decay: 0 weighs all equally; larger weighs older chunks more.

    Raises:
        ValueError: a decay that is no number, or beyond 100 in magnitude.
    """

    def __init__(self, policy: VLAPolicy, decay: float = 0.01):
        require_decay(decay)
        self.spec, self._policy, self._decay = policy.spec, policy, decay
        # Row -> its latest chunks in physical units, the oldest first, each [chunk_length, action].
        self._chunks: dict[int, list[Tensor]] = {}

    def reset(self, indices: Sequence[int]) -> None:
        """Forget the chunks of these rows."""
        self._policy.reset(indices)
        for row in indices:
            self._chunks.pop(row, None)

    def act(self, observation: ObservationBatch) -> Tensor:
        """One control step, [n, 1, action.dim]."""
        chunks = self._policy.act(observation)  # [n, chunk_length, action.dim]
        return torch.stack([self._blend(row, chunk) for row, chunk in enumerate(chunks)])[:, None]

    def _blend(self, row: int, chunk: Tensor) -> Tensor:
        # A chunk older than its own length predicts nothing about the present.
        past = [*self._chunks.get(row, []), chunk][-len(chunk) :]
        self._chunks[row] = past
        # The chunk decided `age` steps ago predicts the present at index `age`.
        ages = range(len(past) - 1, -1, -1)
        # [past, action.dim]
        predictions = torch.stack([old[age] for age, old in zip(ages, past, strict=True)])
        # The chunks are within the contract's limits, so their weighted mean is too.
        # exp(-decay * i), normalised; a softmax does not overflow where the decay is negative.
        weight = torch.softmax(-self._decay * torch.arange(len(past), device=chunk.device), 0)
        return (predictions * weight[:, None]).sum(0)


class RealTimeChunking:
    """Go on with the old chunk while the next one is computed, and join them smoothly.

    Source: Black et al. 2025 (arXiv:2506.07339), algorithm 1 and equation 5: the next chunk is
    inpainted, with the steps fixed that will have been executed by the time it is ready, and those
    that both chunks predict as a target of decreasing weight. The delay is simulated: at a decision
    the first `delay` steps come from the old chunk, the rest from the new one.

    Args:
        policy: decides; its head can inpaint.
        steps: control steps between decisions.
        delay: control steps that pass while a chunk is computed.

    Raises:
        ValueError: the head cannot inpaint, or the chunk is too short for steps and delay.
    """

    def __init__(self, policy: VLAPolicy, steps: int, delay: int):
        head = policy.actor.head
        if not isinstance(head, InpaintingHead):
            raise ValueError(
                f"real-time chunking needs a head that can inpaint, such as flow; the policy has "
                f"{type(head).__name__}"
            )
        # A step of the old chunk has to be left to join to. The delay is covered by what is left of
        # it, and ends before the next decision.
        require_steps("steps", steps, 1, policy.chunk_length - 1)
        require_steps("delay", delay, 0, min(steps, policy.chunk_length - steps))
        self.spec, self._policy = policy.spec, policy
        self._shape = (policy.chunk_length, policy.model.dims.action)
        self._steps, self._delay = steps, delay
        self._previous: dict[int, Tensor] = {}  # row -> normalised [chunk_length, action]

    def reset(self, indices: Sequence[int]) -> None:
        """Forget the chunks of these rows."""
        self._policy.reset(indices)
        for row in indices:
            self._previous.pop(row, None)

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """[n, steps, action.dim]: the end of the delay from the old chunk, then the new one."""
        features = self._policy.observe(observation)
        # Rows whose episode begins keep weight 0: their first chunk is free.
        target = torch.zeros(len(features), *self._shape, device=features.device)
        weight = torch.zeros(len(features), self._shape[0], device=features.device)
        mask = torch.from_numpy(soft_mask(self._shape[0], self._steps, self._delay))
        mask = mask.to(features.device)
        for row, old in self._previous.items():
            # `steps` control steps have passed since: the old chunk shifted, so that index 0 is
            # now.
            target[row, : -self._steps] = old[self._steps :]
            weight[row] = mask
        chunk = self._policy.actor.inpaint(features, target, weight)
        # Steps that run while the chunk is computed stay exactly as they were.
        chunk = torch.where((weight == 1)[..., None], target, chunk)
        self._previous = dict(enumerate(chunk))
        return self._policy.decode(chunk[:, : self._steps]).to(observation.proprio.device)


def make_executor(policy: VLAPolicy, execution: str) -> Policy:
    """The policy with its chunks executed in this way.

    Args:
        policy: decides.
        execution: "chunk", "receding:STEPS", "ensemble[:DECAY]" or "realtime:STEPS:DELAY".

    Raises:
        ValueError: none of these, or numbers out of range.
    """
    name, *words = execution.split(":")
    try:
        if name == "chunk" and not words:
            return policy
        if name == "receding" and len(words) == 1:
            return RecedingHorizon(policy, read_number(int, words[0]))
        if name == "ensemble" and len(words) < 2:
            return TemporalEnsemble(policy, *(read_number(float, word) for word in words))
        if name == "realtime" and len(words) == 2:
            return RealTimeChunking(policy, *(read_number(int, word) for word in words))
    except ValueError as error:
        raise ValueError(f"execution {execution!r}: {error}; valid: {_EXECUTIONS}") from error
    raise ValueError(f"execution {execution!r} is none of {_EXECUTIONS}")
