"""Hostile messages to a real server: each is answered or refused, and it stays as it was."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy
from policy_server import TOKEN, fields_of, observe, start_process
from test_server_messages import ARRAYS, BOMBS
from vla_runtime.server.authentication import authorization
from vla_runtime.server.messages import unpack_reply
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

# The client's masks come from `random`, which hypothesis takes for a strategy's.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")

KEYS = [*fields_of(observe()), "time_s", "reset", "inpaint_target", "inpaint_weight", "endpoint"]
RECORDED = [
    msgpack_numpy.packb(fields_of(observe(seed)) | extra)
    for seed, extra in enumerate(
        ({}, {"reset": True}, {"time_s": 1.5}, {"observation.state": np.zeros(2)})
    )
]
# First bytes of lists, maps, bytes, texts and types of one's own that declare a length.
LONG = b"\xc4\xc5\xc6\xc7\xc8\xc9\xd4\xd8\xd9\xda\xdb\xdc\xdd\xde\xdf"
MESSAGES_AN_EXAMPLE = 20  # of hypothesis, whose own work costs more than theirs


class Attacker:
    """One client that sends anything, and checks what comes back.

    Args:
        address: of the server.
        pid: of its process.
    """

    def __init__(self, address: str, pid: int):
        self.address, self._pid = address, pid
        self.sent = self.answered = self.closed = 0
        self._connection: ClientConnection | None = None

    def connection(self) -> ClientConnection:
        """An open one."""
        if self._connection is None:
            headers = {"Authorization": authorization(TOKEN)}
            self._connection = connect(self.address, additional_headers=headers).__enter__()
            assert "contract" in unpack_reply(self._connection.recv(20))
        return self._connection

    def send(self, message: bytes) -> None:
        """It is answered with a chunk or a line of text, or is too long and ends the connection."""
        self.sent += 1
        try:
            self.connection().send(message)
            reply = self.connection().recv(20)
        except ConnectionClosed as closed:
            self._connection = None
            if closed.rcvd is None or closed.rcvd.code != 1009:
                raise
            self.closed += 1
            return
        if isinstance(reply, str):
            assert "\n" not in reply
            assert len(reply) < 2000
            return
        actions = unpack_reply(reply)["actions"]
        assert actions.shape == (4, 3)
        assert np.isfinite(actions).all()
        self.answered += 1

    def knock(self, randomly: random.Random) -> None:
        """Whoever brings no token gets no answer: another token, none, or no handshake at all."""
        wrong = list(TOKEN)
        wrong[randomly.randrange(len(wrong))] = randomly.choice("!?*")  # none of them is in it
        for headers in ({"Authorization": authorization("".join(wrong))}, {}):
            with pytest.raises(InvalidStatus) as refused:
                connect(self.address, additional_headers=headers)
            assert refused.value.response.status_code == 401
        host, port = self.address.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port)), 20) as raw:
            raw.sendall(randomly.choice((b"", b"GET / HTTP/1.1\r\n")) + randomly.randbytes(200))
            raw.shutdown(socket.SHUT_WR)
            assert b" 101 " not in raw.recv(4096)

    def resident_bytes(self) -> int:
        """Memory of the server."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        [line] = [line for line in lines if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024


@pytest.fixture
def attacker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacker]:
    """Of a server that ends in the regular way afterwards, without a word on standard error."""
    monkeypatch.setenv("VLA_TOKEN", TOKEN)
    log = tmp_path / "log"
    with log.open("w") as file:
        process, address = start_process(stderr=file)
        try:
            attacking = Attacker(address, process.pid)
            yield attacking
            observation = observe()
            with connect(
                address, additional_headers={"Authorization": authorization(TOKEN)}
            ) as client:
                client.recv()
                client.send(msgpack_numpy.packb(fields_of(observation)))
                actions = unpack_reply(client.recv(20))["actions"]
            assert actions[0, 1] == pytest.approx(observation.proprio.mean())
            if attacking._connection is not None:
                attacking._connection.close()
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0
    assert log.read_text() == ""


def mutate(message: bytes, randomly: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a cut, a piece of another message, or a header."""
    data = bytearray(message)
    for _ in range(randomly.randint(1, 4)):
        # Most of a message is pixels: half of the changes go where its structure is.
        end = len(data) if randomly.random() < 0.5 else min(len(data), 120)
        at = randomly.randrange(end) if end else 0
        match randomly.randrange(6):
            case 0 if data:
                data[at] ^= 1 << randomly.randrange(8)
            case 1 if data:
                data[at] = randomly.randrange(256)
            case 2:
                del data[at : at + randomly.randint(1, 64)]
            case 3:
                other = randomly.choice(RECORDED)
                begin = randomly.randrange(len(other))
                data[at:at] = other[begin : begin + randomly.randint(1, 200)]
            case 4:
                # Lists, maps, bytes, texts and types of one's own that declare a length.
                head = randomly.choice(
                    b"\xc4\xc5\xc6\xc7\xc8\xc9\xd4\xd8\xd9\xda\xdb\xdc\xdd\xde\xdf"
                )
                data[at:at] = bytes([head]) + randomly.randbytes(randomly.randint(0, 5))
            case _:
                data[at:at] = randomly.choice((b"\x91", b"\x81\xa1a", b"\xc1")) * 2000
    return bytes(data)


def messages() -> st.SearchStrategy[bytes]:
    """Messages of the protocol with wrong parts, and any msgpack at all."""
    scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    dtypes = st.sampled_from(["|u1", "<f4", "<f8", "|O", "|V4", "u1," * 99, ">f8", "f4,f4"])
    sizes = st.integers(-(2**63), 2**63) | st.sampled_from([0, 1, 2, 3, 4, 6, 8, 2**40])
    array = st.fixed_dictionaries(
        {
            b"__ndarray__": st.booleans() | st.just(True),
            b"data": st.binary(max_size=64) | st.integers(0, 200).map(bytes),
            b"dtype": dtypes | st.text(max_size=5),
            b"shape": st.lists(sizes, max_size=6),
        }
    )
    scalar = st.fixed_dictionaries(
        {b"__npgeneric__": st.just(True), b"data": scalars, b"dtype": dtypes}
    )
    types = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
    times = st.builds(msgpack.Timestamp, st.integers(0, 2**34 - 1), st.integers(0, 999_999_999))
    leaves = scalars | st.binary(max_size=64) | array | scalar | types | times
    trees = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
        ),
        max_leaves=8,
    )
    good = {key: msgpack.unpackb(msgpack_numpy.packb(v)) for key, v in fields_of(observe()).items()}
    changed = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), trees, max_size=3)
    proprio = st.lists(st.floats(), min_size=2, max_size=2).map(np.array)
    finite = proprio.map(lambda values: {"observation.state": msgpack_numpy.pack_array(values)})
    almost = (changed | finite).map(lambda changes: msgpack.packb(good | changes))
    return almost | trees.map(msgpack.packb) | st.binary(max_size=200)


def attack(attacker: Attacker, count: int) -> None:
    """Half of the messages are mutated ones, half are of hypothesis."""
    randomly = random.Random(0)
    for message in [*BOMBS.values(), *map(msgpack.packb, ARRAYS.values())]:
        attacker.send(message)
    for number in range(count // 2):
        attacker.send(mutate(randomly.choice(RECORDED), randomly))
        if number % 200 == 0:
            attacker.knock(randomly)

    batch = st.lists(messages(), min_size=MESSAGES_AN_EXAMPLE, max_size=MESSAGES_AN_EXAMPLE)

    @settings(
        max_examples=count // 2 // MESSAGES_AN_EXAMPLE,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(batch)
    def of_hypothesis(batch: list[bytes]) -> None:
        for message in batch:
            attacker.send(message)

    of_hypothesis()


def test_hostile_messages(attacker: Attacker) -> None:
    """No crash, no answer without a token, no word in the log; some are valid after all."""
    attack(attacker, 2_000)
    assert attacker.sent >= 2_000
    assert attacker.answered > 50
    assert attacker.closed > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundred_thousand_hostile_messages(attacker: Attacker) -> None:
    """And memory is flat within 5%, after a first thousand has filled the allocator's pools."""
    attack(attacker, 1_000)
    before = attacker.resident_bytes()
    attack(attacker, 100_000)
    after = attacker.resident_bytes()
    print(
        f"{attacker.sent} messages: {attacker.answered} answered, {attacker.closed} too long; "
        f"resident {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    )
    assert after < 1.05 * before
