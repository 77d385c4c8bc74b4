"""A policy server: many clients, one policy, one decision at a time.

The event loop only moves messages, so a connection answers pings while a slow policy decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import numpy as np
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from vla_runtime.contract import (
    ContractMismatchError,
    InpaintingPolicy,
    Observation,
    RobotPolicy,
    RobotSpec,
)
from vla_runtime.execution import Inpainting
from vla_runtime.loading import load_policy
from vla_runtime.server.authentication import is_authorized
from vla_runtime.server.config import ServeConfig
from vla_runtime.server.dialects import Dialect, Session, dialect_of
from vla_runtime.server.messages import (
    RESET,
    MessageError,
    RequestCodec,
    pack,
    unpack,
)
from vla_runtime.server.metrics import ServerMetrics

logger = logging.getLogger(__name__)

# Frames that a connection reads ahead. A client sends its next observation after the reply to the
# last one; with more than these waiting, nothing further is read from its socket.
_FRAMES_AHEAD = 2


class PolicyServer:
    """Serves one policy.

    Args:
        policy: asked by one thread at a time.
        config: where and to whom.

    Raises:
        OSError: the token's file cannot be read.
        ValueError: the token is missing or too short, or `rename` does not fit the contract.
    """

    def __init__(self, policy: RobotPolicy, config: ServeConfig):
        self._policy, self._config = policy, config
        self._token = config.token()
        self._codec = RequestCodec(policy.spec, policy.chunk_length, config.keys())
        self._metrics = ServerMetrics()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._connected = self._answering = 0
        can_inpaint = isinstance(policy, InpaintingPolicy) and policy.can_inpaint
        self._stopping = False
        self._metadata = {
            "server": "vla-runtime",
            "contract": policy.spec.to_dict(),
            "chunk_length": policy.chunk_length,
            "can_inpaint": can_inpaint,
            "observation": self._codec.describe(),
            "reset_key": RESET,
            "max_message_bytes": self._codec.max_bytes,
        }

    async def run(self, started: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until `stop`, then answer what was asked for and disconnect.

        Args:
            started: called with the server's address as soon as it can be reached.
            stop: set from the event loop.

        Raises:
            OSError: the port is in use, or there is no such address.
        """
        try:
            async with await self._listen() as server:
                host, port = server.sockets[0].getsockname()[:2]
                started(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
                await stop.wait()
                await self._finish(server)
        finally:
            # A decision that still runs cannot be interrupted; the process ends after it.
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _listen(self) -> Server:
        config = self._config
        try:
            return await listen(
                self._serve_client,
                config.host,
                config.port,
                process_request=self._admit,
                # Browsers send an Origin, and any page that is open in one may connect to loopback.
                origins=[None],
                compression=None,
                max_size=self._codec.max_bytes,
                max_queue=_FRAMES_AHEAD,
                close_timeout=config.send_timeout_s,
                server_header=None,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    f"port {config.port} of {config.host} is in use: stop what listens there, or "
                    "choose another with --port (0 takes a free one)"
                ) from error
            raise OSError(
                f"cannot listen at {config.host}, port {config.port}: {error.strerror or error}"
            ) from error

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP requests, and refuse who brings no token; None lets a client in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":  # asked by supervisors, which have no token; it says nothing else
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not is_authorized(request.headers.get_all("Authorization"), self._token):
            self._metrics.turned_away.labels("token").inc()
            logger.info("%s: wrong or missing token", connection.remote_address)
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing token\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._metrics.text())
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        if self._connected >= self._config.max_clients:
            self._metrics.turned_away.labels("full").inc()
            full = f"all {self._config.max_clients} connections are taken"
            return await connection.close(CloseCode.TRY_AGAIN_LATER, full)
        assert connection.request is not None  # the handshake is over
        dialect, session = dialect_of(connection.request.path), Session()
        logger.info("%s connected", connection.remote_address)
        self._connected += 1
        self._metrics.clients.inc()
        try:
            metadata = dialect.metadata(self._metadata, self._policy.spec)
            await self._send(connection, pack(metadata))
            async for message in connection:
                await self._answer(connection, message, dialect, session)
                if self._stopping:
                    break
        except ConnectionClosed as closed:
            logger.info("%s: %s", connection.remote_address, closed)
        finally:
            self._connected -= 1
            self._metrics.clients.dec()
            logger.info("%s disconnected", connection.remote_address)
        return None

    async def _answer(
        self,
        connection: ServerConnection,
        message: bytes | str,
        dialect: Dialect,
        session: Session,
    ) -> None:
        arrived = time.perf_counter()
        self._answering += 1
        try:
            reply, outcome = await self._reply(connection, message, dialect, session), "answered"
        except ValueError as error:
            # A policy refuses what it cannot take, such as an instruction that is too long, so too.
            known = isinstance(error, ContractMismatchError | MessageError)
            logger.info("%s: %s", connection.remote_address, error, exc_info=not known)
            reply, outcome = dialect.error(str(error)), "refused"
        except ConnectionClosed:
            raise
        except Exception:
            # The policy is foreign code: whatever it raises ends this request and nothing else.
            # What it says stays in this server's log.
            logger.exception("the policy failed")
            reply, outcome = dialect.error("the policy failed; the server's log says why"), "failed"
        finally:
            self._answering -= 1
        self._metrics.requests.labels(outcome).inc()
        await self._send(connection, reply)
        seconds = time.perf_counter() - arrived
        session.total_ms = seconds * 1e3
        self._metrics.request.observe(seconds)

    async def _reply(
        self,
        connection: ServerConnection,
        message: bytes | str,
        dialect: Dialect,
        session: Session,
    ) -> bytes:
        if isinstance(message, str):
            raise MessageError("requests are binary frames")
        fields = unpack(message)
        if (done := dialect.control(fields, session)) is not None:
            return done
        observation, inpainting = self._codec.decode(fields)
        if inpainting is not None and not self._metadata["can_inpaint"]:
            raise MessageError("this policy cannot inpaint")
        loop = asyncio.get_running_loop()
        # A connection waits for its reply before it is read on: at most one decision a client
        # waits here.
        actions, seconds = await loop.run_in_executor(
            self._worker, self._decide, connection, session, observation, inpainting
        )
        self._metrics.inference.observe(seconds)
        return dialect.reply(actions, seconds * 1e3, session)

    def _decide(
        self,
        connection: ServerConnection,
        session: Session,
        observation: Observation,
        inpainting: Inpainting | None,
    ) -> tuple[np.ndarray, float]:
        """In the worker thread: actions and the seconds that they took."""
        if connection.state is not State.OPEN:  # gone while it waited: nobody wants the result
            raise connection.protocol.close_exc
        policy = self._policy
        if session.state is None:
            session.state = policy.initial_state()
        began = time.perf_counter()
        if inpainting is not None and isinstance(policy, InpaintingPolicy):
            chunk, after = policy.inpaint(
                observation, session.state, inpainting.target, inpainting.weight
            )
        else:
            chunk, after = policy.decide(observation, session.state)
        seconds = time.perf_counter() - began
        chunk.validate(self._policy.spec)
        session.state = after
        return np.asarray(chunk.actions, np.float32), seconds

    async def _send(self, connection: ServerConnection, reply: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._config.send_timeout_s):
                await connection.send(reply)
        except TimeoutError:
            # Aborted, since a closing handshake would wait for the same client.
            self._metrics.turned_away.labels("slow").inc()
            logger.warning("%s does not take its replies", connection.remote_address)
            connection.transport.abort()
            await connection.wait_closed()
            raise connection.protocol.close_exc from None

    async def _finish(self, server: Server) -> None:
        self._stopping = True
        server.close(close_connections=False)
        logger.info("stopping; %d decisions are being made", self._answering)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.stop_timeout_s):
                while self._answering:
                    await asyncio.sleep(0.01)
        for connection in server.connections:
            await connection.close(CloseCode.GOING_AWAY, "the server stops")


def serve(config: ServeConfig) -> None:
    """Load a policy and serve it until SIGINT or SIGTERM.

    Raises:
        OSError: the policy, the contract or the token cannot be read, the port is in use, or there
            is no such address.
        ValueError: the policy cannot be loaded, the contract is another one, or the token is
            missing or too short.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)  # it would say the same once more
    config.token()  # a bad token ends here, and not after a large policy was loaded
    server = PolicyServer(_load(config), config)
    asyncio.run(_until_a_signal(server, config))


def _load(config: ServeConfig) -> RobotPolicy:
    if config.contract is None:
        return load_policy(config.policy)
    robot = RobotSpec.read(config.contract)
    policy = load_policy(config.policy, robot)
    seen = robot.seen_by(policy.spec)
    seen.require_match(policy.spec, f"--contract {config.contract}", f"policy {config.policy}")
    return policy


def _keep_heap_compact() -> None:
    """Read buffers, 256 KiB each, get pages of their own, and glibc's heap does not fragment.

    glibc raises the size from which it does so as soon as the first of them is freed; after 100,000
    messages of changing lengths the free parts of the heap had grown by 10 MB. Other C libraries
    have no such call, and need none.
    """
    threshold, size = -3, 128 * 1024  # M_MMAP_THRESHOLD, at its first value
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(threshold, size)


async def _until_a_signal(server: PolicyServer, config: ServeConfig) -> None:
    _keep_heap_compact()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def started(address: str) -> None:
        # On standard output and at once: whoever starts servers waits for this line.
        print(f"serving {config.policy} at {address}", flush=True)

    await server.run(started, stop)
    print("stopped", flush=True)
