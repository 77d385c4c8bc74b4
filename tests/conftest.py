"""What every test shares: one thread, a GL backend, checked shapes, and why some are skipped."""

from __future__ import annotations

import ctypes.util
import fcntl
import importlib.util
import os
from pathlib import Path

import pytest
import tensor_shapes

# Before anything imports mujoco or torch, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
    if ctypes.util.find_library(library):
        os.environ.setdefault("MUJOCO_GL", backend)
if importlib.util.find_spec("beartype"):  # not on a borrowed GPU machine
    tensor_shapes.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` without CUDA; skip `render` without GL only where the machine's owner allowed it.

    A missing GL library fails the render tests by default: skipping them in silence would let a
    broken machine pass.
    """
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if wanted and not _has_cuda():
        _skip(wanted, "needs a CUDA device")
    wanted = [item for item in items if item.get_closest_marker("render")]
    if wanted and os.environ.get("VLA_ALLOW_NO_GL") and (trouble := _render_trouble()):
        _skip(wanted, f"VLA_ALLOW_NO_GL is set and nothing can be rendered: {trouble}")


def _skip(items: list[pytest.Item], reason: str) -> None:
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _render_trouble() -> str:
    from scripts.doctor import probe_rendering

    return probe_rendering().reason


@pytest.fixture(scope="session")
def exported_grounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped policy as an exported folder, made once for all processes of a test run."""
    from scripts import cli
    from vla.checkpoint.initialisation import GROUNDED

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each process has a folder of its own below it
    folder = root / "exported_grounded"
    with (root / "exported_grounded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            words = ["export", str(GROUNDED), "--out", str(folder), "--observations", "1"]
            assert cli.main(words) == 0
    return folder
