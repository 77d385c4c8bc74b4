"""`vla serve`: answer robots' observations with a policy's actions, over a websocket."""

from __future__ import annotations

from vla_runtime.server.config import ServeConfig
from vla_runtime.server.service import serve as main

__all__ = ["ServeConfig", "main"]
