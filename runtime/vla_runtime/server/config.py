"""Settings of `vla serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import tyro

from vla_runtime.server.authentication import TOKEN_VARIABLE, is_loopback, read_token


@dataclass(frozen=True)
class ServeConfig:
    """What is served, where and to whom.

    Attributes:
        policy: exported folder; in the full environment also a checkpoint or a LeRobot policy.
        contract: contract.json of the robot, or a folder with one, for a policy that does not know
            it: a LeRobot policy, or a checkpoint of several robots.
        host: address to listen at; other than loopback only with a token.
        port: 0 takes a free one.
        token_file: file whose content clients have to send as `Api-Key`; without it the environment
            variable VLA_TOKEN, where that is set.
        rename: `FEATURE=KEY`, for clients that have another key for a feature of the contract.
        max_clients: connections at a time; each may keep one decision waiting.
        send_timeout_s: a client that does not take its reply for so long is disconnected.
        stop_timeout_s: how long a stop waits for the decisions that were asked for.
    """

    policy: tyro.conf.Positional[str]
    contract: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    rename: tuple[str, ...] = ()
    max_clients: int = 16
    send_timeout_s: float = 5.0
    stop_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port {self.port} is not between 0 and 65535")
        if self.max_clients < 1:
            raise ValueError(f"max_clients starts at 1, got {self.max_clients}")
        for name in ("send_timeout_s", "stop_timeout_s"):
            if not 0 < (seconds := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} has to be positive and finite, got {seconds}")
        if bad := [pair for pair in self.rename if not all(pair.partition("="))]:
            raise ValueError(f"rename takes FEATURE=KEY, got {bad}")

    def keys(self) -> dict[str, str]:
        """Feature of the contract → key of the clients, for those that are renamed."""
        return dict(pair.split("=", 1) for pair in self.rename)

    def token(self) -> str | None:
        """The token that clients have to send; None lets every process of this machine in.

        Raises:
            OSError: the file cannot be read, or there is no such host.
            ValueError: the token is too short, or the host needs one.
        """
        token = read_token(self.token_file)
        # An empty host is every interface to asyncio.
        if token is None and (not self.host or not is_loopback(self.host)):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, which needs a token: "
                f"--token-file FILE, or the environment variable {TOKEN_VARIABLE}"
            )
        return token
