"""A small policy with a memory and a server of it, in a thread or in a process of its own."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from vla_runtime.contract import (
    ActionChunk,
    CameraSpec,
    FeatureMap,
    Observation,
    RobotSpec,
    VectorSpec,
)
from vla_runtime.server.config import ServeConfig
from vla_runtime.server.service import PolicyServer

SPEC = RobotSpec(
    robot="gantry",
    action=VectorSpec(("x", "y", "grip"), ("m", "m", "1"), (-9.0, -9.0, 0.0), (9.0, 9.0, 99.0)),
    proprio=VectorSpec(("x", "y"), ("m", "m"), (-np.inf, -1.0), (np.inf, 1.0)),
    cameras=(CameraSpec("front", 6, 8), CameraSpec("wrist", 4, 4)),
    control_rate_hz=20.0,
    features=FeatureMap(cameras={"wrist": "observation/wrist_image"}),
)
TOKEN = "a-token-of-thirty-two-characters"


class CountingPolicy:
    """Says what it saw: x is the mean of the front image, y that of proprioception, grip a count.

    Args:
        spec: its contract.
        decided: called within each decision, with the observation.
    """

    chunk_length = 4

    def __init__(
        self, spec: RobotSpec = SPEC, decided: Callable[[Observation], object] | None = None
    ):
        self.spec, self._decided = spec, decided

    def initial_state(self) -> object:
        """No decision was made."""
        return 0

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """The chunk counts the episode's decisions."""
        observation.validate(self.spec)
        if self._decided is not None:
            self._decided(observation)
        if observation.instruction == "break":
            raise KeyError("a secret of the server")
        assert isinstance(state, int)
        actions = np.zeros((self.chunk_length, self.spec.action.dim), np.float32)
        actions[:, 0] = observation.images[self.spec.cameras[0].name].mean() / 255
        actions[:, 1] = observation.proprio.mean()
        actions[:, 2] = state
        return ActionChunk(actions), state + 1


class JoiningPolicy(CountingPolicy):
    """Follows the target as far as the weight says, and has 9 elsewhere."""

    can_inpaint = True

    def inpaint(
        self, observation: Observation, state: object, target: np.ndarray, weight: np.ndarray
    ) -> tuple[ActionChunk, object]:
        """The target where the weight is 1."""
        _, state = self.decide(observation, state)
        return ActionChunk(np.where(weight[:, None] == 1, target, np.float32(9))), state


def observe(
    seed: int = 0, instruction: str = "lift the block", spec: RobotSpec = SPEC
) -> Observation:
    """A random observation."""
    rng = np.random.default_rng(seed)
    return Observation(
        {c.name: rng.integers(256, size=(c.height, c.width, 3), dtype="u1") for c in spec.cameras},
        rng.uniform(-1, 1, spec.proprio.dim).astype(np.float32),
        instruction,
        0.05 * seed,
    )


def fields_of(observation: Observation) -> dict[str, object]:
    """What a client of openpi sends for an observation of `SPEC`."""
    return {
        "observation.images.front": observation.images["front"],
        "observation/wrist_image": observation.images["wrist"],
        "observation.state": observation.proprio,
        "prompt": observation.instruction,
    }


@contextmanager
def serving(policy: object | None = None, **settings: object) -> Iterator[str]:
    """The address of a server in a thread; it is stopped in the end, and raises what it raised."""
    config = ServeConfig(**({"policy": "a test", "port": 0} | settings))
    server = PolicyServer(policy or CountingPolicy(), config)
    told: Future[tuple[str, Callable[[], object]]] = Future()

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        halt = functools.partial(loop.call_soon_threadsafe, stop.set)
        await server.run(lambda address: told.set_result((address, halt)), stop)

    def ended(running: Future[None]) -> None:
        if (error := running.exception()) is not None and not told.done():
            told.set_exception(error)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(run()))
        running.add_done_callback(ended)
        address, halt = told.result(30)
        try:
            yield address
        finally:
            halt()
            running.result(30)


def start_process(
    port: int = 0, stderr: IO[str] | int = subprocess.PIPE
) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, str(Path(__file__)), f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "serving" in line, (line, process.stderr and process.stderr.read())
    return process, line.split()[-1]


def main() -> None:
    """Serve as `vla serve` does, with a policy that takes as long as its instruction says."""
    import tyro
    from vla_runtime.server import service

    config = tyro.cli(ServeConfig, default=ServeConfig("a test"))
    policy = CountingPolicy(decided=_linger)
    asyncio.run(service._until_a_signal(PolicyServer(policy, config), config))


def _linger(observation: Observation) -> None:
    if observation.instruction.startswith("wait "):
        time.sleep(float(observation.instruction.removeprefix("wait ")))


if __name__ == "__main__":
    main()
