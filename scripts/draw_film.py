"""Draw policies on equal initial states into one looping GIF: a row a policy, a column a state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from PIL import Image

from policies.rollout import Episode, rollout
from scripts.policy_loading import make_env, policy_for, read_policy, require_comparable
from sim.film import replay
from sim.seeds import DEVELOPMENT
from sim.tasks.registry import make_task
from vla.settings import require_numbers

_INK = (40, 40, 40)


@dataclass(frozen=True)
class DrawFilmConfig:
    """What to draw.

    Attributes:
        task: registry name.
        policies: as for `vla evaluate`: `name=checkpoint folder`, or built-in names.
        out: the GIF.
        seeds: initial states, one column each.
        camera: which view.
        size: pixels a side of one view.
        every: control steps a frame.
    """

    task: str = "FetchPush"
    policies: tuple[str, ...] = ("expert",)
    out: Path = Path("runs/film.gif")
    seeds: tuple[int, ...] = tuple(DEVELOPMENT.seeds(4))
    camera: str = "front"
    size: int = 144
    every: int = 2

    def __post_init__(self) -> None:
        if not (self.policies and self.seeds):
            raise ValueError("need policies and seeds")
        require_numbers(self, at_least_1=("size", "every"))


def draw_row(name: str, episodes: tuple[Episode, ...], config: DrawFilmConfig) -> np.ndarray:
    """One policy's episodes next to each other, uint8 [t, h, w, 3]; green once it succeeds."""
    columns = []
    for episode in episodes:
        frames = replay(config.task, episode.seed, episode.actions, config.size, (config.camera,))
        # Frames are one more than steps: the first shows the initial state.
        success = np.concatenate([[False], episode.success])
        for frame, good in zip(frames, success, strict=True):
            if good:
                cv2.rectangle(frame, (0, 0), (config.size - 1, config.size - 1), (0, 160, 0), 3)
        columns.append(frames)
    # Episodes have one length, the task's, so columns fit: [t, h, columns * w, 3].
    row = np.concatenate(columns, axis=2)
    strip = np.full((18, row.shape[2], 3), 255, np.uint8)
    cv2.putText(strip, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return np.concatenate([np.broadcast_to(strip, (len(row), *strip.shape)), row], axis=1)


def main(config: DrawFilmConfig) -> None:
    """Play, draw, write, and print where it is.

    Raises:
        OSError: `out` cannot be written; nothing has been played.
        ValueError: the task has no such camera, or policies that cannot be compared.
    """
    if config.out.suffix != ".gif":
        raise ValueError(f"out must end in .gif: {config.out}")
    views = [camera.name for camera in make_task(config.task).spec.cameras]
    if config.camera not in views:
        raise ValueError(f"task {config.task} has no camera {config.camera!r}; it has {views}")
    candidates = [read_policy(text, "cpu", config.task) for text in config.policies]
    require_comparable(candidates, config.task, candidates[0].name)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.touch()  # what cannot be written is known before hours of playing
    rows = []
    for candidate in candidates:
        with make_env(candidate, config.task, len(config.seeds), None, "train") as env:
            # Played first and drawn afterwards from the actions, so policies without cameras can be
            # filmed too.
            played = rollout(env, policy_for(candidate, env, seed=0), config.seeds).episodes
        rows.append(draw_row(candidate.name, played, config))
    frames = [Image.fromarray(frame) for frame in np.concatenate(rows, axis=1)[:: config.every]]
    # Real time: control steps a frame over control steps a second. The last frame stays for 1 s.
    shown_ms = round(1000 * config.every / make_task(config.task).spec.control_rate_hz)
    durations = [shown_ms] * (len(frames) - 1) + [1000]
    # A GIF frame has a palette of at most 256 colours; fewer make a smaller file.
    palette = [frame.quantize(64) for frame in frames]
    palette[0].save(
        config.out, save_all=True, append_images=palette[1:], duration=durations, loop=0
    )
    print(config.out)


if __name__ == "__main__":
    main(tyro.cli(DrawFilmConfig))
