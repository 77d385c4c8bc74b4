"""Feetech's serial bus seen from the servos: packets in, replies out, registers between.

Protocol 0 of the STS and SMS series. Instruction: FF FF id length instruction parameters checksum;
reply: FF FF id length error parameters checksum. The checksum is the inverted sum of everything
after the header. Source: Feetech's manual of the communication protocol, and the tables of
`lerobot.motors.feetech`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

PING, READ, WRITE = 0x01, 0x02, 0x03
SYNC_READ, SYNC_WRITE = 0x82, 0x83
BROADCAST = 0xFE
HEADER = b"\xff\xff"
_SHORTEST = 6

# Addresses of registers; words take two bytes, the lower first.
FIRMWARE, MODEL_NUMBER, SERVO_ID = 0, 3, 5
MIN_POSITION, MAX_POSITION, PHASE, HOMING_OFFSET = 9, 11, 18, 31
TORQUE_ENABLE, GOAL_POSITION, LOCK, PRESENT_POSITION = 40, 42, 55, 56
_SIZE = 128
_STS3215 = 777
# Bit of the sign of registers that hold one; all others have none.
SIGN_BITS = {HOMING_OFFSET: 11, GOAL_POSITION: 15, PRESENT_POSITION: 15}


def checksum(body: bytes) -> int:
    """Of everything between the header and the checksum itself."""
    return ~sum(body) & 0xFF


def packet(servo: int, code: int, parameters: bytes = b"") -> bytes:
    """An instruction, or a reply whose code is the error."""
    body = bytes([servo, len(parameters) + 2, code]) + parameters
    return HEADER + body + bytes([checksum(body)])


class PacketReader:
    """Packets out of a stream of bytes; what is none is skipped, and so are wrong checksums."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The packets that are complete with these bytes, each without header and checksum."""
        self._buffer += data
        while True:
            start = self._buffer.find(HEADER)
            # A lone FF at the end may be the first half of a header.
            del self._buffer[: max(len(self._buffer) - 1, 0) if start < 0 else start]
            if len(self._buffer) < _SHORTEST or len(self._buffer) < self._buffer[3] + 4:
                return
            end = self._buffer[3] + 4
            body = bytes(self._buffer[2 : end - 1])
            # FF FF FF: the first is noise. A length below 2 holds no code and no checksum.
            if (
                self._buffer[2] == 0xFF
                or end < _SHORTEST
                or checksum(body) != self._buffer[end - 1]
            ):
                del self._buffer[0]
                continue
            del self._buffer[:end]
            yield body


class Servo:
    """Registers of one servo.

    Args:
        servo: its number on the bus.
        model_number: what it says it is; an STS3215 by default.
    """

    def __init__(self, servo: int, model_number: int = _STS3215):
        self.registers = bytearray(_SIZE)
        self.registers[SERVO_ID] = servo
        self.registers[FIRMWARE : FIRMWARE + 2] = bytes([3, 10])
        self.write_word(MODEL_NUMBER, model_number)
        self.write_word(MAX_POSITION, 4095)

    def word(self, address: int) -> int:
        """A register of two bytes, with its sign where it has one."""
        value = int.from_bytes(self.registers[address : address + 2], "little")
        bit = SIGN_BITS.get(address)
        if bit is None or not value >> bit & 1:
            return value
        return -(value & ~(1 << bit))

    def write_word(self, address: int, value: int) -> None:
        """Set a register of two bytes."""
        encoded = value if value >= 0 else -value | 1 << SIGN_BITS[address]
        self.registers[address : address + 2] = encoded.to_bytes(2, "little")

    @property
    def torque(self) -> bool:
        """Whether the motor drives."""
        return bool(self.registers[TORQUE_ENABLE])

    @property
    def goal(self) -> int:
        """Where the motor drives to: the goal, cut to its own position limits."""
        low, high = self.word(MIN_POSITION), self.word(MAX_POSITION)
        return min(max(self.word(GOAL_POSITION), low), high)


class Bus:
    """What answers on the bus.

    Args:
        servos: number on the bus → servo.
    """

    def __init__(self, servos: Mapping[int, Servo]):
        self.servos = dict(servos)

    def answer(self, body: bytes) -> list[bytes]:
        """Execute one instruction; the replies, in the order in which they come."""
        servo, code, parameters = body[0], body[2], body[3:]
        if code == SYNC_READ and len(parameters) >= 2:
            address, length = parameters[:2]
            return [self._read(n, address, length) for n in parameters[2:] if n in self.servos]
        if code == SYNC_WRITE and len(parameters) >= 2:
            self._sync_write(parameters[0], parameters[1], parameters[2:])
            return []
        addressed = list(self.servos) if servo == BROADCAST else [servo]
        replies = [self._single(n, code, parameters) for n in addressed if n in self.servos]
        # Only a ping is answered by everybody.
        return replies if servo != BROADCAST or code == PING else []

    def _single(self, servo: int, code: int, parameters: bytes) -> bytes:
        if code == READ and len(parameters) == 2:
            return self._read(servo, *parameters)
        if code == WRITE and parameters:
            self._write(servo, parameters[0], parameters[1:])
        return packet(servo, 0)

    def _read(self, servo: int, address: int, length: int) -> bytes:
        return packet(servo, 0, bytes(self.servos[servo].registers[address : address + length]))

    def _write(self, servo: int, address: int, data: bytes) -> None:
        if address + len(data) <= _SIZE:
            self.servos[servo].registers[address : address + len(data)] = data

    def _sync_write(self, address: int, length: int, data: bytes) -> None:
        stride = length + 1  # its number, then its data
        for start in range(0, len(data) - length, stride):
            servo = data[start]
            if servo in self.servos:
                self._write(servo, address, data[start + 1 : start + stride])
