"""How chunks are executed on a robot while the next one is computed, in numpy.

Time is counted in executed control steps: a chunk that comes late skips as many of its first steps
as were executed since its observation. Steps in which the robot waited do not count: a robot that
stood still is where the chunk begins. `vla.execution` has the same in simulated time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_MOST_DECAY = 100.0
"""Of either sign: beyond that one chunk has all the weight."""
_EXECUTIONS = "chunk, receding:STEPS, ensemble[:DECAY], realtime:STEPS"
_REMEMBERED_DELAYS = 10


@dataclass(frozen=True)
class ChunkTiming:
    """What a plan has to know of the policy and the loop.

    Attributes:
        chunk_length: steps a chunk.
        period_s: of the control loop.
        grace_s: how far the end of a chunk may be delayed before it expires.
    """

    chunk_length: int
    period_s: float
    grace_s: float

    def expiry(self, steps: int, now_s: float) -> float:
        """When a chunk expires of which the last `steps` are executed from now on."""
        # A chunk that the robot waited for is executed from when it comes, not from its
        # observation. A missed period, or a measurement that fails, delays the steps after it.
        return now_s + steps * self.period_s + self.grace_s


@dataclass(frozen=True)
class Inpainting:
    """What the next chunk should join to.

    Attributes:
        target: float32 [chunk_length, action.dim], the old chunk from now on, in the contract's
            units; 0 where it ends.
        weight: float32 [chunk_length], 1 for steps that are executed in any case, falling to 0.
    """

    target: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class PlannedStep:
    """One control step's command.

    Attributes:
        command: float32 [action.dim].
        expires_s: when the chunk that it belongs to should have been executed to its end.
    """

    command: np.ndarray
    expires_s: float


@dataclass(frozen=True)
class _Chunk:
    """A chunk on the axis of executed steps: row 0 belongs to step `begin`."""

    actions: np.ndarray
    begin: int
    expires_s: float


class ChunkPlan(Protocol):
    """What is to be executed next, from the chunks that have come.

    Attributes:
        skipped: steps of late chunks that were not executed, in all.
    """

    skipped: int

    def due(self) -> bool:
        """Whether a decision should be asked for now, where none is under way."""
        ...

    def ask(self) -> Inpainting | None:
        """Note that the next chunk is decided from this moment's observation.

        Returns:
            What the chunk should join to; None where it is free.
        """
        ...

    def accept(self, actions: np.ndarray, now_s: float) -> None:
        """Take the chunk that was asked for, [chunk_length, action.dim]."""
        ...

    def is_empty(self) -> bool:
        """Whether `step` has nothing."""
        ...

    def step(self) -> PlannedStep | None:
        """The next command, which counts as executed; None where there is none."""
        ...


class RecedingPlan:
    """Decide every few steps; go on with the old chunk until the new one is there.

    Sources: Chi et al. 2023 (Diffusion Policy, arXiv:2303.04137), section III.C; with `inpaint`,
    real-time chunking: Black et al. 2025 (arXiv:2506.07339), algorithm 1 and equation 5, with the
    measured delay: the longest of the last 10.

    Args:
        timing: of the policy and the loop.
        steps: executed between decisions; as many as a chunk has waits for each new chunk.
        inpaint: ask for chunks that join to the old one.

    Raises:
        ValueError: steps out of range.
    """

    def __init__(self, timing: ChunkTiming, steps: int, inpaint: bool = False):
        # A step of the old chunk has to be left to join to.
        most = timing.chunk_length - 1 if inpaint else timing.chunk_length
        require_steps("steps", steps, 1, most)
        self._length, self._timing = timing.chunk_length, timing
        self._steps, self._inpaint = steps, inpaint
        self._chunk: _Chunk | None = None
        self._executed = 0
        self._asked: tuple[int, Inpainting | None] | None = None
        self._delays: deque[int] = deque(maxlen=_REMEMBERED_DELAYS)
        self.skipped = 0

    def due(self) -> bool:
        """Once the steps between two decisions are executed."""
        return self._chunk is None or self._executed >= self._chunk.begin + self._steps

    def ask(self) -> Inpainting | None:
        """See `ChunkPlan`."""
        inpainting = self._inpainting() if self._inpaint else None
        self._asked = self._executed, inpainting
        return inpainting

    def accept(self, actions: np.ndarray, now_s: float) -> None:
        """The new chunk takes over at once."""
        assert self._asked is not None, "a chunk came that nobody asked for"
        (begin, inpainting), self._asked = self._asked, None
        if inpainting is not None:
            # Steps that were to run in any case stay exactly as they were.
            fixed = (inpainting.weight == 1)[:, None]
            actions = np.where(fixed, inpainting.target, actions)
        self._delays.append(self._executed - begin)
        late = self._executed - begin
        self.skipped += min(late, self._length)
        expires_s = self._timing.expiry(self._length - late, now_s)
        self._chunk = _Chunk(actions, begin, expires_s)

    def is_empty(self) -> bool:
        """See `ChunkPlan`."""
        return self._chunk is None or self._executed >= self._chunk.begin + self._length

    def step(self) -> PlannedStep | None:
        """See `ChunkPlan`."""
        if self._chunk is None or self.is_empty():
            return None
        index = self._executed - self._chunk.begin
        self._executed += 1
        return PlannedStep(self._chunk.actions[index], self._chunk.expires_s)

    def _inpainting(self) -> Inpainting | None:
        chunk = self._chunk
        if chunk is None or self.is_empty():
            return None
        # `passed` steps of the old chunk are behind us: its row `passed` is now.
        passed = self._executed - chunk.begin
        left = self._length - passed
        delay = min(max(self._delays, default=0), left)
        target = np.zeros_like(chunk.actions)
        target[:left] = chunk.actions[passed:]
        return Inpainting(target, soft_mask(self._length, passed, delay))


class TemporalEnsemble:
    """Decide as often as possible; execute the mean of all chunks that predict a step.

    Source: Zhao et al. 2023 (ACT, arXiv:2304.13705), section IV.B and algorithm 2: weights
    exp(-decay i), i = 0 for the oldest chunk.

    Args:
        timing: of the policy and the loop.
        decay: 0 weighs all equally; larger weighs older chunks more.

    Raises:
        ValueError: a decay that is no number, or beyond 100 in magnitude.
    """

    def __init__(self, timing: ChunkTiming, decay: float = 0.01):
        require_decay(decay)
        self._length, self._timing, self._decay = timing.chunk_length, timing, decay
        self._chunks: deque[_Chunk] = deque()
        self._executed = 0
        self._asked: int | None = None
        self.skipped = 0

    def due(self) -> bool:
        """Always."""
        return True

    def ask(self) -> None:
        """See `ChunkPlan`; its chunks are free."""
        self._asked = self._executed

    def accept(self, actions: np.ndarray, now_s: float) -> None:
        """The chunk has a share in every step from now on that it predicts."""
        assert self._asked is not None, "a chunk came that nobody asked for"
        begin, self._asked = self._asked, None
        late = self._executed - begin
        self.skipped += min(late, self._length)
        expires_s = self._timing.expiry(self._length - late, now_s)
        self._chunks.append(_Chunk(actions, begin, expires_s))

    def is_empty(self) -> bool:
        """See `ChunkPlan`."""
        while self._chunks and self._chunks[0].begin + self._length <= self._executed:
            self._chunks.popleft()
        return not self._chunks

    def step(self) -> PlannedStep | None:
        """See `ChunkPlan`."""
        if self.is_empty():
            return None
        # [chunks, action.dim], the oldest first
        predictions = np.stack([c.actions[self._executed - c.begin] for c in self._chunks])
        exponent = -self._decay * np.arange(len(predictions))
        weight = np.exp(exponent - exponent.max())  # no overflow where the decay is negative
        command = (weight / weight.sum()) @ predictions
        self._executed += 1
        return PlannedStep(command.astype(np.float32), self._chunks[-1].expires_s)


def soft_mask(length: int, passed: int, delay: int) -> np.ndarray:
    """Weights of the old chunk's steps: 1, falling, then 0 (Black et al. 2025, equation 5).

    Args:
        length: steps a chunk, H.
        passed: steps of the old chunk before now, s.
        delay: steps that will be executed before the new chunk is there, d.

    Returns:
        float32 [length]: with c_i = (H - s - i) / (H - s - d + 1), the weight of step i is
        c_i (e^c_i - 1) / (e - 1) for d <= i < H - s.
    """
    step = np.arange(length)
    c = (length - passed - step) / (length - passed - delay + 1)
    falling = c * np.expm1(c) / (np.e - 1)
    weights = np.where(step < delay, 1.0, falling)
    return np.where(step < length - passed, weights, 0.0).astype(np.float32)


def make_plan(execution: str, timing: ChunkTiming, can_inpaint: bool = False) -> ChunkPlan:
    """A plan that executes chunks in this way.

    Args:
        execution: "chunk", "receding:STEPS", "ensemble[:DECAY]" or "realtime:STEPS".
        timing: of the policy and the loop.
        can_inpaint: the policy can join a chunk to another one.

    Raises:
        ValueError: none of these, numbers out of range, or real-time chunking with a policy that
            cannot inpaint.
    """
    name, *words = execution.split(":")
    try:
        if name == "chunk" and not words:
            return RecedingPlan(timing, timing.chunk_length)
        if name == "receding" and len(words) == 1:
            return RecedingPlan(timing, read_number(int, words[0]))
        if name == "ensemble" and len(words) < 2:
            return TemporalEnsemble(timing, *(read_number(float, word) for word in words))
        if name == "realtime" and len(words) == 1:
            if not can_inpaint:
                raise ValueError(
                    "the policy cannot inpaint; receding:STEPS computes the next chunk meanwhile, "
                    "too, without joining it to the old one"
                )
            return RecedingPlan(timing, read_number(int, words[0]), inpaint=True)
    except ValueError as error:
        raise ValueError(f"execution {execution!r}: {error}; valid: {_EXECUTIONS}") from error
    raise ValueError(f"execution {execution!r} is none of {_EXECUTIONS}")


def read_number[Number: (int, float)](kind: type[Number], word: str) -> Number:
    """A number of an execution's text.

    Raises:
        ValueError: it is none.
    """
    try:
        return kind(word)
    except ValueError:  # its message speaks of Python's literals
        raise ValueError(f"{word!r} is no {'whole ' * (kind is int)}number") from None


def require_steps(name: str, value: int, low: int, high: int) -> None:
    """Refuse a number of control steps that is out of range.

    Raises:
        ValueError: naming the setting and its range.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must lie from {low} to {high}, got {value}")


def require_decay(decay: float) -> None:
    """Refuse a decay of a temporal ensemble that is no number, or beyond 100 in magnitude.

    Raises:
        ValueError: naming the range.
    """
    if not abs(decay) <= _MOST_DECAY:  # NaN fails this comparison, too
        raise ValueError(f"decay must lie from -{_MOST_DECAY} to {_MOST_DECAY}, got {decay}")
