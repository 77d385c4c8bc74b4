"""LeRobot's policies without LeRobot: its queues, its temporal ensemble and its denoising loops.

The graphs compute what the network computes, statistics included. What LeRobot keeps in Python
around it stands here, as a memory that goes into a decision and comes out of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vla_runtime.contract import ActionChunk, Observation
from vla_runtime.exported.lerobot_settings import Denoising
from vla_runtime.exported.policy import Arrays, Parts, Provider

NoiseSource = Callable[[int, int, tuple[int, ...]], np.ndarray]
"""Seed, number of the decision, shape -> standard normal float32, equal for equal arguments."""

Step = Callable[[Arrays], Arrays]
"""Arrays by name to arrays by name: a graph."""


def numpy_noise(seed: int, decision: int, shape: tuple[int, ...]) -> np.ndarray:
    """See `NoiseSource`."""
    return np.random.default_rng((seed, decision)).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class LeRobotState:
    """A policy's memory.

    Attributes:
        seed: of all noise of the episode.
        decisions: made so far.
        observations: the latest, oldest first; the graph's inputs, each with one row.
        queue: float32 [k, action.dim], the rest of the chunk that is being executed.
        averages: float32 [chunk - 1, action.dim], of what was predicted for the control steps to
            come; no rows where an episode begins.
        counts: int64 [chunk - 1, 1], predictions in each average.
    """

    seed: int
    decisions: int = 0
    observations: tuple[Arrays, ...] = ()
    queue: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    averages: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.int64))


class ExportedLeRobotPolicy:
    """The LeRobot policy in a folder that `vla export` wrote; a `RobotPolicy`.

    Args:
        folder: every file of it is compared with its hash first.
        threads: within one operator, see `ExportedPolicy`.
        providers: of ONNX Runtime, in order of preference.
        seed: of the noise of every episode; None for another in each.
        noise: where it comes from.

    Attributes:
        spec: the robot's contract.
        description: how the graphs become a policy.
        chunk_length: control steps a chunk; 1 for a policy that has to see every control step.

    Raises:
        ExportedFolderError: the folder is missing, damaged, or of another format.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 1,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        seed: int | None = None,
        noise: NoiseSource = numpy_noise,
    ):
        parts = Parts.load(Path(folder), threads, providers)
        self.spec, self.description = parts.spec, parts.description
        assert self.description.lerobot is not None
        self._settings = self.description.lerobot
        self.chunk_length = self.description.chunk_length
        self._seed, self._noise = seed, noise
        self._parts, self._graphs = parts, parts.graphs
        self._limits = np.array([self.spec.action.low, self.spec.action.high], dtype=np.float32)

    def initial_state(self) -> LeRobotState:
        """The memory where an episode begins."""
        return LeRobotState(secrets.randbits(32) if self._seed is None else self._seed)

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, LeRobotState]:
        """See `RobotPolicy.decide`.

        Raises:
            ContractMismatchError: the observation does not follow the contract, or the policy's
                commands are not finite.
            ValueError: the instruction is too long.
        """
        if not isinstance(state, LeRobotState):
            raise TypeError(f"the memory of another policy: {type(state).__name__}")
        observation.validate(self.spec)
        # The settings end every instruction with a new line; LeRobot adds none where one is.
        words = observation.instruction.removesuffix("\n")
        state = self._remember(self._parts.inputs(observation, words), state)
        if self._settings.ensemble is not None:
            actions, state = ensemble(self._settings.ensemble, self._predict(state), state)
        elif self.chunk_length == 1:
            queue = state.queue if len(state.queue) else self._predict(state)
            actions, state = queue[:1], replace(state, queue=queue[1:])
        else:
            actions = self._predict(state)
        chunk = ActionChunk(actions.clip(*self._limits))
        chunk.validate(self.spec)  # NaN passes through clipping
        return chunk, replace(state, decisions=state.decisions + 1)

    def _remember(self, inputs: Arrays, state: LeRobotState) -> LeRobotState:
        steps = self._settings.observation_steps
        # LeRobot fills the history of an episode that begins with its first observation.
        seen = (*(state.observations or (inputs,) * (steps - 1)), inputs)
        return replace(state, observations=seen[-steps:])

    def _predict(self, state: LeRobotState) -> np.ndarray:
        """The chunk float32 [action_steps, action.dim]; for an ensemble, all that is predicted."""
        seen = state.observations
        # One row an observation: [steps, ...].
        rows = {name: np.concatenate([one[name] for one in seen]) for name in seen[0]}
        encoded = self._graphs["encode"](rows)
        if (loop := self._settings.denoising) is None:
            return encoded["actions"][0]
        if self._settings.observation_steps > 1:
            # All observations condition one chunk: [1, steps * features].
            encoded = {name: array.reshape(1, -1) for name, array in encoded.items()}
        draws = 1 + len(loop.times) * loop.fresh_noise
        noise = self._noise(state.seed, state.decisions, (draws, 1, *loop.shape))
        return denoise(loop, self._graphs["denoise"], encoded, noise)


def denoise(loop: Denoising, step: Step, context: Arrays, noise: np.ndarray) -> np.ndarray:
    """The commands float32 [steps, action.dim] that a sample stands for after its last step.

    Args:
        loop: its constants.
        step: the graph of one denoising step.
        context: what the sample is conditioned on, under the graph's names.
        noise: float32 [draws, 1, *loop.shape]; the sample at first, then what each step adds.
    """
    arrays = {"sample": noise[0], "noise": np.zeros_like(noise[0]), **context}
    given: Arrays = {}
    for index, (time, row) in enumerate(zip(loop.times, loop.coefficients, strict=True), 1):
        arrays["time"] = np.array([time], np.float32)
        arrays["coefficients"] = np.array([row], np.float32)
        if loop.fresh_noise:
            arrays["noise"] = noise[index]
        given = step(arrays)
        arrays["sample"] = given["next.sample"]
    return given["actions"][0]


def ensemble(
    coefficient: float, chunk: np.ndarray, state: LeRobotState
) -> tuple[np.ndarray, LeRobotState]:
    """The average of all predictions for this control step, and the memory with this chunk.

    Algorithm 2 of Zhao et al. 2023 (ACT, arXiv:2304.13705), online as in LeRobot: weight 0 is the
    oldest prediction's.

    Args:
        coefficient: weight i is exp(-coefficient i).
        chunk: float32 [chunk, action.dim], predicted now.
        state: the memory before.

    Returns:
        Float32 [1, action.dim], and the memory after it.
    """
    weights = np.exp(-coefficient * np.arange(len(chunk), dtype=np.float32))
    sums = np.cumsum(weights)
    averages, counts = chunk, np.ones((len(chunk), 1), np.int64)
    if len(state.averages):
        earlier = state.counts  # [chunk - 1, 1]
        mean = state.averages * sums[earlier - 1] + chunk[:-1] * weights[earlier]
        averages = np.concatenate([mean / sums[earlier], chunk[-1:]])
        counts = np.concatenate([(earlier + 1).clip(max=len(chunk)), counts[-1:]])
    return averages[:1], replace(state, averages=averages[1:], counts=counts[1:])
