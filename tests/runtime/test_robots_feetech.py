"""The servos' bus, the arm behind it, and the faults of the emulator."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from robot_doubles import Clock
from vla_runtime.robots import feetech_bus as feetech
from vla_runtime.robots.feetech_bus import Bus, PacketReader, Servo, checksum, packet
from vla_runtime.robots.so101_arm import COUNTS_PER_RAD, JOINTS, So101Arm, packaged_model
from vla_runtime.robots.so101_emulator import So101Emulator, apply_line, serve

# From Feetech's manual: read 2 bytes at 56 of servo 1, and an answer of 2048.
READ_POSITION = bytes([0xFF, 0xFF, 0x01, 0x04, 0x02, 0x38, 0x02, 0xBE])
POSITION_2048 = bytes([0xFF, 0xFF, 0x01, 0x04, 0x00, 0x00, 0x08, 0xF2])
PING_ALL = packet(feetech.BROADCAST, feetech.PING)


def bodies(data: bytes) -> list[bytes]:
    """Packets of a whole stream."""
    return list(PacketReader().feed(data))


def sync_read(address: int, length: int, *servos: int) -> bytes:
    """Body of a sync read."""
    [body] = bodies(packet(feetech.BROADCAST, feetech.SYNC_READ, bytes([address, length, *servos])))
    return body


def test_packets_are_those_of_the_manual() -> None:
    """Byte for byte, and the checksum is the inverted sum."""
    assert packet(1, feetech.READ, bytes([56, 2])) == READ_POSITION
    assert packet(1, 0, bytes([0x00, 0x08])) == POSITION_2048
    assert checksum(READ_POSITION[2:-1]) == 0xBE


def test_a_stream_in_any_pieces_gives_the_same_packets() -> None:
    """With noise between packets, a wrong checksum, and headers inside of data."""
    rng = random.Random(0)
    good = [packet(n, feetech.WRITE, bytes([42, 0xFF, 0xFF, n])) for n in range(1, 6)]
    # Without a header inside: nobody can tell that from the beginning of a packet.
    broken = READ_POSITION[:-1] + bytes([READ_POSITION[-1] ^ 1])
    stream = b"\x00\xff" + good[0] + b"\xff" + good[1] + broken + b"ab" + b"".join(good[2:])
    expected = [part[2:-1] for part in good]
    assert bodies(stream) == expected
    for _ in range(50):
        reader, found, rest = PacketReader(), [], stream
        while rest:
            cut = rng.randint(1, 7)
            found += reader.feed(rest[:cut])
            rest = rest[cut:]
        assert found == expected


def test_random_bytes_do_no_harm() -> None:
    """Whatever arrives, the bus answers packets or nothing, and real packets still get through."""
    rng = random.Random(1)
    bus, reader = Bus({1: Servo(1)}), PacketReader()
    for _ in range(2000):
        noise = rng.randbytes(rng.randint(1, 30))
        framed = packet(rng.randint(0, 254), rng.randint(0, 255), noise)
        for body in reader.feed(rng.choice((noise, framed))):
            assert all(bodies(reply) for reply in bus.answer(body))
    # A length byte of noise may claim what follows: at most one packet of 255 bytes.
    assert list(reader.feed(READ_POSITION * 40))[-1] == READ_POSITION[2:-1]
    assert len(bus.servos[1].registers) == 128


def test_registers_are_read_and_written() -> None:
    """One servo, all servos, several at once; unknown servos are silent."""
    bus = Bus({n: Servo(n) for n in (1, 2)})
    assert [bodies(reply) for reply in bus.answer(bodies(PING_ALL)[0])] == [
        [bytes([1, 2, 0])],
        [bytes([2, 2, 0])],
    ]
    goals = bytes([1, 0x00, 0x08, 9, 0, 0, 2, 0x10, 0x04])
    write = packet(feetech.BROADCAST, feetech.SYNC_WRITE, bytes([feetech.GOAL_POSITION, 2]) + goals)
    assert bus.answer(bodies(write)[0]) == []
    assert [servo.word(feetech.GOAL_POSITION) for servo in bus.servos.values()] == [2048, 1040]
    replies = bus.answer(sync_read(feetech.GOAL_POSITION, 2, 2, 7, 1))
    assert [bodies(reply)[0] for reply in replies] == [
        bytes([2, 4, 0, 0x10, 0x04]),
        bytes([1, 4, 0, 0x00, 0x08]),
    ]
    assert bus.answer(bodies(packet(7, feetech.PING))[0]) == []
    torque = packet(2, feetech.WRITE, bytes([feetech.TORQUE_ENABLE, 1]))
    assert bus.answer(bodies(torque)[0]) == [packet(2, 0)]
    assert [servo.torque for servo in bus.servos.values()] == [False, True]


def test_words_keep_their_sign_and_goals_their_limits() -> None:
    """Sign and magnitude, and the firmware's own position limits."""
    servo = Servo(1)
    for value in (-2000, -1, 0, 2047):
        servo.write_word(feetech.HOMING_OFFSET, value)
        assert servo.word(feetech.HOMING_OFFSET) == value
    servo.write_word(feetech.MIN_POSITION, 1000)
    servo.write_word(feetech.MAX_POSITION, 3000)
    for asked, held in ((500, 1000), (2000, 2000), (4000, 3000), (-3000, 1000)):
        servo.write_word(feetech.GOAL_POSITION, asked)
        assert servo.goal == held


@pytest.fixture(scope="module")
def arm() -> So101Arm:
    """The packaged arm; loading its meshes takes a while."""
    return So101Arm(packaged_model())


@pytest.fixture
def clock() -> Clock:
    """Set by hand."""
    return Clock()


@pytest.fixture
def emulator(arm: So101Arm, clock: Clock) -> Iterator[So101Emulator]:
    """An emulator whose driver is the test."""
    emulator = So101Emulator(arm, clock)
    yield emulator
    emulator.vanish()


def ask(emulator: So101Emulator, instruction: bytes) -> bytes:
    """Send an instruction; what has come back by now."""
    os.write(emulator._other, instruction)
    emulator.receive()
    return received(emulator)


def received(emulator: So101Emulator) -> bytes:
    """What the driver can read now."""
    os.set_blocking(emulator._other, False)
    try:
        return os.read(emulator._other, 4096)
    except BlockingIOError:
        return b""


def test_the_arm_follows_its_goals_and_sinks_without_torque(arm: So101Arm, clock: Clock) -> None:
    """Counts are those of the calibration; torque decides whether a goal moves anything."""
    arm.start(clock())
    shoulder = arm.bus.servos[2]
    for servo in arm.bus.servos.values():
        servo.registers[feetech.TORQUE_ENABLE] = 1
    shoulder.write_word(feetech.GOAL_POSITION, round(2047.5 - 0.5 * COUNTS_PER_RAD))

    def settle(seconds: float) -> float:
        arm.drive()
        for _ in range(round(seconds / 0.2)):
            clock.sleep(0.2)
            arm.advance(clock())
        arm.publish()
        return (shoulder.word(feetech.PRESENT_POSITION) - 2047.5) / COUNTS_PER_RAD

    held = settle(2.0)
    assert held == pytest.approx(-0.5, abs=0.1)
    assert arm.state()["torque"] == [True] * 6
    for servo in arm.bus.servos.values():
        servo.registers[feetech.TORQUE_ENABLE] = 0
    assert abs(settle(2.0) - held) > 0.1, "it sinks"
    calibration = arm.calibration()
    assert list(calibration) == list(JOINTS)
    assert calibration["shoulder_pan"]["id"] == 1
    assert 0 <= calibration["gripper"]["range_min"] < calibration["gripper"]["range_max"] <= 4095


def test_the_bus_answers_on_the_other_end(emulator: So101Emulator) -> None:
    """A ping, and a position that is the arm's."""
    assert ask(emulator, packet(6, feetech.PING)) == packet(6, 0)
    [body] = bodies(ask(emulator, READ_POSITION))
    counts = int.from_bytes(body[3:5], "little")
    position = emulator.state()["position"]
    assert counts == round(2047.5 + position[0] * COUNTS_PER_RAD)


def test_replies_get_lost_and_damaged(emulator: So101Emulator) -> None:
    """As many as were asked for."""
    apply_line(emulator, "drop 2")
    assert [bool(ask(emulator, READ_POSITION)) for _ in range(4)] == [False, False, True, True]
    apply_line(emulator, "corrupt 1")
    damaged, whole = ask(emulator, READ_POSITION), ask(emulator, READ_POSITION)
    assert bodies(damaged) == []
    assert damaged[:-1] == whole[:-1]
    assert len(bodies(whole)) == 1


def test_late_replies_keep_their_order(emulator: So101Emulator, clock: Clock) -> None:
    """What was asked later comes later, too."""
    apply_line(emulator, "delay 1 0.05")
    assert ask(emulator, READ_POSITION) == b""
    assert ask(emulator, packet(6, feetech.PING)) == b""
    assert 0 < emulator.wait_s() <= 0.05
    clock.sleep(0.06)
    emulator.send()
    late = received(emulator)
    assert [body[0] for body in bodies(late)] == [1, 6]


def test_stale_servos_repeat_themselves(emulator: So101Emulator, arm: So101Arm) -> None:
    """The registers stay, whatever the arm does."""
    before = ask(emulator, READ_POSITION)
    apply_line(emulator, "stale 1")
    joint = arm.model.joint("shoulder_pan").qposadr[0]
    arm.data.qpos[joint] += 0.3
    arm.data.actuator_length[0] += 0.3
    assert ask(emulator, READ_POSITION) == before
    apply_line(emulator, "stale 0")
    assert ask(emulator, READ_POSITION) != before


@pytest.mark.parametrize("line", ["burn", "drop", "drop many", "delay 1", ""])
def test_unknown_faults_are_named(emulator: So101Emulator, line: str) -> None:
    """With the valid ones."""
    with pytest.raises(ValueError, match="drop COUNT, corrupt COUNT"):
        apply_line(emulator, line or "  x")


def test_commands_come_in_lines_until_they_end(arm: So101Arm) -> None:
    """Each is answered with the state or an error, and a vanished port is no end."""
    emulator = So101Emulator(arm)
    read_end, write_end = os.pipe()
    answers = io.StringIO()
    os.write(write_end, b"drop 3\nnonsense\nvanish\nstate\n")
    os.close(write_end)
    # Unbuffered, as `main` reads standard input: a buffer would hide lines from `select`.
    with os.fdopen(read_end, "rb", buffering=0) as commands:
        serve(emulator, commands, answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [list(answer) == ["error"] for answer in found] == [False, True, False, False]
    assert found[0]["drop"] == 3
    assert np.shape(found[3]["position"]) == (6,)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(emulator.fileno())
