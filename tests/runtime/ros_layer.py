"""A rosbridge-protocol layer over a ROS of `ros_backends`, as silent about errors as the real one.

    python ros_layer.py PORT --rospy      on Debian's Python, with a running roscore
    python ros_layer.py PORT IMAGE.jpg... an arm of `ros_arm` on a loopback, without ROS

Standard library and websockets (from 10.4, Debian's) alone; png needs pillow.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ros_arm
import websockets
from ros_backends import LoopbackRos, Message, RosError, RospyRos

MAX_BYTES = 10_000_000


class Bridge:
    """The server, on an event loop in a thread of its own.

    Args:
        ros: what is bridged.
        reports: whether errors are sent as status messages; the protocol says so, few bridges do.

    Attributes:
        port: where it listens.
        log: its errors.
        received: every message of every client.
    """

    def __init__(self, ros: Any, port: int = 0, reports: bool = False) -> None:
        self.ros, self.reports = ros, reports
        self.log: list[str] = []
        self.received: list[Message] = []
        self.sessions: list[_Session] = []
        self._loop = asyncio.new_event_loop()
        self._running = threading.Event()
        self._resume = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()
        assert self._running.wait(10)

    def pause(self) -> None:
        """Stop as SIGSTOP does: the kernel goes on to accept what is sent."""
        self._resume.clear()
        self._loop.call_soon_threadsafe(self._resume.wait)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._resume.set()

    def send(self, data: str | bytes) -> None:
        """Send raw data to every client."""
        for session in self.sessions:
            asyncio.run_coroutine_threadsafe(session.socket.send(data), self._loop).result(5)

    def stop(self) -> None:
        """Cut every connection and end."""
        self._resume.set()
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)

    def _run(self, port: int) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(port))

    async def _serve(self, port: int) -> None:
        self._done = asyncio.Event()
        options = {"max_size": MAX_BYTES, "compression": None}
        async with websockets.serve(self._session, "127.0.0.1", port, **options) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._running.set()
            await self._done.wait()
            for session in self.sessions:
                session.socket.transport.abort()

    async def _session(self, socket: Any) -> None:
        session = _Session(self, socket, self._loop)
        self.sessions.append(session)
        try:
            async for data in socket:
                session.take(data)
        except websockets.ConnectionClosed:
            pass
        finally:
            self.sessions.remove(session)
            session.close()


class _Session:
    """One client."""

    def __init__(self, bridge: Bridge, socket: Any, loop: Any) -> None:
        self.bridge, self.socket, self._loop = bridge, socket, loop
        self._reports = False
        self._advertised: set[str] = set()
        self._subscriptions: dict[str, Any] = {}

    def take(self, data: str | bytes) -> None:
        """Do what a client's message says; errors go into the log, not to the client."""
        try:
            message = json.loads(data)
            self.bridge.received.append(message)
            handler = getattr(self, f"_{message['op']}", None)
            if handler is None:
                raise RosError(f"unknown operation {message['op']}")
            handler(message)
        except (RosError, ValueError, KeyError, TypeError) as error:
            self.bridge.log.append(f"{type(error).__name__}: {error}")
            if self._reports:
                self._post({"op": "status", "level": "error", "msg": str(error)}, "none")

    def close(self) -> None:
        """Listen no more."""
        for topic, callback in self._subscriptions.items():
            self.bridge.ros.unsubscribe(topic, callback)

    def _set_level(self, message: Message) -> None:
        self._reports = self.bridge.reports and message["level"] in ("error", "warning", "info")

    def _advertise(self, message: Message) -> None:
        self.bridge.ros.advertise(message["topic"], message["type"])
        self._advertised.add(message["topic"])

    def _unadvertise(self, message: Message) -> None:
        self._advertised.discard(message["topic"])

    def _publish(self, message: Message) -> None:
        if message["topic"] not in self._advertised:
            raise RosError(f"{message['topic']} is not advertised")
        self.bridge.ros.publish(message["topic"], message["msg"])

    def _subscribe(self, message: Message) -> None:
        callback = _Latest(self, message)
        self.bridge.ros.subscribe(message["topic"], message["type"], callback)
        self._subscriptions[message["topic"]] = callback

    def _unsubscribe(self, message: Message) -> None:
        self.bridge.ros.unsubscribe(message["topic"], self._subscriptions.pop(message["topic"]))

    def _call_service(self, message: Message) -> None:
        reply = {"op": "service_response", "id": message.get("id"), "service": message["service"]}
        try:
            reply |= {"values": self.bridge.ros.call(message["service"], message["args"])}
            reply |= {"result": True}
        except RosError as error:
            reply |= {"values": str(error), "result": False}
        self._post(reply, "none")

    def _post(self, message: Message, compression: str) -> None:
        data = encode(message, compression)
        asyncio.run_coroutine_threadsafe(self.socket.send(data), self._loop)


class _Latest:
    """A subscription with a queue of one: the newest message, no faster than the throttle."""

    def __init__(self, session: _Session, options: Message) -> None:
        self._session, self._options = session, options
        self._pause_s = options.get("throttle_rate", 0) / 1e3
        self._waiting: Message | None = None
        self._lock = threading.Lock()
        self._sent_s = 0.0

    def __call__(self, message: Message) -> None:
        with self._lock:
            scheduled = self._waiting is not None
            self._waiting = message
        if not scheduled:
            self._session._loop.call_soon_threadsafe(self._schedule)

    def _schedule(self) -> None:
        wait_s = max(0.0, self._sent_s + self._pause_s - time.monotonic())
        self._session._loop.call_later(wait_s, self._send)

    def _send(self) -> None:
        with self._lock:
            message, self._waiting = self._waiting, None
        self._sent_s = time.monotonic()
        outgoing = {"op": "publish", "topic": self._options["topic"], "msg": message}
        self._session._post(outgoing, self._options.get("compression", "none"))


def encode(message: Message, compression: str) -> str | bytes:
    """A message on its way to the client."""
    if compression == "cbor":
        return to_cbor(message)
    text = json.dumps(for_json(message))
    if compression != "png":
        return text
    from PIL import Image

    # RGB pixels, about as wide as high, padded with line ends.
    data = text.encode()
    width = max(1, math.isqrt(len(data) // 3))
    height = -(-len(data) // (3 * width))
    image = Image.frombytes("RGB", (width, height), data.ljust(3 * width * height, b"\n"))
    file = io.BytesIO()
    image.save(file, "PNG")
    return json.dumps({"op": "png", "data": base64.b64encode(file.getvalue()).decode()})


def for_json(value: Any) -> Any:
    """Bytes in base64, what is not finite as null, as the real bridge does."""
    if isinstance(value, dict):
        return {key: for_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [for_json(entry) for entry in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_cbor(value: Any) -> bytes:
    """CBOR as rosbridge writes it: lists of floats are typed arrays (tag 86)."""
    if isinstance(value, dict):
        parts = [to_cbor(part) for item in value.items() for part in item]
        return _head(5, len(value)) + b"".join(parts)
    if isinstance(value, list) and value and all(isinstance(entry, float) for entry in value):
        return _head(6, 86) + to_cbor(struct.pack(f"<{len(value)}d", *value))
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(to_cbor(entry) for entry in value)
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, bool) or value is None:
        return {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
    return _head(0, value) if value >= 0 else _head(1, -1 - value)


def _head(kind: int, count: int) -> bytes:
    for low, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if count < 24:
            return bytes([kind << 5 | count])
        if count < 1 << (8 * size):
            return bytes([kind << 5 | low]) + count.to_bytes(size, "big")
    raise ValueError(count)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("images", type=Path, nargs="*")
    parser.add_argument("--rospy", action="store_true")
    options = parser.parse_args()
    ros = RospyRos("layer") if options.rospy else LoopbackRos()
    arm = ros_arm.Arm(ros, [path.read_bytes() for path in options.images])
    if not options.rospy:
        arm.start()
    print(Bridge(ros, options.port).port, flush=True)
    # Lines for the loopback's arm: the name of a fault, or "tell".
    for line in sys.stdin:
        if line.strip() != "tell":
            ros_arm.FAULTS[line.strip()](arm)
        told = {"position": arm.position, "target": arm.target, "commands": arm.points}
        print(json.dumps(told), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
