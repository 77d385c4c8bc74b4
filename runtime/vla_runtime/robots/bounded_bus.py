"""Bounds in time for the serial buses of LeRobot's drivers (Feetech, Dynamixel).

What the drivers do, and what is done about it here:

- A lost reply is waited for 160 ms and more, in a loop that spins: an exchange ends at one
  deadline, retries included, and sleeps until then.
- What is flushed before a request is the output. A reply that comes late is therefore read as the
  answer to the next request, with success: old input is thrown away. As it may still be on its way,
  a failed exchange is followed by a ping, and all that comes before its reply is thrown away, too.
- Time-outs are measured on the wall clock, which may jump: here on the monotonic one.
- Sending may block without end: what the port does not take at once is an error.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from vla_runtime.robots.feetech_bus import PING, PacketReader, packet

_PACKET_SHARE = 0.4
"""Of an exchange's time, for the replies to one request: at 1 Mbit/s those of six servos take
0.5 ms, so that 4 of 10 ms are plenty and leave room for another try."""
_REPLACED = (
    "readPort",
    "writePort",
    "clearPort",
    "setPacketTimeout",
    "setPacketTimeoutMillis",
    "isPacketTimeout",
)
_BARE_LENGTH = 2
"""Length byte of a reply without data, such as that to a ping; one with a position has 4."""


class BoundedBus:
    """Changes the open port of a bus so that every exchange ends in time.

    Args:
        bus: a `lerobot.motors.motors_bus.SerialMotorsBus` that is connected.
        is_feetech: whether it speaks Feetech's protocol 0, in which the ping after a failure is
            sent; other buses have their old input thrown away and no more.
        clock: seconds, monotonic.
    """

    def __init__(self, bus: Any, is_feetech: bool, clock: Callable[[], float] = time.monotonic):
        self.bus = bus
        self._is_feetech = is_feetech
        self._clock = clock
        self._deadline_s = self._packet_deadline_s = self._packet_s = 0.0
        # Requests since `exchange` began, and whether all of their replies have come.
        self._sent, self._in_step = 0, True
        port = self._port = bus.port_handler
        # Attributes of the instance hide the methods of its class from the driver.
        self._drivers_own = {name: getattr(port, name) for name in _REPLACED}
        port.readPort = self._read
        port.writePort = self._write
        port.clearPort = lambda: None  # it waits until everything is sent, however long
        port.setPacketTimeout = port.setPacketTimeoutMillis = self._start_packet
        port.isPacketTimeout = lambda: self._clock() >= self._packet_deadline_s

    def release(self) -> None:
        """Give the port back to its driver, without bounds and without old input."""
        for name, method in self._drivers_own.items():
            setattr(self._port, name, method)
        self._port.is_using = False
        self._port.ser.reset_input_buffer()

    @contextlib.contextmanager
    def exchange(self, timeout_s: float, expects_reply: bool) -> Iterator[None]:
        """What is done with the bus inside ends within this time, or raises.

        Args:
            timeout_s: all tries together.
            expects_reply: whether anything is read. Goals are not acknowledged, so they are sent
                whatever has become of replies.

        Raises:
            ConnectionError: after a failure before, the ping is not answered in time.
        """
        self._deadline_s = self._clock() + timeout_s
        self._packet_s = _PACKET_SHARE * timeout_s
        self._port.is_using = False  # left behind by an exchange that was broken off
        if not expects_reply:
            yield
            return
        self._port.ser.reset_input_buffer()
        if self._is_feetech and not self._in_step:
            self._synchronise()
        self._sent, self._in_step = 0, False
        yield
        # After a retry the replies of the first try may still come.
        self._in_step = self._sent <= 1

    def _synchronise(self) -> None:
        """Throw everything away that comes before the reply to a ping: replies keep their order."""
        servo = self.bus.ids[-1]
        reader = PacketReader()
        self._start_packet()
        self._write(packet(servo, PING))
        while self._clock() < self._packet_deadline_s:
            for body in reader.feed(self._read(64)):
                if body[0] == servo and body[1] == _BARE_LENGTH:
                    return
        raise ConnectionError(f"{self.bus.port}: servo {servo} does not answer a ping")

    def _start_packet(self, length_or_ms: float = 0) -> None:
        # The driver's own figure, of the packet's length or in milliseconds, is 50 ms and more.
        self._packet_deadline_s = min(self._clock() + self._packet_s, self._deadline_s)

    def _read(self, length: int) -> bytes:
        left_s = min(self._packet_deadline_s, self._deadline_s) - self._clock()
        if left_s <= 0:  # also on a bus that never falls silent
            return b""
        select.select([self._port.ser.fileno()], [], [], left_s)
        return self._drivers_own["readPort"](length)

    def _write(self, data: Any) -> int:
        # pyserial's own would wait; what the port does not take at once is an error here.
        self._sent += 1
        return os.write(self._port.ser.fileno(), bytes(data))
