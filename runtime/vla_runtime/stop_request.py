"""How a person stops a run: SIGINT, SIGTERM, a key, or a terminal that is closed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

_STDIN = 0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""By which a run is asked to stop; its child processes leave them to the control loop."""
_KEYS = {"q": "key q", " ": "space bar"}


@contextmanager
def interruptible() -> Iterator[None]:
    """Signals to stop raise KeyboardInterrupt: before a robot is connected nothing has to brake.

    Also where SIGINT is ignored, as in a job that a shell script has put into the background:
    whoever sends it does not want a robot to move.
    """
    before = _handle(_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Take all signals to stop; what took them before."""
    # Under nohup a run goes on without its terminal.
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [n for n in STOP_SIGNALS if not (ignored and n == signal.SIGHUP)]
    return {number: signal.signal(number, handler) for number in numbers}


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


class StopRequest:
    """Notes that somebody wants the run to stop; as a context, it listens while it is open.

    Signals ask, they do not interrupt: the loop looks at `reason` once a period and stops through
    the safety gate.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._waits = False
        self._before: dict[int, Any] = {}
        self._terminal: list[Any] | None = None
        self._keyboard = select.poll()

    def __enter__(self) -> Self:
        self._before = _handle(self._signalled)
        # A job in the background must not touch the terminal: the kernel would stop it.
        if os.isatty(_STDIN) and os.tcgetpgrp(_STDIN) == os.getpgrp():
            self._terminal = termios.tcgetattr(_STDIN)
            tty.setcbreak(_STDIN)  # keys arrive without Enter; Ctrl-C still is SIGINT
            self._keyboard.register(_STDIN, select.POLLIN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal is not None:
            with contextlib.suppress(termios.error):  # it has been closed
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._terminal)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def how(self) -> str:
        """What a person can do, for a message."""
        keys = "" if self._terminal is None else f"{', '.join(_KEYS.values())}, "
        return f"{keys}Ctrl-C or SIGTERM"

    def reason(self) -> str | None:
        """Who wants the run to stop; None while nobody does. Never waits."""
        if self._terminal is not None and self._keyboard.poll(0):
            with contextlib.suppress(OSError):  # a closed terminal; SIGHUP says so
                for key in os.read(_STDIN, 64).decode(errors="replace"):
                    self._reason = self._reason or _KEYS.get(key)
        return self._reason

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For a call that may never return, with nothing in motion: a second signal interrupts it.

        Raises:
            KeyboardInterrupt: the call was interrupted.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._waits:
            if self._reason is not None:
                raise KeyboardInterrupt
            os.write(2, b"stopping once the robot has answered; once more to give it up\n")
        self._reason = self._reason or signal.Signals(number).name
