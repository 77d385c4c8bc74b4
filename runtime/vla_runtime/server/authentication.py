"""The token of a policy server: where it is read from and how it is compared."""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import Sequence
from pathlib import Path

TOKEN_VARIABLE = "VLA_TOKEN"
MIN_TOKEN_LENGTH = 32


def read_token(file: Path | None = None) -> str | None:
    """The token in `file`, or else in the environment variable VLA_TOKEN; None without either.

    Neither shows in a list of processes, as a flag would.

    Raises:
        OSError: the file cannot be read.
        ValueError: the token is too short, or has other characters than visible ASCII.
    """
    where = f"file {file}" if file else f"environment variable {TOKEN_VARIABLE}"
    token = _read(file) if file else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    token = token.strip()
    if not all("!" <= character <= "~" for character in token) or len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(
            f"the token of {where} has to be {MIN_TOKEN_LENGTH} or more visible ASCII characters; "
            'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return token


def _read(file: Path) -> str:
    try:
        # Bytes that are no text become characters that no token has.
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OSError(f"token file {file} cannot be read: {error.strerror}") from error


def authorization(token: str) -> str:
    """The value of the header that `openpi-client` sends for its `api_key`."""
    return f"Api-Key {token}"


def is_authorized(headers: Sequence[str], token: str | None) -> bool:
    """Whether the Authorization headers of a request bring the token; always without a token."""
    if token is None:
        return True
    # Two headers are refused: whatever stands in front of this server may have checked the other.
    sent = headers[0] if len(headers) == 1 else ""
    expected = authorization(token).encode()
    return hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), expected)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`.

    Raises:
        OSError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(f"no address for host {host!r}: {error}") from error
    addresses = {str(address[0]) for *_, address in found}
    return all(address == "::1" or address.startswith("127.") for address in addresses)
