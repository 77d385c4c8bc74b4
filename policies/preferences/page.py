"""A local web page that plays two films and asks which is better. It listens on loopback alone."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from policies.preferences.comparisons import LABELS, Pair, Segment

HOST = "127.0.0.1"
_FILM = re.compile(r"/film/(\d+)/(first|second)\.mp4")
_MOST_BYTES = 1000  # of an answer


def require_free(port: int) -> None:
    """Refuse a port at which another program listens; 0 stands for a free one.

    Raises:
        OSError: it is taken.
    """
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise OSError(
            f"--port {port} cannot be opened: {error.strerror}; 0 takes a free one"
        ) from error


@dataclass(frozen=True)
class Questions:
    """What is asked, and what becomes of the answers.

    Attributes:
        pairs: in the order of asking.
        film: an .mp4 file of a segment; called by one thread at a time.
        instruction: what the policies of a pair were told.
        keep: takes a pair and one of `LABELS`, and returns once the answer cannot be lost.
    """

    pairs: Sequence[Pair]
    film: Callable[[Segment], bytes]
    instruction: Callable[[Pair], str]
    keep: Callable[[Pair, float | None], None]


class JudgingServer(ThreadingHTTPServer):
    """Serves the page until every question is answered.

    Args:
        questions: at least one.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    # A browser keeps connections open: they must not keep the program from ending.
    daemon_threads = True

    def __init__(self, questions: Questions, port: int = 0):
        super().__init__((HOST, port), _Handler)
        self.questions, self.answered = questions, 0
        # Answers change the count; films share a renderer, and the graphics library wants one user.
        self.lock, self._drawing = threading.Lock(), threading.Lock()
        self._film = lru_cache(maxsize=8)(questions.film)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def draw(self, segment: Segment) -> bytes:
        """A film, drawn once and kept for a while: a browser asks for it several times."""
        with self._drawing:
            return self._film(segment)

    def run(self) -> None:
        """Serve until all is answered, or until Ctrl-C."""
        # `shutdown` ends it, from the thread of the last answer.
        self.serve_forever(poll_interval=0.1)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if not self._is_local():
            return
        if self.path == "/":
            self._reply((Path(__file__).with_name("page.html")).read_bytes(), "text/html")
        elif self.path == "/next":
            self._reply_json(self._question())
        elif (film := _FILM.fullmatch(self.path)) and int(film[1]) < len(self._questions.pairs):
            pair = self._questions.pairs[int(film[1])]
            segment = pair.first if film[2] == "first" else pair.second
            self._reply(self._judging.draw(segment), "video/mp4")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        if not self._is_local():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer" or not length.isdecimal() or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.BAD_REQUEST, "POST /answer takes a short JSON object")
            return
        try:
            answer = json.loads(self.rfile.read(int(length)))
            index, label = answer["pair"], answer["label"]
        except (ValueError, KeyError, TypeError):
            self._refuse(HTTPStatus.BAD_REQUEST, 'an answer is {"pair": number, "label": label}')
            return
        if isinstance(label, bool) or label not in LABELS:
            self._refuse(HTTPStatus.BAD_REQUEST, f"label must be one of {json.dumps(LABELS)}")
            return
        server = self._judging
        with server.lock:
            # Two windows, or a double click: a question has one answer.
            if index != server.answered or server.answered == len(self._questions.pairs):
                self._refuse(HTTPStatus.CONFLICT, "this pair was answered already: reload the page")
                return
            self._questions.keep(self._questions.pairs[index], label)
            server.answered += 1
        self._reply_json({"answered": server.answered})
        if server.answered == len(self._questions.pairs):
            threading.Timer(1.0, server.shutdown).start()  # the page still asks for what is next

    @property
    def _judging(self) -> JudgingServer:
        return cast(JudgingServer, self.server)

    @property
    def _questions(self) -> Questions:
        return self._judging.questions

    def _question(self) -> dict[str, Any]:
        done, pairs = self._judging.answered, self._questions.pairs
        if done == len(pairs):
            return {"pair": None, "progress": f"All {done} are answered. You can close this page."}
        instruction = self._questions.instruction(pairs[done])
        progress = f"{done + 1} of {len(pairs)}"
        return {"pair": done, "instruction": instruction, "progress": progress}

    def _is_local(self) -> bool:
        """Refuse what another site's page makes a browser send here."""
        own = f"{HOST}:{self._judging.server_address[1]}"
        # The host against a name that was rebound to this address, the origin against a form.
        if self.headers.get("Host") == own and self.headers.get("Origin") in (
            None,
            f"http://{own}",
        ):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"open http://{own}/ in a browser on this machine")
        return False

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._reply(text.encode(), "text/plain", status)

    def _reply_json(self, data: dict[str, Any]) -> None:
        self._reply(json.dumps(data).encode(), "application/json")

    def _reply(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind[0] != "v" else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows what is asked."""
