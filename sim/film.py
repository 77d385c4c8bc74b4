"""Films of episodes, drawn after the fact: an equal seed and equal actions are an equal episode."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from sim.tasks.base import Phrasing
from sim.tasks.registry import make_task


def replay(
    task_name: str,
    seed: int,
    actions: np.ndarray,
    size: int = 256,
    cameras: Sequence[str] | None = None,
    phrasing: Phrasing = "train",
) -> np.ndarray:
    """Draw the episode `seed` under these actions, the cameras next to each other, antialiased.

    Args:
        task_name: registry name.
        seed: of the episode.
        actions: float32 [steps, action.dim], one a control step, in contract units.
        size: side of one camera's image, pixels.
        cameras: from left to right; None is the first two that the task has.
        phrasing: of the episode; it decides words, never physics.

    Returns:
        uint8 [steps + 1, size, size * cameras, 3], the first frame before any action.
    """
    task = make_task(task_name, size)
    if actions.ndim != 2 or actions.shape[1] != task.spec.action.dim:
        raise ValueError(
            f"actions have shape {actions.shape}, expected [steps, {task.spec.action.dim}]"
        )
    cameras = cameras or [camera.name for camera in task.spec.cameras][:2]
    data = task.make_data()
    episode = task.reset(data, seed, phrasing)
    # One array for all cameras, side by side: each row is already an image of the film.
    frames = np.empty((len(actions) + 1, size, size * len(cameras), 3), np.uint8)
    renderer = task.make_renderer(cameras, size, antialias=True)
    try:
        for index, frame in enumerate(frames):
            if index:  # the first frame is the initial state
                task.step(data, episode, actions[index - 1])
            task.place_markers(data, episode)
            # Views into `frame`: the renderer writes into the film itself.
            parts = np.split(frame, len(cameras), axis=1)
            renderer.render(data, dict(zip(cameras, parts, strict=True)))
    finally:
        renderer.close()
    return frames


def write_mp4(path: Path | str, frames: np.ndarray, fps: int = 25) -> None:
    """Write H.264 (yuv420p) that a browser plays while it loads; the file appears when complete.

    Args:
        path: of the .mp4 file; its folder must exist.
        frames: uint8 [time, height, width, 3] RGB; height and width even.
        fps: frames a second.

    Raises:
        ValueError: frames of another type or shape, or none.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [t, h, w, 3]")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs an even height and width, got {height} x {width}")
    path = Path(path)
    # In the same folder, since replacing is atomic within one file system alone.
    handle, partial = tempfile.mkstemp(suffix=".mp4", dir=path.parent)
    os.close(handle)
    try:
        # "faststart" moves the index to the front of the file, which is what lets it play while it
        # loads.
        with av.open(partial, "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "23"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for image in frames:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())  # what the encoder still holds back
        # mkstemp makes it readable for the owner alone.
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    # Also after Ctrl-C: no half-written film stays behind.
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
