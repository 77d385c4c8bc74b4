"""Draws the emulated SO-101 in a process of its own: a renderer would delay the servos' replies."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import mujoco
import numpy as np

from vla_runtime.robots.frame_file import FrameFile
from vla_runtime.robots.mujoco_model import load_model
from vla_runtime.robots.mujoco_robot import make_renderer


class ArmView:
    """A process that draws a model as often as asked, if the machine is fast enough.

    Args:
        model: MJCF file.
        frames: file of the images.
        camera: name in the model.
        size: height and width, pixels.
        fps: images a second.

    Raises:
        ConnectionError: `frames` cannot be made.
    """

    def __init__(self, model: Path, frames: Path, camera: str, size: tuple[int, int], fps: float):
        FrameFile(frames, *size, create=True)
        joints = load_model(model).nq
        self._shared = RawArray(ctypes.c_double, joints)
        self._qpos = np.frombuffer(self._shared, np.float64)
        # Not "fork": a forked child could inherit a GL context.
        multiprocessing.get_context("spawn").Process(
            target=_draw,
            args=(self._shared, os.getpid(), model, frames, camera, size, fps),
            daemon=True,
        ).start()

    def show(self, data: mujoco.MjData) -> None:
        """Draw this state from now on."""
        self._qpos[:] = data.qpos


def _draw(
    shared: ctypes.Array[ctypes.c_double],
    parent: int,
    path: Path,
    frames: Path,
    camera: str,
    size: tuple[int, int],
    fps: float,
) -> None:
    model = load_model(path)
    data = mujoco.MjData(model)
    renderer = make_renderer(model, str(path), *size)
    file = FrameFile(frames, *size)
    due_s = time.monotonic()
    # A parent that was killed has stopped nothing.
    while os.getppid() == parent:
        taken_s = time.perf_counter()
        # Half of an older state is possible here, and too small a difference to see.
        data.qpos[:] = np.frombuffer(shared, np.float64)
        mujoco.mj_fwdPosition(model, data)
        renderer.update_scene(data, camera)
        file.write(renderer.render(), taken_s)
        due_s = max(due_s + 1 / fps, time.monotonic())
        time.sleep(due_s - time.monotonic() if due_s > time.monotonic() else 0.0)
