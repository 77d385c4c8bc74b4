"""Stands for Rerun in tests, as `rerun.py` in a folder on the path: writes down its calls."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def _note(*call: object) -> None:
    with Path(os.environ["FAKE_RERUN"]).open("a") as file:
        file.write(json.dumps(call) + "\n")


def init(application: str, spawn: bool = False) -> None:
    """A viewer opens, which takes its time."""
    _note("init", application, spawn)


def connect_grpc(address: str) -> None:
    """A viewer elsewhere, connected to later."""
    _note("connect_grpc", address)


class Recording:
    """What is on its way."""

    def flush(self, timeout_sec: float) -> None:
        """Fails as the real one does where nobody answers."""
        _note("flush")
        if "nobody" in Path(os.environ["FAKE_RERUN"]).read_text():
            raise RuntimeError("gRPC has been unable to connect")


def get_global_data_recording() -> Recording:
    """The only one."""
    return Recording()


def set_time(timeline: str, duration: float) -> None:
    """The time of what follows; stays away for as long as a test says."""
    _note("set_time", timeline, duration)
    if duration > 0:
        time.sleep(float(os.environ.get("FAKE_RERUN_DELAY_S", "0")))


def log(path: str, value: object) -> None:
    """One value."""
    _note("log", path, value)


def Image(image: object) -> list[int]:  # noqa: N802 Rerun's name
    """Its shape."""
    return list(image.shape)  # pyright: ignore[reportAttributeAccessIssue]


def Scalars(value: float) -> float:  # noqa: N802 Rerun's name
    """The number."""
    return value
