"""A small client of the rosbridge v2 protocol: ROS 1 and ROS 2 without installing ROS.

Protocol: ROSBRIDGE_PROTOCOL.md of RobotWebTools/rosbridge_suite. Two properties of the bridge shape
this client. It reports nothing: a wrong type, an unknown topic or a refused message end in its own
log (`set_level` asks for them, few bridges answer). And a stopped bridge still accepts what is
sent, because the kernel buffers it. Data that arrive are therefore the only evidence that it works.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import socket
import struct
import threading
import time
import zlib
from base64 import b64decode
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Literal

from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from vla_runtime.robots.ros_cbor import decode_cbor

Compression = Literal["none", "png", "cbor"]
Receive = Callable[[dict[str, Any], float], None]

# A send waits for the network only once the kernel's buffer is full, and then the bridge has been
# stopped for long: there is nothing to wait for.
SEND_TIMEOUT_S = 0.05
_TROUBLE_LINES = 3
_TROUBLE_LENGTH = 400
# What decoding raises on bytes that are not what the protocol says; Pillow has no error of its own.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    OSError,
    RecursionError,  # JSON that nests too deep
    EOFError,
    SyntaxError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Rosbridge:
    """One connection; when it is lost, make another one.

    Args:
        address: ws:// or wss:// of the bridge.
        max_message_bytes: the connection is closed when a longer message arrives.
        open_timeout_s: how long to wait for an answer.
        close_timeout_s: how long `close` waits for one.

    Attributes:
        lost: why nothing comes or goes any more; None while the connection is open.

    Raises:
        ConnectionError: nobody answers there, or not in the websocket protocol.
    """

    def __init__(
        self, address: str, *, max_message_bytes: int, open_timeout_s: float, close_timeout_s: float
    ) -> None:
        self.lost: str | None = None
        self._address = address
        self._max_message_bytes = max_message_bytes
        self._receivers: dict[str, Receive] = {}
        self._replies: dict[str, dict[str, Any]] = {}
        self._replied = threading.Condition()
        self._ids = itertools.count()
        self._trouble: list[tuple[float, str]] = []
        # As a context manager: since version 17 a bare `connect` reconnects by itself.
        self._exit = ExitStack()
        try:
            # No proxy: robots are on the local network. No ping: the state's age tells more.
            opening = connect(
                address,
                open_timeout=open_timeout_s,
                close_timeout=close_timeout_s,
                ping_interval=None,
                max_size=max_message_bytes,
                compression=None,
                proxy=None,
            )
            self._socket = self._exit.enter_context(opening)
        except (OSError, WebSocketException) as error:
            raise ConnectionError(
                f"no rosbridge answers at {address} ({error}); start it on the robot, "
                "`roslaunch rosbridge_server rosbridge_websocket.launch` or `ros2 launch "
                "rosbridge_server rosbridge_websocket_launch.xml`, and check host and port"
            ) from error
        # The socket blocks, so that the option bounds `sendall`, and stays readable.
        bound = struct.pack("ll", 0, int(SEND_TIMEOUT_S * 1e6))
        self._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
        self._thread = threading.Thread(target=self._listen, name="rosbridge", daemon=True)
        self._thread.start()
        self._send({"op": "set_level", "level": "warning"})

    def subscribe(
        self,
        topic: str,
        message_type: str,
        receive: Receive,
        *,
        throttle_ms: int = 0,
        compression: Compression = "none",
    ) -> None:
        """Have every message of a topic passed to `receive(message, arrival_s)`.

        It is called on the receiving thread, with `time.monotonic()` of the arrival. A ValueError
        that it raises becomes a line of `trouble`.
        """
        self._receivers[topic] = receive
        # Length 1: a bridge that falls behind drops old messages instead of delivering them late.
        self._send(
            {
                "op": "subscribe",
                "topic": topic,
                "type": message_type,
                "throttle_rate": throttle_ms,
                "queue_length": 1,
                "compression": compression,
            }
        )

    def advertise(self, topic: str, message_type: str) -> None:
        """Say what will be published on a topic."""
        self._send({"op": "advertise", "topic": topic, "type": message_type})

    def publish(self, topic: str, message: dict[str, Any]) -> None:
        """Hand a message to the bridge, which does not say whether it took it.

        Raises:
            ConnectionError: the connection is lost.
            ValueError: the message holds NaN or an infinity, which JSON has no word for.
        """
        self._send({"op": "publish", "topic": topic, "msg": message})

    def call(self, service: str, arguments: dict[str, Any], timeout_s: float) -> dict | None:
        """What a service returns; None where there is no such service or no reply in time."""
        name = f"call:{next(self._ids)}"
        self._send({"op": "call_service", "service": service, "args": arguments, "id": name})
        with self._replied:
            self._replied.wait_for(lambda: name in self._replies or self.lost, timeout_s)
            reply = self._replies.pop(name, {})
        values = reply.get("values")
        return values if reply.get("result") and isinstance(values, dict) else None

    def trouble(self, since_s: float) -> list[str]:
        """The latest complaints, of the bridge and about its messages, since a moment."""
        return [text for when, text in self._trouble if when >= since_s]

    def share_scheduling(self) -> None:
        """Give the receiving threads the scheduling of the thread that calls.

        At a lower priority they would be interrupted while they hold the interpreter's lock, and
        the caller would wait for whatever runs meanwhile.
        """
        policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        for thread in (self._thread, self._socket.recv_events_thread):
            # It may have ended, and not everybody may raise a priority, even to the own one.
            with suppress(ProcessLookupError, PermissionError):
                os.sched_setscheduler(thread.native_id or 0, policy, parameters)

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self.lost = self.lost or "it was closed"
        self._exit.close()
        self._thread.join()

    def _send(self, message: dict[str, Any]) -> None:
        text = json.dumps(message, allow_nan=False)
        if self.lost:
            raise ConnectionError(f"the connection to {self._address} is lost: {self.lost}")
        try:
            self._socket.send(text)
        except (OSError, WebSocketException) as error:
            self.lost = self.lost or _reason(error)
            raise ConnectionError(f"the connection to {self._address} is lost: {error}") from error

    def _listen(self) -> None:
        try:
            while True:
                data = self._socket.recv()
                self._take(data, time.monotonic())
        except (OSError, WebSocketException) as error:
            self.lost = self.lost or _reason(error)
        finally:
            # Whatever ended this thread, nothing will be received any more: readers have to know.
            self.lost = self.lost or "the receiving thread ended by an error of its own"
            with self._replied:
                self._replied.notify_all()

    def _take(self, data: str | bytes, arrival_s: float) -> None:
        try:
            message = decode_cbor(data) if isinstance(data, bytes) else json.loads(data)
            if message["op"] == "png":
                message = json.loads(self._unpack_png(message["data"]))
            self._handle(message, arrival_s)
        except _MALFORMED as error:
            self._note(f"unusable message: {error}", arrival_s)

    def _unpack_png(self, data: str) -> bytes:
        # The JSON text is in the pixels, padded with line ends. A small PNG may hold a large text.
        with Image.open(io.BytesIO(b64decode(data, validate=True)), formats=("PNG",)) as image:
            if 3 * image.width * image.height > self._max_message_bytes:
                raise ValueError(f"a PNG of {image.width} x {image.height} is too large")
            return image.convert("RGB").tobytes()

    def _handle(self, message: dict[str, Any], arrival_s: float) -> None:
        operation = message["op"]
        if operation == "publish":
            topic = message["topic"]
            try:
                self._receivers[topic](message["msg"], arrival_s)
            except _MALFORMED as error:
                raise ValueError(f"{topic}: {error}") from error
        elif operation == "service_response":
            with self._replied:
                self._replies[str(message.get("id"))] = message
                self._replied.notify_all()
        elif operation == "status":
            self._note(f"the bridge says: {message.get('msg')}", arrival_s)
        else:
            raise ValueError(f"the bridge sent the unknown operation {operation!r}")

    def _note(self, text: str, arrival_s: float) -> None:
        # What comes again and again is one line, and leaves room for the others.
        others = [line for line in self._trouble if line[1] != text[:_TROUBLE_LENGTH]]
        self._trouble = [*others, (arrival_s, text[:_TROUBLE_LENGTH])][-_TROUBLE_LINES:]


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__
