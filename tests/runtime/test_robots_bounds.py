"""What bounds a driver in time: on a serial bus, in a thread, and for images."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from robot_doubles import Clock
from vla_runtime.robots.bounded_bus import BoundedBus
from vla_runtime.robots.bounded_calls import BoundedCalls
from vla_runtime.robots.feetech_bus import PING, packet
from vla_runtime.robots.image_age import ImageAges

PING_6, PONG_6 = packet(6, PING), packet(6, 0)
STALE = packet(6, 0, bytes([0x00, 0x08]))  # a position


class Serial:
    """One end of a socket pair in place of pyserial's port; `line` is the other."""

    def __init__(self) -> None:
        self._end, self.line = os.pipe()
        self.sent, self.out = os.pipe()
        os.set_blocking(self._end, False)
        os.set_blocking(self.sent, False)

    def fileno(self) -> int:
        """To wait for input."""
        return self._end

    def reset_input_buffer(self) -> None:
        """Throw away what has come."""
        while self.read(4096):
            pass

    def read(self, length: int) -> bytes:
        """What has come."""
        try:
            return os.read(self._end, length)
        except BlockingIOError:
            return b""


class Port(SimpleNamespace):
    """As much of `scservo_sdk.PortHandler` as a bus changes."""

    def __init__(self) -> None:
        super().__init__(ser=Serial(), is_using=True)
        self.writePort = self.clearPort = self.setPacketTimeout = None
        self.setPacketTimeoutMillis = self.isPacketTimeout = None
        self.readPort = self.ser.read


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Port:
    """A port on which waiting costs the clock's time and no other."""
    port = Port()

    def wait(readers: list[int], _w: Any, _x: Any, timeout: float) -> None:
        found = port.ser.waiting.pop(0) if port.ser.waiting else b""
        if found:
            os.write(port.ser.line, found)
        else:
            clock.sleep(timeout)

    def write(_fd: int, data: bytes) -> int:
        return real_write(port.ser.out, data)

    real_write = os.write
    port.ser.waiting = []
    monkeypatch.setattr("vla_runtime.robots.bounded_bus.select.select", wait)
    monkeypatch.setattr("vla_runtime.robots.bounded_bus.os", SimpleNamespace(write=write))
    return port


@pytest.fixture
def clock() -> Clock:
    """Set by hand."""
    return Clock()


def bound(port: Port, clock: Clock, is_feetech: bool = True) -> BoundedBus:
    """A bus of servos 1 to 6 on that port."""
    return BoundedBus(SimpleNamespace(port="x", port_handler=port, ids=[1, 6]), is_feetech, clock)


def receive(port: Port, length: int = 6) -> bytes:
    """As the driver receives a packet: until it is there or time is over."""
    port.setPacketTimeout(length)
    found = b""
    while len(found) < length:
        found += port.readPort(length - len(found))
        if port.isPacketTimeout():
            break
    return found


def sent(port: Port) -> bytes:
    """What the bus has sent by itself."""
    try:
        return os.read(port.ser.sent, 4096)
    except BlockingIOError:
        return b""


def test_lost_replies_cost_a_share_and_retries_end_at_the_deadline(
    port: Port, clock: Clock
) -> None:
    """Of 10 ms, a packet is waited for 4; three tries never take more than 10."""
    begin = clock()
    with bound(port, clock).exchange(0.01, True):
        times = []
        for _ in range(4):
            assert receive(port) == b""
            times.append(round(clock() - begin, 6))
    assert times == [0.004, 0.008, 0.01, 0.01]


def test_a_bus_that_never_falls_silent_ends_too(port: Port, clock: Clock) -> None:
    """Bytes that come for ever are no reason to read for ever."""

    def chatter(length: int) -> bytes:
        clock.sleep(0.001)
        return b"\xff" * min(length, 100)

    port.readPort = chatter
    with bound(port, clock).exchange(0.01, True):
        assert 0 < len(receive(port, 10_000)) < 10_000
    assert clock() <= 100.0 + 0.011


def test_old_input_is_thrown_away(port: Port, clock: Clock) -> None:
    """What came late is not the answer to the next request."""
    bus = bound(port, clock)
    os.write(port.ser.line, STALE)
    with bus.exchange(0.01, True):
        port.ser.waiting = [PONG_6]
        assert receive(port) == PONG_6
    assert sent(port) == b"", "nothing had failed: no ping"
    assert not port.is_using


@pytest.mark.parametrize("how", ["raises", "retries"])
def test_after_a_failure_what_is_still_on_its_way_is_thrown_away(
    port: Port, clock: Clock, how: str
) -> None:
    """A ping marks where the new input begins: replies keep their order."""
    bus = bound(port, clock)
    if how == "raises":
        with pytest.raises(ConnectionError, match="lost"), bus.exchange(0.01, True):
            raise ConnectionError("lost")
    else:
        with bus.exchange(0.01, True):
            port.writePort(b"one")
            port.writePort(b"two")
        assert sent(port) == b"onetwo"
    # Late replies arrive only after the flush, in front of the reply to the ping.
    port.ser.waiting = [STALE + STALE[:3], STALE[3:], PONG_6[:2], PONG_6[2:]]
    with bus.exchange(0.01, True):
        assert sent(port) == PING_6
        port.ser.waiting = [PONG_6]
        assert receive(port) == PONG_6
    with bus.exchange(0.01, True):
        assert sent(port) == b"", "in step again"


def test_without_an_answer_to_the_ping_nothing_is_asked(port: Port, clock: Clock) -> None:
    """The bus stays suspect, and the wait bounded."""
    bus = bound(port, clock)
    with pytest.raises(ConnectionError, match="lost"), bus.exchange(0.01, True):
        raise ConnectionError("lost")
    for _ in range(2):
        begin = clock()
        with (
            pytest.raises(ConnectionError, match="servo 6 does not answer a ping"),
            bus.exchange(0.01, True),
        ):
            pytest.fail("asked although out of step")
        assert clock() - begin <= 0.01


def test_commands_are_sent_whatever_has_become_of_replies(port: Port, clock: Clock) -> None:
    """A robot that is not heard can still be slowed down; replies stay suspect."""
    bus = bound(port, clock)
    with pytest.raises(ConnectionError, match="lost"), bus.exchange(0.01, True):
        raise ConnectionError("lost")
    with bus.exchange(0.01, False):
        port.writePort(b"goal")
    assert sent(port) == b"goal"
    port.ser.waiting = [STALE, PONG_6]
    with bus.exchange(0.01, True):
        assert sent(port) == PING_6


def test_other_protocols_get_no_ping(port: Port, clock: Clock) -> None:
    """Dynamixel's servos would not understand it."""
    bus = bound(port, clock, is_feetech=False)
    with pytest.raises(ConnectionError, match="lost"), bus.exchange(0.01, True):
        raise ConnectionError("lost")
    with bus.exchange(0.01, True):
        assert sent(port) == b""


def test_a_released_port_is_its_drivers_again(port: Port, clock: Clock) -> None:
    """To disconnect, a driver may take its time."""
    own = port.readPort
    bus = bound(port, clock)
    assert port.readPort != own
    bus.release()
    assert port.readPort == own
    assert port.clearPort is None


def test_a_call_that_hangs_is_given_up_and_never_answers_later() -> None:
    """Until it returns every call is refused; its result is nobody's."""
    calls, go = BoundedCalls(), threading.Event()
    assert calls(lambda: 1, timeout_s=10.0) == 1
    with pytest.raises(ZeroDivisionError):
        calls(lambda: 1 // 0, timeout_s=10.0)

    def slow() -> int:
        go.wait(60)
        return 2

    with pytest.raises(TimeoutError):
        calls(slow, timeout_s=0.01)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="not returned from the call before"):
        calls(lambda: 3, timeout_s=60.0)
    assert time.monotonic() - begin < 30, "refused at once"
    go.set()
    assert calls._last is not None
    assert calls._last.result(60) == 2
    assert calls(lambda: 4, timeout_s=None) == 4


def frame(value: int) -> dict[str, np.ndarray]:
    """One camera's image of one grey."""
    return {"eye": np.full((2, 2, 3), value, np.uint8)}


def test_an_image_ages_once_the_robot_has_moved() -> None:
    """From the last moment in which it had not."""
    ages = ImageAges(np.array([0.1, np.inf]))
    rest, moved = np.array([0.0, 0.0]), np.array([0.2, 0.0])
    assert ages.oldest_s(frame(1), rest, 10.0) == 10.0
    assert ages.oldest_s(frame(1), rest, 11.0) == 11.0, "a robot at rest looks the same"
    assert ages.oldest_s(frame(1), np.array([0.05, 9.0]), 12.0) == 12.0, "within the tolerance"
    assert ages.oldest_s(frame(1), moved, 13.0) == 12.0
    assert ages.oldest_s(frame(1), moved, 14.0) == 12.0
    assert ages.oldest_s(frame(1), rest, 15.0) == 12.0, "moving back makes it no newer"
    assert ages.oldest_s(frame(2), rest, 16.0) == 16.0
    assert ages.oldest_s({}, rest, 17.0) == 17.0


def test_slow_motion_counts_too_and_memory_may_be_reused() -> None:
    """Small steps add up, and a driver may write into the image that it handed out."""
    ages, image = ImageAges(np.array([0.1])), frame(1)
    for step in range(12):
        oldest = ages.oldest_s(image, np.array([0.01 * step]), 1.0 + step)
    assert oldest == 11.0, "steps 0 to 10 are within 0.1"
    image["eye"][:] = 2
    assert ages.oldest_s(image, np.array([0.5]), 20.0) == 20.0
