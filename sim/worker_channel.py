"""The connection between a worker process and its parent."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Semaphore
from typing import Any

_LOOK_S = 0.2
"""How often a sleeping end looks whether the other one has died."""


@dataclass(frozen=True)
class Line:
    """One end.

    Messages go through a pipe, but nobody sleeps on it: semaphores wake a process at a fraction of
    the cost (4.7 instead of 5.5 ms for two workers that work 4 ms on two virtual cores).

    Attributes:
        pipe: carries messages both ways.
        come: released by the other end after it has sent.
        gone: to release after sending.
    """

    pipe: Connection
    come: Semaphore
    gone: Semaphore

    def send(self, message: Any) -> None:
        """Send, and wake the other end.

        Raises:
            OSError: the other end has gone.
        """
        self.pipe.send(message)
        self.gone.release()

    def receive(self, spin_s: float = 0.0) -> Any:
        """The next message.

        Args:
            spin_s: how long to look again and again before sleeping.

        Raises:
            EOFError: the other end has gone.
        """
        until = time.perf_counter() + spin_s
        while not self.come.acquire(block=False):
            if time.perf_counter() < until:
                os.sched_yield()
            elif self.come.acquire(timeout=_LOOK_S) or self.pipe.poll():
                break
        return self.pipe.recv()


def make_line(context: BaseContext) -> tuple[Line, Line]:
    """Two ends."""
    ours, theirs = context.Pipe()
    there, back = context.Semaphore(0), context.Semaphore(0)
    return Line(ours, back, there), Line(theirs, there, back)
