"""A worker process as its parent sees it: it starts, answers, fails with a reason, and ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from vla_runtime.main_guard import NO_MAIN_GUARD, exit_without_main_guard

from sim.worker_channel import WorkerChannel, make_channel

_PATIENCE_S = 5.0


class WorkerError(RuntimeError):
    """A worker process failed or died; the message holds its traceback or how it ended."""


class WorkerProcess:
    """A spawned process that runs `serve(channel, *arguments)`.

    `serve` answers with `channel.send(("ok", result))`. An exception in it reaches the parent as a
    `WorkerError` that holds the traceback. The process ends with its parent.

    Args:
        name: for messages ("worker 0").
        serve: a function of a module, so that the process can import it.
        *arguments: for `serve`.
    """

    def __init__(self, name: str, serve: Callable[..., None], *arguments: Any):
        exit_without_main_guard()
        context = multiprocessing.get_context("spawn")  # a forked child could inherit a GL context
        self._name = name
        self._channel, theirs = make_channel(context)
        self._process = context.Process(target=_run, args=(serve, theirs, arguments), daemon=True)
        self._process.start()
        # Else its end would stay open here, and its death would go unnoticed.
        theirs.pipe.close()

    @property
    def process(self) -> Any:
        """The `multiprocessing.Process`."""
        return self._process

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            WorkerError: the process has died.
        """
        try:
            self._channel.send(message)
        except OSError:
            raise WorkerError(self._how_it_ended()) from None

    def receive(self) -> Any:
        """The result of its next answer.

        Raises:
            WorkerError: it answered with a traceback, or has died.
        """
        try:
            kind, value = self._channel.receive()
        except (EOFError, OSError):
            raise WorkerError(self._how_it_ended()) from None
        if kind == "error":
            raise WorkerError(f"{self._name} failed: {value}")
        return value

    def ask_to_end(self) -> None:
        """Send None, after which `serve` should return."""
        with contextlib.suppress(OSError):  # it has ended already
            self._channel.send(None)

    def join(self) -> None:
        """Wait for its end, and kill it if that takes too long."""
        self._process.join(timeout=_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._channel.pipe.close()

    def _how_it_ended(self) -> str:
        self._process.join(timeout=_PATIENCE_S)
        code = self._process.exitcode
        if code == NO_MAIN_GUARD:
            return (
                'the script that runs lacks a main guard, `if __name__ == "__main__":`. Worker '
                "processes import that script, so what starts them must stand under the guard"
            )
        if code is not None and code < 0:
            # What the kernel does to a process when memory runs out.
            killed = code == -signal.SIGKILL
            hint = ", perhaps out of memory: use fewer workers" if killed else ""
            return f"{self._name} was ended by {signal.Signals(-code).name} ({code}{hint})"
        return f"{self._name} ended with exit code {code}; what it printed before says why"


def _run(serve: Callable[..., None], channel: WorkerChannel, arguments: tuple[Any, ...]) -> None:
    # One thread for the software renderer: the processes are what fills the cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        serve(channel, *arguments)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass  # the parent has gone or is stopping us
    except Exception as error:  # noqa: BLE001 the parent raises it again
        # Our own errors are written to be read; of any other one the place is needed.
        is_ours = type(error).__module__.startswith("sim.")
        with contextlib.suppress(BrokenPipeError):
            channel.send(("error", str(error) if is_ours else f"\n{traceback.format_exc()}"))
