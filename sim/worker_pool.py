"""Worker processes that any of several waiting calls may use."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any

from sim.worker_channel import WorkerChannel
from sim.worker_process import WorkerError, WorkerProcess


class WorkerPool:
    """Runs functions in worker processes, as `concurrent.futures.ProcessPoolExecutor` does.

    Unlike that one it holds no named semaphore, so nothing stays in /dev/shm however the processes
    end, and a process that died is reported by how it ended.

    Args:
        workers: processes.
        prepare: called once in each of them, before anything else.
    """

    def __init__(self, workers: int, prepare: Callable[[], None]):
        self._workers = [
            WorkerProcess(f"worker {index}", _serve, prepare) for index in range(workers)
        ]
        self._idle: SimpleQueue[WorkerProcess] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # One thread a process, which only waits for the answer of its worker.
        self._threads = ThreadPoolExecutor(workers)

    def submit[T](self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a worker call `function`, which it must be able to import.

        The future raises what the function raises, or `WorkerError` with the traceback where its
        process has died or that error cannot be sent.
        """
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            worker.send((function, arguments))
            error, result = worker.receive()
        finally:
            # Also one that has died: later calls to it fail with its reason instead of waiting for
            # ever.
            self._idle.put(worker)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Cancel waiting calls, and end the processes once their present ones are done."""
        # First the threads, since they use the channels that are closed below.
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.join()


def _serve(channel: WorkerChannel, prepare: Callable[[], None]) -> None:
    prepare()
    while (call := channel.receive()) is not None:
        channel.send(("ok", _answer(*call)))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """The error that a function raised, and else its result."""
    try:
        return None, function(*arguments)
    except Exception as error:  # noqa: BLE001 raised again in the parent
        text = traceback.format_exc()
        try:
            # Of other people's classes some cannot be sent, and some not be made again.
            ForkingPickler.loads(ForkingPickler.dumps(error))  # pyright: ignore[reportAttributeAccessIssue]
        except Exception:  # noqa: BLE001 whatever their methods raise
            return WorkerError(f"in a worker process:\n{text}"), None
        # A traceback cannot be pickled, so it travels as a note.
        error.add_note(f"In the worker process:\n{text}")
        return error, None
