"""The page on which a person judges: its protocol, and the page itself in a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from websockets.sync.client import connect

from policies.preferences.comparisons import Pair, Segment
from policies.preferences.page import HOST, JudgingServer, Questions
from sim.film import write_mp4

PAIRS = [Pair(Segment(f"a{i}", 0, 2), Segment(f"b{i}", 0, 2)) for i in range(4)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture
def film(tmp_path: Path) -> bytes:
    """Half a second that gets brighter."""
    frames = np.repeat(np.arange(12, dtype=np.uint8) * 20, 32 * 32 * 3).reshape(12, 32, 32, 3)
    write_mp4(tmp_path / "film.mp4", frames)
    return (tmp_path / "film.mp4").read_bytes()


class Asked:
    """A server of four questions in a thread, and what became of it."""

    def __init__(self, film: bytes):
        self.answers: list[tuple[Pair, float | None]] = []
        self.drawn: list[str] = []
        self.server = JudgingServer(
            Questions(
                PAIRS, self._draw(film), lambda pair: f"go <to> {pair.first.trajectory}", self._keep
            )
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def _draw(self, film: bytes) -> Callable[[Segment], bytes]:
        def draw(segment: Segment) -> bytes:
            self.drawn.append(segment.trajectory)
            return film

        return draw

    def _keep(self, pair: Pair, label: float | None) -> None:
        self.answers.append((pair, label))

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes, str | None]:
        """Status, body and type of the answer."""
        connection = http.client.HTTPConnection(HOST, self.server.server_address[1], timeout=20)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers["Content-Type"]

    def answer(self, pair: int, label: float | None) -> int:
        """Status of an answer."""
        return self.ask("POST", "/answer", {"pair": pair, "label": label})[0]


@pytest.fixture
def asked(film: bytes) -> Iterator[Asked]:
    """Closed afterwards, answered or not."""
    one = Asked(film)
    yield one
    one.server.shutdown()
    one.thread.join()
    one.server.server_close()


def test_questions_are_asked_one_after_another_until_all_are_answered(asked: Asked) -> None:
    """Every label is kept with its pair, and then the program goes on."""
    status, page, kind = asked.ask("GET", "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"Which is better?" in page
    for index, label in enumerate((1, 0, 0.5, None)):
        question = json.loads(asked.ask("GET", "/next")[1])
        assert question == {
            "pair": index,
            "instruction": f"go <to> a{index}",
            "progress": f"{index + 1} of 4",
        }
        assert asked.answer(index, label) == 200
    assert asked.answers == list(zip(PAIRS, (1, 0, 0.5, None), strict=True))
    assert json.loads(asked.ask("GET", "/next")[1])["pair"] is None
    asked.thread.join(timeout=20)
    assert not asked.thread.is_alive()


def test_films_are_drawn_once(asked: Asked, film: bytes) -> None:
    """Each side its own; there are no others."""
    for side in ("first", "second", "first"):
        assert asked.ask("GET", f"/film/1/{side}.mp4") == (200, film, "video/mp4")
    assert asked.drawn == ["a1", "b1"]
    for path in ("/film/4/first.mp4", "/film/1/third.mp4", "/film/-1/first.mp4", "/etc/passwd"):
        assert asked.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"pair": 1, "label": 1}, 409, "answered already"),
        ({"pair": 0, "label": 0.7}, 400, "label must be one of [1.0, 0.5, 0.0, null]"),
        ({"pair": 0, "label": True}, 400, "label must be one of"),
        ({"pair": 0, "label": [1]}, 400, "label must be one of"),
        ({"pair": 0}, 400, 'an answer is {"pair"'),
        ([1], 400, 'an answer is {"pair"'),
        (b"{", 400, 'an answer is {"pair"'),
        (b" " * 2000, 400, "a short JSON object"),
    ],
)
def test_answers_that_are_none_are_refused(
    body: Any, status: int, message: str, asked: Asked
) -> None:
    """Nothing is kept, and the question is still there."""
    found, text, _ = asked.ask("POST", "/answer", body)
    assert (found, message in text.decode()) == (status, True), text
    assert asked.ask("POST", "/other", {"pair": 0, "label": 1})[0] == 400
    assert not asked.answers
    assert asked.answer(0, 1.0) == 200
    assert asked.answer(0, 1.0) == 409, "a second press"


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_sites_are_refused(headers: dict[str, str], asked: Asked) -> None:
    """A name that was rebound to this machine, and a form of another page."""
    for method, path, body in (("GET", "/", None), ("POST", "/answer", {"pair": 0, "label": 1})):
        status, text, _ = asked.ask(method, path, body, **headers)
        assert status == 403
        assert f"open http://{HOST}:" in text.decode()
    assert not asked.answers


def test_it_listens_on_loopback_alone(asked: Asked) -> None:
    """Nobody else on the network can answer."""
    assert asked.server.server_address[0] == "127.0.0.1"
    assert asked.server.url.startswith("http://127.0.0.1:")


class Browser:
    """A headless Chromium, driven over its debugging socket."""

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        # No sandbox: tests run as root in containers, and the page is our own.
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = profile / "DevToolsActivePort"
        self.wait(lambda: port_file.is_file() and len(port_file.read_text().splitlines()) == 2)
        port = port_file.read_text().splitlines()[0]
        with urlopen(f"http://{HOST}:{port}/json") as response:
            pages = [page for page in json.load(response) if page["type"] == "page"]
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(
            connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
        )
        self._calls = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the debugging protocol."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv(timeout=30))).get("id") != self._calls:
            pass  # an event
        return message["result"]

    def run(self, script: str) -> Any:
        """What a script on the page gives."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key)

    @staticmethod
    def wait(condition: Callable[[], Any], limit_s: float = 60) -> None:
        """Until it holds."""
        ends = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < ends, "the browser has not got there"
            time.sleep(0.05)

    def close(self) -> None:
        """End it."""
        self._open.close()
        self.process.terminate()
        self.process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_person_judges_in_a_browser(asked: Asked, tmp_path: Path) -> None:
    """Both films play; buttons and keys answer; at the end the page says so."""
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=asked.server.url)
        shown = "document.getElementById('instruction')?.textContent"
        for index, act in enumerate(
            (
                lambda: browser.run("document.querySelector('[data-label=\"1\"]').click()"),
                lambda: browser.press("2"),
                lambda: browser.press("="),
                lambda: browser.press("s"),
            )
        ):
            # As text: the words of a task are no markup.
            browser.wait(lambda index=index: browser.run(shown) == f"go <to> a{index}")
            for side in ("first", "second"):
                playing = f"document.getElementById('{side}').currentTime > 0.1"
                browser.wait(lambda playing=playing: browser.run(playing))
                source = browser.run(f"document.getElementById('{side}').currentSrc")
                assert source.endswith(f"/film/{index}/{side}.mp4")
            act()
        browser.wait(lambda: len(asked.answers) == 4)
        assert asked.answers == list(zip(PAIRS, (1, 0, 0.5, None), strict=True))
        progress = "document.getElementById('progress').textContent"
        browser.wait(lambda: browser.run(progress).startswith("All 4 are answered"))
        assert browser.run("[...document.querySelectorAll('button')].every(b => b.disabled)")
    finally:
        browser.close()
    asked.thread.join(timeout=20)
    assert not asked.thread.is_alive()
