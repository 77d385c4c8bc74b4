"""`vla serve`: answer robots' observations with a policy's actions, over a websocket."""

from __future__ import annotations

import logging

from vla_runtime.server import ServeConfig, serve


def main(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; who connects is logged on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    serve(config)
