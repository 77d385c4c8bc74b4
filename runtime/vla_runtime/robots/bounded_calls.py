"""Calls of a driver that may block, each bounded in time by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class BoundedCalls:
    """Runs calls one after another in one thread, and waits for each only so long.

    A call that does not return in time goes on by itself. Until it has returned every further call
    is refused; what it returns is thrown away, so that it is never taken for a later answer.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._last: Future[Any] | None = None
        # Not an executor: Python waits for its threads at exit, and a driver may never return.
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, function: Callable[[], Any], timeout_s: float | None) -> Any:
        """The function's result.

        Args:
            function: what to call.
            timeout_s: how long to wait; None for as long as it takes.

        Raises:
            TimeoutError: it, or the call before it, has not returned in time.
            Exception: whatever the function raises.
        """
        if self._last is not None and not self._last.done():
            raise TimeoutError("the driver has not returned from the call before")
        self._last = Future()
        self._calls.put((self._last, function))
        return self._last.result(timeout_s)

    def _work(self) -> None:
        while True:
            future, function = self._calls.get()
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 (raised again by `Future.result`)
                future.set_exception(error)
