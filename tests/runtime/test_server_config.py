"""Settings of a server, its token and its process: refused before anything is loaded or listens."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from policy_server import SPEC, TOKEN, CountingPolicy, serving, start_process
from vla_runtime.server.authentication import is_authorized, is_loopback, read_token
from vla_runtime.server.config import ServeConfig
from vla_runtime.server.service import PolicyServer


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "between 0 and 65535"),
        ({"port": -1}, "between 0 and 65535"),
        ({"max_clients": 0}, "max_clients"),
        ({"send_timeout_s": 0.0}, "send_timeout_s"),
        ({"stop_timeout_s": float("nan")}, "stop_timeout_s"),
        ({"rename": ("observation.state",)}, "FEATURE=KEY"),
        ({"rename": ("=key",)}, "FEATURE=KEY"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    """Named with the setting."""
    with pytest.raises(ValueError, match=message):
        ServeConfig("a", **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_other_machines_need_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both ways to give one."""
    config = ServeConfig("a", host=host)
    with pytest.raises(ValueError, match=r"--token-file FILE.*VLA_TOKEN"):
        PolicyServer(CountingPolicy(), config)
    monkeypatch.setenv("VLA_TOKEN", TOKEN)
    assert config.token() == TOKEN


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("::", False)],
)
def test_loopback(host: str, local: bool) -> None:
    """All of 127/8 and ::1."""
    assert is_loopback(host) is local


def test_an_unknown_host() -> None:
    """Named."""
    with pytest.raises(OSError, match="'no host'"):
        ServeConfig("a", host="no host").token()


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file wins over the environment; short, empty and unprintable ones are refused."""
    file = tmp_path / "token"
    assert read_token() is None
    monkeypatch.setenv("VLA_TOKEN", TOKEN)
    file.write_text("b" * 32 + "\n")
    assert (read_token(file), read_token()) == ("b" * 32, TOKEN)
    for text in ("b" * 31, "", "b" * 20 + " " + "b" * 20, "é" * 40):
        file.write_text(text)
        with pytest.raises(ValueError, match="32 or more visible ASCII") as refused:
            read_token(file)
        assert not text or text not in str(refused.value), "a token belongs in no message"
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="32 or more visible ASCII"):
        read_token(file)
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=rf"token file {path} cannot be read: {why}"):
            read_token(path)


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ([f"Api-Key {TOKEN}"], True),
        ([f"Api-Key {TOKEN} "], False),
        ([f"api-key {TOKEN}"], False),
        ([TOKEN], False),
        ([], False),
        ([f"Api-Key {TOKEN}"] * 2, False),
        (["Api-Key \udcff"], False),
    ],
)
def test_authorization(headers: list[str], good: bool) -> None:
    """One header with exactly the token."""
    assert is_authorized(headers, TOKEN) is good
    assert is_authorized(headers, None)


def test_a_port_in_use_is_named() -> None:
    """With the mend."""
    with serving() as address:
        port = int(address.rsplit(":", 1)[1])
        with pytest.raises(OSError, match=rf"port {port} of 127.0.0.1 is in use.*--port"):
            serving(port=port).__enter__()


def test_an_address_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be listened at here."""
    monkeypatch.setenv("VLA_TOKEN", TOKEN)
    with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1"):
        serving(host="192.0.2.1").__enter__()


def test_a_feature_that_the_contract_lacks() -> None:
    """Found before the port is opened."""
    with pytest.raises(ValueError, match=r"cannot rename \['state'\]"):
        PolicyServer(CountingPolicy(SPEC), ServeConfig("a", rename=("state=observation/state",)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_server_gracefully(number: signal.Signals) -> None:
    """Exit code 0, nothing on standard error, and the port is free for the next one."""
    process, address = start_process()
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert out == "stopped\n"
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(address.rsplit(":", 1)[1])))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("vla_runtime.server.service", {"torch", "transformers", "vla"}),
        ("vla_runtime.client", {"torch", "transformers", "vla", "onnxruntime"}),
    ],
)
def test_what_an_import_loads(module: str, unwanted: set[str]) -> None:
    """A server needs no torch; a client on a robot needs no ONNX Runtime either."""
    program = f"import sys, {module}; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
