"""SIGKILL at random moments while serving: clients learn of it, the next start works at once."""

from __future__ import annotations

import random
import threading
import time

import pytest
from policy_server import observe, start_process
from vla_runtime.client import RemotePolicy


class Robot(threading.Thread):
    """Asks for decisions until an error, which it keeps.

    Args:
        address: of the server.
    """

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self._remote = RemotePolicy(address)
        self.decisions, self.error, self.ended_s = 0, "", 0.0

    def run(self) -> None:
        """One episode."""
        state = self._remote.initial_state()
        try:
            while True:
                chunk, state = self._remote.decide(observe(self.decisions), state)
                assert chunk.actions[0, 2] == self.decisions
                self.decisions += 1
        except ConnectionError as error:
            self.error, self.ended_s = str(error), time.monotonic()


def kill_repeatedly(times: int) -> tuple[int, float]:
    """Two robots at a time on one port.

    Returns:
        Decisions that were made, and the longest that a robot waited for its error, seconds.
    """
    randomly, port = random.Random(0), 0
    decisions, slowest_s = 0, 0.0
    for _ in range(times):
        process, address = start_process(port)
        port = int(address.rsplit(":", 1)[1])
        robots = [Robot(address) for _ in range(2)]
        for robot in robots:
            robot.start()
        time.sleep(randomly.uniform(0, 0.2))
        process.kill()
        killed_s = time.monotonic()
        process.communicate()
        for robot in robots:
            robot.join(20)
            assert robot.error.startswith(f"{address} is gone"), robot.error
            assert "connect() opens another" in robot.error
            slowest_s = max(slowest_s, robot.ended_s - killed_s)
            decisions += robot.decisions
    return decisions, slowest_s


def test_killed_servers() -> None:
    """Three times; `start_process` fails if the port cannot be had again."""
    decisions, slowest_s = kill_repeatedly(3)
    assert decisions > 0
    assert slowest_s < 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundred_killed_servers() -> None:
    """The same, with figures."""
    decisions, slowest_s = kill_repeatedly(100)
    print(f"{decisions} decisions; the slowest error came {slowest_s * 1e3:.0f} ms after the kill")
    assert slowest_s < 10
