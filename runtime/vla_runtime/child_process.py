"""Processes beside the control loop: spawned, never waited for, gone with their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from vla_runtime.stop_request import STOP_SIGNALS

_LONGEST_MESSAGE = 1 << 20
_PATIENCE_S = 0.5
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ChildEndedError(ConnectionError):
    """The process at the other end has ended."""


class MessageSocket:
    """Whole messages of plain data between two processes; a kill never leaves half of one.

    Args:
        end: of a SOCK_SEQPACKET pair.
    """

    def __init__(self, end: socket.socket):
        self._end = end
        # Reserved once: `recv` would map and unmap this much memory for every message, and wait for
        # whoever reads the process's memory map meanwhile (ps, top), up to 20 ms on a busy machine.
        self._buffer = bytearray(_LONGEST_MESSAGE)
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def __reduce__(self) -> tuple[Any, ...]:
        return MessageSocket, (self._end,)

    def send(self, message: dict[str, Any]) -> None:
        """Send without waiting.

        Raises:
            ChildEndedError: the other end is closed.
            BlockingIOError: it has not read what was sent before.
        """
        try:
            self._end.send(msgpack.packb(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildEndedError("the process has ended") from error

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None where none comes in time; without a time it waits for ever.

        Raises:
            ChildEndedError: the other end is closed, and everything it sent was read.
        """
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1e3):
            return None
        try:
            length = self._end.recv_into(self._buffer)
        except ConnectionResetError:
            # Said once when the other end closed with something unread; what it sent comes after.
            length = self._end.recv_into(self._buffer)
        if not length:
            raise ChildEndedError("the process has ended")
        return msgpack.unpackb(memoryview(self._buffer)[:length])

    def end_of_messages(self) -> None:
        """Nothing more will be sent; the other end can still send."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close this end."""
        self._end.close()


class ChildProcess:
    """A spawned process that runs `serve(messages, *arguments)`, and its end of the messages.

    It ignores the signals to stop, which are for the control loop: that ends it. An exception in it
    arrives as a message {"error": text}.

    Args:
        name: for messages ("the inference process").
        serve: a function of a module, so that the process can import it.
        *arguments: for `serve`.
    """

    def __init__(self, name: str, serve: Callable[..., None], *arguments: Any):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._name = name
        self.messages = MessageSocket(ours)
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(serve, MessageSocket(theirs), arguments), name=name, daemon=True
        )
        with _single_threaded():
            self._process.start()
        theirs.close()  # else its death would go unnoticed here

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def how_it_ended(self) -> str:
        """For people; waits for a moment if it has only just ended."""
        self._process.join(timeout=_PATIENCE_S)
        code = self._process.exitcode
        if code is None:
            return f"{self._name} does not answer"
        if code < 0:
            return f"{self._name} was ended by {signal.Signals(-code).name}"
        return f"{self._name} ended with exit code {code}"

    def end(self, patience_s: float = _PATIENCE_S) -> None:
        """Let it see that nothing more comes, and kill it when it takes too long."""
        self.messages.end_of_messages()
        self._process.join(timeout=patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.messages.close()


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """A process started inside computes on one thread: two of them wait for each other under load.

    The libraries read these once, as they are imported, so the process is born with them.
    """
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(serve: Callable[..., None], messages: MessageSocket, arguments: tuple[Any, ...]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        serve(messages, *arguments)
    except ChildEndedError:
        pass  # the parent has gone
    except Exception as error:  # noqa: BLE001 the parent raises it again
        # What a person can mend is written to be read; of any other error the place is needed.
        ours = type(error).__module__.partition(".")[0] in ("vla_runtime", "vla", "sim")
        known = (ours or isinstance(error, (ValueError, OSError))) and str(error)
        text = str(error) if known else traceback.format_exc()
        with contextlib.suppress(OSError):
            messages.send({"error": text[-10_000:]})
