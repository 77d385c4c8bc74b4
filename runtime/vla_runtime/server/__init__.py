"""Serve a policy to robots over openpi's websocket protocol."""

from vla_runtime.server.config import ServeConfig
from vla_runtime.server.service import serve

__all__ = ["ServeConfig", "serve"]
