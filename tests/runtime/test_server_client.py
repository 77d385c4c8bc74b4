"""Our client: a served policy as any other policy, and errors when the server goes."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
from policy_server import (
    SPEC,
    TOKEN,
    CountingPolicy,
    JoiningPolicy,
    observe,
    serving,
    start_process,
)
from vla_runtime.client import RemotePolicy, RemotePolicyError
from vla_runtime.contract import ContractMismatchError, InpaintingPolicy, Observation, RobotPolicy
from vla_runtime.server.messages import pack
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_TOKEN", raising=False)


def test_a_served_policy_decides_as_the_policy_itself() -> None:
    """Every field of the observation arrives, and the chunk comes back bit for bit."""
    seen: list[Observation] = []
    local = CountingPolicy(decided=seen.append)
    with serving(CountingPolicy(decided=seen.append)) as address:
        remote = RemotePolicy(address)
        assert isinstance(remote, RobotPolicy)
        assert (remote.spec, remote.chunk_length) == (local.spec, local.chunk_length)
        near, far = local.initial_state(), remote.initial_state()
        for seed in range(3):
            observation = observe(seed)
            chunk, near = local.decide(observation, near)
            answer, far = remote.decide(observation, far)
            assert np.array_equal(chunk.actions, answer.actions)
            assert answer.actions.flags.writeable
            assert (seen[-1].time_s, seen[-1].instruction) == (0.05 * seed, "lift the block")
            assert seen[-1].proprio.tolist() == seen[-2].proprio.tolist()
        remote.close()


def test_its_memory_is_the_servers() -> None:
    """A new episode begins anew; an old memory is refused, never replaced in silence."""
    with serving() as address:
        remote = RemotePolicy(address)
        first = remote.initial_state()
        _, old = remote.decide(observe(), first)
        chunk, now = remote.decide(observe(), old)
        assert chunk.actions[0, 2] == 1
        for stale in (old, 0, None):
            with pytest.raises(ValueError, match="remembers its last decision alone"):
                remote.decide(observe(), stale)
        chunk, _ = remote.decide(observe(), remote.initial_state())
        assert chunk.actions[0, 2] == 0
        with pytest.raises(ValueError, match="initial_state"):
            remote.decide(observe(), now)
        remote.close()


def test_inpainting_is_served_too() -> None:
    """What real-time chunking needs: the part that runs meanwhile is given."""
    target = np.arange(12, dtype=np.float32).reshape(4, 3)
    weight = np.array([1, 1, 0.5, 0], np.float32)
    with serving(JoiningPolicy()) as address:
        remote = RemotePolicy(address)
        assert isinstance(remote, InpaintingPolicy)
        assert remote.can_inpaint
        _, state = remote.decide(observe(), remote.initial_state())
        chunk, state = remote.inpaint(observe(), state, target, weight)
        assert chunk.actions.tolist() == [*target[:2].tolist(), [9] * 3, [9] * 3]
        assert remote.decide(observe(), state)[0].actions[0, 2] == 2
        remote.close()
    with serving() as address:
        remote = RemotePolicy(address)
        assert not remote.can_inpaint
        with pytest.raises(TypeError, match="cannot inpaint"):
            remote.inpaint(observe(), remote.initial_state(), target, weight)
        remote.close()


def test_what_the_server_refuses_and_what_never_leaves() -> None:
    """The connection survives the server's errors; a bad observation is not even sent."""
    with serving() as address:
        remote = RemotePolicy(address)
        with pytest.raises(RemotePolicyError, match="the policy failed"):
            remote.decide(observe(instruction="break"), remote.initial_state())
        bad = dataclasses.replace(observe(), proprio=np.array([np.nan, 0], np.float32))
        with pytest.raises(ContractMismatchError, match=r"not finite in \['x'\]"):
            remote.decide(bad, remote.initial_state())
        remote.decide(observe(), remote.initial_state())
        remote.close()


def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the argument or the environment; the message names the variable."""
    with monkeypatch.context() as environment:
        environment.setenv("VLA_TOKEN", TOKEN)
        server = serving()
        address = server.__enter__()
        RemotePolicy(address).close()
    try:
        RemotePolicy(address, TOKEN).close()
        with pytest.raises(ConnectionError, match=r"refuses the token.*VLA_TOKEN"):
            RemotePolicy(address)
    finally:
        server.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("ws://127.0.0.1:1", ConnectionError, "no policy server at ws://127.0.0.1:1"),
        ("ws://no.such.host.invalid:1", ConnectionError, "no policy server"),
        ("http://127.0.0.1:1", ValueError, "no address such as ws://HOST:PORT"),
        ("ws://127.0.0.1:port", ValueError, "no address such as ws://HOST:PORT"),
    ],
)
def test_no_server(address: str, error: type[Exception], message: str) -> None:
    """Named with its address."""
    with pytest.raises(error, match=message):
        RemotePolicy(address)


def test_a_slow_decision_is_not_taken_for_the_next() -> None:
    """The connection is closed, since the late reply would answer another observation."""

    def decided(observation: Observation) -> None:
        if observation.instruction == "slowly":
            time.sleep(0.5)

    with serving(CountingPolicy(decided=decided)) as address:
        remote = RemotePolicy(address, timeout_s=0.3)
        _, state = remote.decide(observe(), remote.initial_state())
        with pytest.raises(ConnectionError, match=r"within 0.3 s: connect\(\) opens another"):
            remote.decide(observe(instruction="slowly"), state)
        with pytest.raises(ConnectionError, match="is closed: connect"):
            remote.decide(observe(), state)
        time.sleep(0.3)
        remote.connect()
        with pytest.raises(ValueError, match="begin an episode"):
            remote.decide(observe(), state)
        chunk, _ = remote.decide(observe(1), remote.initial_state())
        assert chunk.actions[0, 1] == pytest.approx(observe(1).proprio.mean())
        remote.close()


def test_a_killed_server_is_an_error_and_the_next_one_is_used() -> None:
    """On the same port, after an explicit connect."""
    process, address = start_process()
    remote = RemotePolicy(address)
    _, state = remote.decide(observe(), remote.initial_state())
    process.kill()
    process.communicate()
    with pytest.raises(ConnectionError, match=f"{address} is gone"):
        remote.decide(observe(), state)
    with pytest.raises(ConnectionError, match="no policy server"):
        remote.connect()
    again, _ = start_process(int(address.rsplit(":", 1)[1]))
    try:
        remote.connect()
        remote.decide(observe(), remote.initial_state())
        remote.close()
    finally:
        again.terminate()
        again.communicate(timeout=30)


def test_another_contract_after_a_reconnection_is_refused() -> None:
    """A robot must not be driven by the policy of another, though the address is the same."""
    with serving() as address:
        remote = RemotePolicy(address)
        port = int(address.rsplit(":", 1)[1])
    other = dataclasses.replace(SPEC, control_rate_hz=10.0)
    with (
        serving(CountingPolicy(other), port=port),
        pytest.raises(ContractMismatchError, match=r"control_rate_hz: 20\.0 != 10\.0"),
    ):
        remote.connect()


GOOD = {"contract": SPEC.to_dict(), "chunk_length": 2, "can_inpaint": False}
WIDE, NAN = np.zeros((3, 3), np.float32), np.full((2, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("metadata", "reply", "message"),
    [
        (b"\xc1", b"", "states no contract"),
        (pack({"image_resolution": (180, 320)}), b"", "states no contract"),
        (pack(GOOD | {"contract": {"robot": "a"}}), b"", "states no contract"),
        (
            pack(GOOD),
            pack({"actions": WIDE}),
            r"no actions of shape \(2, 3\)",
        ),
        (pack(GOOD), pack({"action": WIDE}), "no actions"),
        (pack(GOOD), pack({"actions": NAN}), "not finite"),
        (pack(GOOD), b"\x81\xa1a\xdd\xff\xff\xff\xff", "not a message"),
    ],
)
def test_a_server_that_answers_something_else(metadata: bytes, reply: bytes, message: str) -> None:
    """No command comes out of it."""

    def handle(connection: ServerConnection) -> None:
        connection.send(metadata)
        for _ in connection:
            connection.send(reply)

    with listen(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        with pytest.raises(ValueError, match=message):
            _decide_once(address)
        server.shutdown()


def _decide_once(address: str) -> None:
    remote = RemotePolicy(address)
    remote.decide(observe(), remote.initial_state())
