"""The policy in a process of its own, so that nothing that it does can delay the control loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_runtime.child_process import ChildEndedError, ChildProcess, MessageSocket
from vla_runtime.contract import (
    ContractMismatchError,
    InpaintingPolicy,
    Observation,
    Reading,
    RobotPolicy,
    RobotSpec,
)
from vla_runtime.execution import Inpainting
from vla_runtime.shared_arrays import Layout, SharedArrays
from vla_runtime.timing import end_with_parent

PolicyLoader = Callable[[str, RobotSpec], RobotPolicy]
"""From a policy's text and the robot's contract to the policy."""


class InferenceError(RuntimeError):
    """The policy failed; the message says how."""


class InferenceEndedError(InferenceError):
    """The inference process has ended; `InferenceProcess.how_it_ended` says how."""


@dataclass(frozen=True)
class Decision:
    """A chunk that was asked for.

    Attributes:
        actions: float32 [chunk_length, action.dim].
        latency_s: from asking until it was ready.
    """

    actions: np.ndarray
    latency_s: float


class InferenceProcess:
    """Decides on request; the caller never waits for it, and goes on when it is gone.

    Args:
        load: a function of a module that makes the policy, called in the process.
        source: of the policy, for `load`.
        robot: contract of the robot to be controlled.
        instruction: what to do.

    Attributes:
        busy: a decision is under way.
    """

    def __init__(self, load: PolicyLoader, source: str, robot: RobotSpec, instruction: str):
        self._source, self._robot = source, robot
        self._arrays = SharedArrays(_layout(robot))
        self._child = ChildProcess(
            "the inference process",
            _serve,
            load,
            source,
            robot,
            instruction,
            self._arrays,
            os.getpid(),
        )
        self._asked_s = 0.0
        self.busy = False

    @property
    def busy_s(self) -> float:
        """How long ago the decision that is under way was asked for."""
        return time.monotonic() - self._asked_s

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def wait_until_ready(self) -> tuple[int, bool]:
        """Wait until the policy is loaded, has decided once, and fits the robot.

        Returns:
            Its chunk length, and whether it can inpaint.

        Raises:
            ContractMismatchError: it is for another robot.
            InferenceError: it cannot be loaded, or its process ended.
        """
        try:
            answer = self._receive(None)
        except InferenceEndedError as error:
            raise InferenceError(f"policy {self._source}: {self.how_it_ended()}") from error
        assert answer is not None
        spec = RobotSpec.from_dict(answer["spec"])
        seen = self._robot.seen_by(spec)
        try:
            seen.require_match(spec, f"robot {seen.robot!r}", f"policy {self._source}")
        except ContractMismatchError as error:
            raise ContractMismatchError(
                f"{error}\nset the robot's options to what the policy was trained with, or take a "
                "policy that was trained for this robot"
            ) from error
        return answer["chunk_length"], answer["can_inpaint"]

    def ask(self, reading: Reading, time_s: float, inpainting: Inpainting | None) -> None:
        """Have a chunk decided from this reading.

        Args:
            reading: what the robot measured.
            time_s: seconds since the run began.
            inpainting: what the chunk should join to; None where it is free.

        Raises:
            InferenceEndedError: the process has ended.
        """
        # Only when idle: the process reads these arrays while it is busy.
        assert not self.busy, "a decision is under way"
        for name, image in reading.images.items():
            self._arrays.arrays[_image(name)][:] = image
        self._arrays.arrays["proprio"][:] = reading.proprio
        message: dict[str, Any] = {"time_s": time_s}
        if inpainting is not None:
            message["target"] = inpainting.target.tobytes()
            message["weight"] = inpainting.weight.tobytes()
        try:
            self._child.messages.send(message)
        except OSError as error:
            raise InferenceEndedError(str(error)) from error
        self._asked_s, self.busy = time.monotonic(), True

    def poll(self, timeout_s: float = 0.0) -> Decision | None:
        """The decision that was asked for, if it is ready within this time.

        Raises:
            InferenceError: the policy failed.
            InferenceEndedError: the process has ended.
        """
        answer = self._receive(timeout_s)
        if answer is None:
            return None
        self.busy = False
        actions = np.frombuffer(answer["actions"], np.float32).reshape(answer["shape"])
        return Decision(actions, answer["ready_s"] - self._asked_s)

    def how_it_ended(self) -> str:
        """For people, once `poll` or `ask` has raised an error."""
        return self._child.how_it_ended()

    def end(self) -> None:
        """End the process, also in the middle of a decision."""
        self._child.end()
        self._arrays.close()

    def _receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        try:
            answer = self._child.messages.receive(timeout_s)
        except ChildEndedError as error:
            raise InferenceEndedError(str(error)) from error
        if answer is not None and "error" in answer:
            raise InferenceError(f"policy {self._source}: {answer['error']}")
        return answer


def _image(camera: str) -> str:
    return f"image.{camera}"


def _layout(spec: RobotSpec) -> Layout:
    images = {_image(c.name): ((c.height, c.width, 3), "uint8") for c in spec.cameras}
    return {"proprio": ((spec.proprio.dim,), "float32"), **images}


def _serve(
    messages: MessageSocket,
    load: PolicyLoader,
    source: str,
    robot: RobotSpec,
    instruction: str,
    shared: SharedArrays,
    parent: int,
) -> None:
    end_with_parent(parent)
    policy = load(source, robot)
    can_inpaint = isinstance(policy, InpaintingPolicy) and policy.can_inpaint
    seen = robot.seen_by(policy.spec)
    if not policy.spec.differences(seen):
        _warm_up(policy, seen, instruction)
    description = {"spec": policy.spec.to_dict(), "chunk_length": policy.chunk_length}
    messages.send(description | {"can_inpaint": can_inpaint})
    state = policy.initial_state()
    while True:
        asked = messages.receive()
        assert asked is not None
        observation = _observe(shared, seen, instruction, asked["time_s"])
        if "target" in asked:
            assert isinstance(policy, InpaintingPolicy)
            target = np.frombuffer(asked["target"], np.float32).reshape(policy.chunk_length, -1)
            weight = np.frombuffer(asked["weight"], np.float32)
            chunk, state = policy.inpaint(observation, state, target, weight)
        else:
            chunk, state = policy.decide(observation, state)
        chunk.validate(policy.spec)
        if len(chunk.actions) != policy.chunk_length:
            raise ValueError(
                f"the chunk has {len(chunk.actions)} steps instead of {policy.chunk_length}"
            )
        actions = np.asarray(chunk.actions, np.float32)
        answer = {"actions": actions.tobytes(), "shape": actions.shape}
        messages.send(answer | {"ready_s": time.monotonic()})


def _observe(
    shared: SharedArrays, robot: RobotSpec, instruction: str, time_s: float
) -> Observation:
    # Copies: a policy may keep what it was shown, and the arrays are written again.
    images = {c.name: shared.arrays[_image(c.name)].copy() for c in robot.cameras}
    return Observation(images, shared.arrays["proprio"].copy(), instruction, time_s)


def _warm_up(policy: RobotPolicy, robot: RobotSpec, instruction: str) -> None:
    """Decide once from blank images: first calls allocate, compile, and fail."""
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in robot.cameras}
    blank = Observation(images, np.zeros(robot.proprio.dim, np.float32), instruction)
    chunk, state = policy.decide(blank, policy.initial_state())
    if isinstance(policy, InpaintingPolicy) and policy.can_inpaint:
        policy.inpaint(blank, state, chunk.actions, np.zeros(len(chunk.actions), np.float32))
