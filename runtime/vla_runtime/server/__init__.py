"""Serve a policy to robots over openpi's websocket protocol."""
