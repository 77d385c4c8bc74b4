"""A policy that another process or machine serves; see `vla_runtime.server`."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from vla_runtime.contract import ActionChunk, ContractMismatchError, Observation, RobotSpec
from vla_runtime.execution import Inpainting
from vla_runtime.server.authentication import TOKEN_VARIABLE, authorization, read_token
from vla_runtime.server.messages import RESET, RequestCodec, pack, unpack_reply

_RECONNECT = "connect() opens another, on which a new episode begins"
_MAX_REPLY_BYTES = 1 << 20  # the largest message is the metadata, with the contract


class RemotePolicyError(RuntimeError):
    """The server answered that it made no decision, and why; the connection is still good."""


@dataclass(frozen=True)
class _Memory:
    """Stands for the memory in the server: how many decisions of an episode made it.

    Attributes:
        episode: number of the episode on this client.
        decisions: 0 where the episode begins.
    """

    episode: int
    decisions: int


class RemotePolicy:
    """A served policy as a `RobotPolicy`, and as an `InpaintingPolicy` where it is one.

    Its memory is in the server, one for a connection, so it plays one episode at a time. A lost
    connection stays lost, because the episode's memory is lost with it: `connect` opens another,
    and a new episode has to begin.

    Args:
        address: `ws://HOST:PORT` or `wss://...`.
        token: what the server asks for; None takes it from the environment variable VLA_TOKEN.
        timeout_s: for the handshake and for each decision.

    Raises:
        ConnectionError: no server there, or it refuses the token.
        ContractMismatchError: what answers states no contract.
        ValueError: `address` is no websocket address, or the token is too short.
    """

    def __init__(self, address: str, token: str | None = None, timeout_s: float = 10.0):
        self._address, self._timeout_s = address, timeout_s
        self._token = token or read_token()
        self._connection: ClientConnection | None = None
        self._episode, self._now = 0, _Memory(0, 0)
        self.connect()

    def connect(self) -> None:
        """Open the connection, or another one after the first was lost.

        Raises:
            ConnectionError: no server there, or it refuses the token.
            ContractMismatchError: what answers states no contract, or another than before.
        """
        self.close()
        headers = {"Authorization": authorization(self._token)} if self._token else None
        try:
            opening = connect(
                self._address,
                additional_headers=headers,
                compression=None,
                open_timeout=self._timeout_s,
                max_size=_MAX_REPLY_BYTES,
                proxy=None,
            )
            # Entered by hand: the connection lives as long as this object.
            self._connection = opening.__enter__()
        except (InvalidURI, ValueError) as error:  # the latter of a port that is no number
            raise ValueError(f"{self._address!r} is no address such as ws://HOST:PORT") from error
        except InvalidStatus as error:
            raise ConnectionError(self._refused(error.response.status_code)) from error
        except (OSError, InvalidHandshake) as error:
            raise ConnectionError(
                f"no policy server at {self._address}: {error or 'no answer'}"
            ) from error
        spec, self.chunk_length, self.can_inpaint = self._read_metadata()
        if getattr(self, "spec", spec) != spec:
            self.spec.require_match(spec, "this client", f"the server now at {self._address}")
        self.spec, self._codec = spec, RequestCodec(spec, self.chunk_length)
        self._now = _Memory(-1, 0)  # no memory of another connection fits

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def initial_state(self) -> object:
        """The memory where an episode begins."""
        self._episode += 1
        return _Memory(self._episode, 0)

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """Ask the server.

        Raises:
            ConnectionError: the connection is lost, or no reply came in time.
            ContractMismatchError: the observation or the reply does not follow the contract.
            RemotePolicyError: the server says that it made no decision.
            ValueError: `state` is not that of the last decision on this connection.
        """
        return self._ask(observation, state, None)

    def inpaint(
        self, observation: Observation, state: object, target: np.ndarray, weight: np.ndarray
    ) -> tuple[ActionChunk, object]:
        """See `InpaintingPolicy.inpaint`, and `decide` for what else it raises.

        Raises:
            TypeError: the served policy cannot, see `can_inpaint`.
        """
        if not self.can_inpaint:
            raise TypeError(f"the policy at {self._address} cannot inpaint")
        return self._ask(observation, state, Inpainting(target, weight))

    def _ask(
        self, observation: Observation, state: object, inpainting: Inpainting | None
    ) -> tuple[ActionChunk, object]:
        if not isinstance(state, _Memory) or (state.decisions and state != self._now):
            raise ValueError(
                "a remote policy remembers its last decision alone: go on from there, or begin an "
                "episode with initial_state()"
            )
        observation.validate(self.spec)
        fields = self._codec.encode(observation, inpainting)
        reply = self._exchange(fields | {RESET: not state.decisions})
        actions = reply.get("actions")
        shape = (self.chunk_length, self.spec.action.dim)
        if not isinstance(actions, np.ndarray) or actions.shape != shape:
            raise ContractMismatchError(f"{self._address} sent no actions of shape {shape}")
        chunk = ActionChunk(actions.astype(np.float32))
        chunk.validate(self.spec)
        self._now = _Memory(state.episode, state.decisions + 1)
        return chunk, self._now

    def _exchange(self, fields: dict[str, Any]) -> dict[str, Any]:
        try:
            self._open().send(pack(fields))
        except ConnectionClosed as error:
            raise self._lost(error) from error
        reply = self._receive()
        if isinstance(reply, str):
            raise RemotePolicyError(f"{self._address}: {reply}")
        return unpack_reply(reply)

    def _receive(self) -> bytes | str:
        try:
            return self._open().recv(self._timeout_s)
        except TimeoutError as error:
            # The reply may still come, and would be taken for that to the next observation.
            self.close()
            raise ConnectionError(
                f"{self._address} did not answer within {self._timeout_s} s: {_RECONNECT}"
            ) from error
        except ConnectionClosed as error:
            raise self._lost(error) from error

    def _open(self) -> ClientConnection:
        if self._connection is None:
            raise ConnectionError(f"the connection to {self._address} is closed: {_RECONNECT}")
        return self._connection

    def _lost(self, error: ConnectionClosed) -> ConnectionError:
        self.close()
        return ConnectionError(f"{self._address} is gone ({error}): {_RECONNECT}")

    def _read_metadata(self) -> tuple[RobotSpec, int, bool]:
        message = self._receive()
        try:
            fields = unpack_reply(message if isinstance(message, bytes) else b"")
            spec = RobotSpec.from_dict(fields["contract"])
            return spec, int(fields["chunk_length"]), bool(fields["can_inpaint"])
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise ContractMismatchError(
                f"{self._address} states no contract: it is no server of `vla serve`"
            ) from error

    def _refused(self, status: int) -> str:
        if status == HTTPStatus.UNAUTHORIZED:
            return (
                f"{self._address} refuses the token: put the server's into the environment "
                f"variable {TOKEN_VARIABLE}"
            )
        return f"{self._address} is no policy server: it answers with HTTP status {status}"
