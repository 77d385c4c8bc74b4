"""What a policy server costs a decision, beside a naive server and a direct call.

    python -m scripts.bench.server_overhead

asks one small policy (three images of 96 x 96, 6 joints) directly, through `vla serve` by our
client and by `openpi-client`, and through a naive server: openpi's protocol as it is described,
any message, any type, no checks, inference on the event loop. Servers run in processes of their
own on loopback; the ways take turns in random order, so that whatever else the machine does meets
all of them alike. The overhead is the median round trip less the median direct call. On a busy
machine, `chrt -f 1 python -m ...` keeps other programs out.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import numpy as np
import tyro
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from vla_runtime.client import RemotePolicy
from vla_runtime.contract import ActionChunk, CameraSpec, Observation, RobotSpec, VectorSpec
from vla_runtime.server.config import ServeConfig
from vla_runtime.server.messages import RequestCodec
from vla_runtime.server.service import PolicyServer
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen

from vla.settings import require_numbers

_JOINTS, _CHUNK_LENGTH = 6, 16
SPEC = RobotSpec(
    robot="arm",
    action=VectorSpec(tuple("abcdef"), ("rad",) * 6, (-9.0,) * 6, (9.0,) * 6),
    proprio=VectorSpec(tuple("abcdef"), ("rad",) * 6, (-9.0,) * 6, (9.0,) * 6),
    cameras=tuple(CameraSpec(name, 96, 96) for name in ("front", "side", "wrist")),
    control_rate_hz=50.0,
)


@dataclass(frozen=True)
class ServerOverheadConfig:
    """How long is timed.

    Attributes:
        decisions: of each way.
        warm_up: decisions of each way before that.
        seed: of the observations and of the order.
    """

    decisions: int = 2_000
    warm_up: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("decisions",))


class MeanPolicy:
    """Reads every pixel and answers a chunk."""

    spec, chunk_length = SPEC, _CHUNK_LENGTH

    def initial_state(self) -> object:
        """Nothing to remember."""
        return ()

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """The mean of the images, for every joint."""
        mean = np.mean([image.mean() for image in observation.images.values()])
        return ActionChunk(np.full((_CHUNK_LENGTH, _JOINTS), mean / 255, np.float32)), state


def _serve(ready: Connection) -> None:
    async def run() -> None:
        server = PolicyServer(MeanPolicy(), ServeConfig("mean", port=0))
        await server.run(ready.send, asyncio.Event())

    asyncio.run(run())


def _serve_naively(ready: Connection) -> None:
    policy = MeanPolicy()
    names = {SPEC.features.camera(camera.name): camera.name for camera in SPEC.cameras}

    async def handle(connection: ServerConnection) -> None:
        await connection.send(msgpack_numpy.packb({}))
        async for message in connection:
            fields = msgpack_numpy.unpackb(message)
            images = {name: fields[key] for key, name in names.items()}
            began = time.perf_counter()
            seen = Observation(images, fields[SPEC.features.proprio], fields["prompt"])
            chunk, _ = policy.decide(seen, ())
            timing = {"infer_ms": (time.perf_counter() - began) * 1e3}
            await connection.send(
                msgpack_numpy.packb({"actions": chunk.actions, "server_timing": timing})
            )

    async def run() -> None:
        async with listen(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            ready.send(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await server.serve_forever()

    asyncio.run(run())


def _start(target: Callable[[Connection], None]) -> tuple[SpawnProcess, str]:
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(far,), daemon=True)
    process.start()
    return process, near.recv()


def _by_openpi(address: str) -> Callable[[Observation], object]:
    codec, client = RequestCodec(SPEC, _CHUNK_LENGTH), WebsocketClientPolicy(address)
    return lambda observation: client.infer(codec.encode(observation))


def _by_our_client(address: str) -> Callable[[Observation], object]:
    remote = RemotePolicy(address)
    states = [remote.initial_state()]

    def ask(observation: Observation) -> None:
        states[0] = remote.decide(observation, states[0])[1]

    return ask


def _random_observation(rng: np.random.Generator) -> Observation:
    images = {
        camera.name: rng.integers(256, size=(96, 96, 3), dtype=np.uint8) for camera in SPEC.cameras
    }
    return Observation(images, rng.normal(size=_JOINTS).astype(np.float32), "lift the block")


def measure(config: ServerOverheadConfig) -> dict[str, np.ndarray]:
    """Seconds of each decision, by way."""
    rng, order = np.random.default_rng(config.seed), random.Random(config.seed)
    started = [_start(target) for target in (_serve, _serve_naively)]
    ours, naive = (address for _, address in started)
    ways: dict[str, Callable[[Observation], object]] = {
        "direct call": lambda observation: MeanPolicy().decide(observation, ()),
        "vla serve, our client": _by_our_client(ours),
        "vla serve, openpi-client": _by_openpi(ours),
        "naive server, openpi-client": _by_openpi(naive),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for _ in range(config.warm_up + config.decisions):
            observation = _random_observation(rng)
            for name in order.sample(list(ways), len(ways)):
                began = time.perf_counter()
                ways[name](observation)
                times[name].append(time.perf_counter() - began)
    finally:
        for process, _ in started:
            process.terminate()
            process.join()
    return {name: np.array(seconds[config.warm_up :]) for name, seconds in times.items()}


def main(config: ServerOverheadConfig) -> int:
    """Print a row for each way; 1 if the overhead is above 1 ms."""
    times = measure(config)
    direct_s = np.median(times["direct call"])
    print(f"{'way':<28} {'p50 ms':>8} {'p99 ms':>8} {'overhead p50 ms':>16}")
    for name, seconds in times.items():
        p50, p99 = np.quantile(seconds, (0.5, 0.99)) * 1e3
        print(f"{name:<28} {p50:>8.3f} {p99:>8.3f} {p50 - direct_s * 1e3:>16.3f}")
    overhead_s = max(np.median(times[name]) - direct_s for name in times if "vla serve" in name)
    return int(overhead_s > 1e-3)


if __name__ == "__main__":
    # openpi-client 0.1 opens its connection in a way that is to change in websockets.
    warnings.filterwarnings("ignore", "connect.. must be used", DeprecationWarning)
    sys.exit(main(tyro.cli(ServerOverheadConfig)))
