"""The server as its clients see it: the real openpi-client, plain HTTP, and ours."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from openpi_client import action_chunk_broker, msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from policy_server import SPEC, TOKEN, CountingPolicy, fields_of, observe, serving
from vla_runtime.contract import ActionChunk, Observation, RobotSpec
from vla_runtime.server.dialects import VLLM_OMNI_PATH
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

# openpi-client 0.1 opens its connection in a way that is to change in websockets.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the counting policy that lets everyone in."""
    with serving() as served:
        yield served


def get(address: str, path: str, **headers: str) -> str:
    """The body of a plain HTTP answer."""
    with urlopen(Request(address.replace("ws:", "http:") + path, headers=headers)) as answer:
        return answer.read().decode()


def count(address: str, metric: str) -> float:
    """A number of `/metrics`; 0 where nothing was counted yet."""
    lines = dict(line.rsplit(" ", 1) for line in get(address, "/metrics").splitlines())
    return float(lines.get(metric, 0))


def test_openpi_client_works_unchanged(address: str) -> None:
    """Metadata first, then chunks of the contract's shape with the server's timing."""
    client = WebsocketClientPolicy(address)
    metadata = client.get_server_metadata()
    assert RobotSpec.from_dict(metadata["contract"]) == SPEC
    assert metadata["observation"]["observation.images.front"]["shape"] == [6, 8, 3]
    observation = observe()
    first, second = (client.infer(fields_of(observation)) for _ in range(2))
    assert first["actions"].shape == (4, 3)
    assert first["actions"].dtype == np.float32
    assert first["actions"][0, 0] == pytest.approx(observation.images["front"].mean() / 255)
    assert set(first["server_timing"]) == {"infer_ms"}
    assert 0 < second["server_timing"]["infer_ms"] < second["server_timing"]["prev_total_ms"]


def test_openpis_broker_gives_one_command_at_a_time(address: str) -> None:
    """The class that openpi's robots wrap around the client."""
    broker = action_chunk_broker.ActionChunkBroker(WebsocketClientPolicy(address), 4)
    counts = [broker.infer(fields_of(observe()))["actions"][2] for _ in range(5)]
    assert counts == [0, 0, 0, 0, 1]


def test_memory_belongs_to_the_connection(address: str) -> None:
    """Two clients interleaved, and a reset in one of them."""
    one, other = WebsocketClientPolicy(address), WebsocketClientPolicy(address)
    fields = fields_of(observe())

    def decisions(client: Any, **control: bool) -> float:
        return client.infer(fields | control)["actions"][0, 2]

    assert [decisions(one), decisions(other), decisions(one), decisions(one)] == [0, 0, 1, 2]
    assert [decisions(one, reset=True), decisions(one, reset=False), decisions(other)] == [0, 1, 1]


def test_errors_are_text_frames_and_the_connection_lives_on(address: str) -> None:
    """What was wrong is said; of the policy's own failure nothing but that it failed."""
    client = WebsocketClientPolicy(address)
    fields = fields_of(observe())
    client.infer(fields)
    with pytest.raises(RuntimeError, match=r"unknown keys \['depth'\]"):
        client.infer(fields | {"depth": np.zeros(3)})
    with pytest.raises(RuntimeError, match="'reset' is true or false"):
        client.infer(fields | {"reset": "yes"})
    inpainting = {"inpaint_target": np.zeros((4, 3)), "inpaint_weight": np.zeros(4)}
    with pytest.raises(RuntimeError, match="this policy cannot inpaint"):
        client.infer(fields | inpainting)
    with pytest.raises(RuntimeError, match="the policy failed") as caught:
        client.infer(fields | {"prompt": "break"})
    assert "secret" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert client.infer(fields)["actions"][0, 2] == 1, "a decision that failed leaves no memory"


def test_a_failure_right_after_a_reset_begins_no_old_episode(address: str) -> None:
    """The next decision is the first of the new episode."""
    client = WebsocketClientPolicy(address)
    fields = fields_of(observe())
    client.infer(fields)
    with pytest.raises(RuntimeError):
        client.infer(fields | {"prompt": "break", "reset": True})
    assert client.infer(fields)["actions"][0, 2] == 0


def test_text_frames_and_rubbish_are_answered(address: str) -> None:
    """A client that speaks another protocol learns so."""
    with connect(address) as socket:
        socket.recv()
        socket.send(json.dumps({"prompt": "lift"}))
        assert socket.recv() == "requests are binary frames"
        socket.send(b"\xc1")
        assert "not a message of this protocol" in str(socket.recv())


def test_a_message_beyond_the_contracts_size_closes_the_connection(address: str) -> None:
    """1009, the code for it."""
    client = WebsocketClientPolicy(address)
    assert client.get_server_metadata()["max_message_bytes"] < 20_000
    with pytest.raises(ConnectionClosed) as caught:
        client.infer({"observation.images.front": np.zeros((100, 100, 3), np.uint8)})
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


class NotFinite(CountingPolicy):
    """Its commands are NaN."""

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
        """A chunk that no robot may get."""
        return ActionChunk(np.full((4, 3), np.nan, np.float32)), state


def test_commands_that_are_not_finite_do_not_leave_the_server() -> None:
    """The client gets an error instead."""
    with (
        serving(NotFinite()) as address,
        pytest.raises(RuntimeError, match="action chunk is not finite"),
    ):
        WebsocketClientPolicy(address).infer(fields_of(observe()))


def test_vllm_omni_dialect(address: str) -> None:
    """Its path: the fields its clients require first, bare arrays, its reset and its errors."""
    with connect(address + VLLM_OMNI_PATH) as socket:

        def ask(**fields: object) -> Any:
            socket.send(msgpack_numpy.packb(fields))
            return msgpack_numpy.unpackb(socket.recv())

        metadata = msgpack_numpy.unpackb(socket.recv())
        assert metadata["image_resolution"] == [6, 8]
        assert (metadata["n_external_cameras"], metadata["action_horizon"]) == (2, 4)
        fields = fields_of(observe())
        assert [ask(endpoint="infer", **fields)[0, 2] for _ in range(2)] == [0, 1]
        assert ask(endpoint="reset") == {"status": "reset successful"}
        assert [ask(**fields)[0, 2], ask(**fields)[0, 2]] == [0, 1]
        assert [ask(session_id="b", **fields)[0, 2] for _ in range(2)] == [0, 1]
        for endpoint in ("train", np.zeros(3, np.uint8), True):
            refused = ask(endpoint=endpoint)
            assert refused["type"] == "error"
            assert "'endpoint' is 'infer' or 'reset'" in refused["message"]


def test_the_token_is_asked_of_everyone(tmp_path: Path) -> None:
    """Wrong, missing, cut off, sent twice or in another scheme: 401; health alone is open."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with serving(token_file=file) as address:
        client = WebsocketClientPolicy(address, api_key=TOKEN)
        assert client.infer(fields_of(observe()))["actions"].shape == (4, 3)
        for wrong in (None, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 32):
            with pytest.raises((InvalidStatus, UnicodeEncodeError)) as refused:
                WebsocketClientPolicy(address, api_key=wrong)
            if isinstance(refused.value, InvalidStatus):
                assert refused.value.response.status_code == 401
        for headers in ([f"Bearer {TOKEN}"], [f"Api-Key {TOKEN}"] * 2):
            with pytest.raises(InvalidStatus):
                connect(address, additional_headers=[("Authorization", value) for value in headers])
        assert get(address, "/healthz") == "OK\n"
        with pytest.raises(HTTPError, match="401"):
            get(address, "/metrics")
        assert "vla_turned_away" in get(address, "/metrics", Authorization=f"Api-Key {TOKEN}")


def test_browsers_are_refused(address: str) -> None:
    """A page in a browser of this machine could otherwise connect to loopback."""
    with pytest.raises(InvalidStatus) as refused:
        connect(address, additional_headers={"Origin": "https://example.com"})
    assert refused.value.response.status_code == 403


def test_metrics_count() -> None:
    """Clients, requests by outcome, and times."""
    with serving() as address:
        with connect(address) as socket:
            socket.recv()
            for fields in (fields_of(observe()), {}, fields_of(observe(instruction="break"))):
                socket.send(msgpack_numpy.packb(fields))
                socket.recv()
            assert count(address, "vla_clients") == 1
        for outcome in ("answered", "refused", "failed"):
            assert count(address, f'vla_requests_total{{outcome="{outcome}"}}') == 1
        assert count(address, "vla_inference_seconds_count") == 1
        assert count(address, "vla_request_seconds_count") == 3
        assert count(address, 'vla_turned_away_total{reason="full"}') == 0


def test_more_clients_than_allowed() -> None:
    """The next one is told to try again; when one leaves, there is a place."""
    with serving(max_clients=1) as address:
        with connect(address) as first:
            first.recv()
            with connect(address) as second, pytest.raises(ConnectionClosed) as refused:
                second.recv()
            assert refused.value.rcvd is not None
            assert refused.value.rcvd.code == 1013
        assert _eventually(lambda: count(address, "vla_clients") == 0)
        with connect(address) as third:
            assert third.recv()
        assert count(address, 'vla_turned_away_total{reason="full"}') == 1


def _eventually(condition: Any) -> bool:
    end = time.monotonic() + 10
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return done


def test_pings_are_answered_while_a_decision_takes_long() -> None:
    """Another client's and its own; a decision that nobody waits for is not made."""
    free, asked = threading.Event(), []

    def decided(observation: Observation) -> None:
        asked.append(observation.instruction)
        if observation.instruction == "slowly":
            free.wait(30)

    with serving(CountingPolicy(decided=decided)) as address, connect(address) as slow:
        try:
            slow.recv()
            slow.send(msgpack_numpy.packb(fields_of(observe(instruction="slowly"))))
            assert _eventually(lambda: asked == ["slowly"])
            assert slow.ping().wait(10)
            with connect(address) as gone:
                gone.recv()
                gone.send(msgpack_numpy.packb(fields_of(observe(instruction="unwanted"))))
                assert gone.ping().wait(10)
            assert get(address, "/healthz") == "OK\n"
        finally:
            free.set()
        assert isinstance(slow.recv(30), bytes)
        WebsocketClientPolicy(address).infer(fields_of(observe()))
    assert asked == ["slowly", "lift the block"]


def test_a_client_that_takes_no_replies_is_disconnected() -> None:
    """Once its socket's buffers are full; the others are served meanwhile."""
    wide = ActionChunk(np.zeros((60_000, 3), np.float32))

    class Wide(CountingPolicy):
        def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, object]:
            return wide, state

    with serving(Wide(), send_timeout_s=0.2) as address:
        message = msgpack_numpy.packb(fields_of(observe()))
        # A client of this library reads ahead until its queue is full: after that nobody reads.
        with (
            connect(address, max_size=None, max_queue=1) as slow,
            connect(address, max_size=None) as other,
        ):
            other.recv()
            for _ in range(40):
                try:
                    slow.send(message)
                except ConnectionClosed:
                    break
            assert _eventually(lambda: count(address, 'vla_turned_away_total{reason="slow"}') == 1)
            other.send(message)
            assert other.recv(10)


def test_a_stop_answers_what_was_asked_and_disconnects() -> None:
    """The reply comes, then the connection ends in the regular way."""
    asked = threading.Event()

    def decided(_: Observation) -> None:
        asked.set()
        time.sleep(0.3)

    with ExitStack() as sockets:
        with serving(CountingPolicy(decided=decided)) as address:
            busy, idle = (sockets.enter_context(connect(address)) for _ in range(2))
            for socket in (busy, idle):
                socket.recv()
            busy.send(msgpack_numpy.packb(fields_of(observe())))
            assert asked.wait(10)
        assert isinstance(busy.recv(10), bytes)
        for socket, code in ((busy, 1000), (idle, 1001)):
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
