"""Draw every task from every camera into docs/tasks/<task>.png."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro

from sim.tasks.registry import example_names, make_task, short_name
from vla.settings import require_numbers

_INK = (40, 40, 40)


@dataclass(frozen=True)
class DrawTasksConfig:
    """What to draw.

    Attributes:
        folder: receives one PNG a task.
        tasks: registry names; empty draws all, of a family its first variant.
        seeds: one row each.
        step: control steps that the scripted expert takes first, where there is one.
        size: side of an image as the policy receives it, pixels.
        zoom: integer enlargement, nearest neighbour, so that the policy's pixels stay visible.
        antialias: multisample the images, which those of policies are not.
    """

    folder: Path = Path("docs/tasks")
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    step: int = 0
    size: int = 96
    zoom: int = 2
    antialias: bool = False

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("size", "zoom"))


def draw_task(name: str, config: DrawTasksConfig) -> np.ndarray:
    """One row a seed, one column a camera, captions above; uint8 RGB."""
    task = make_task(name, config.size)
    cameras = [camera.name for camera in task.spec.cameras]
    renderer = task.make_renderer(cameras, config.size, config.antialias)
    data = task.make_data()
    rows = []
    # One renderer for all rows: each has a GL context of its own.
    for seed in config.seeds:
        episode = task.reset(data, seed)
        for _ in range(config.step if task.has_expert() else 0):
            # Without noise: the image then shows a typical state within the episode.
            task.step(data, episode, task.expert_action(data, episode))
        task.place_markers(data, episode)
        images = renderer.images(data)
        zoomed = [_enlarge(images[camera], config.zoom) for camera in cameras]
        caption = _caption(episode.instruction, zoomed[0].shape[1] * len(cameras))
        rows += [caption, np.concatenate(zoomed, axis=1)]
    renderer.close()
    heading = np.concatenate([_caption(c, config.size * config.zoom) for c in cameras], axis=1)
    return np.concatenate([heading, *rows])


def _enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
    # [h, w, 3] to [zoom * h, zoom * w, 3]
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _caption(text: str, width: int) -> np.ndarray:
    strip = np.full((20, width, 3), 255, np.uint8)
    return cv2.putText(strip, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)


def main(config: DrawTasksConfig) -> None:
    """Write the images and print where they are."""
    config.folder.mkdir(parents=True, exist_ok=True)
    for name in config.tasks or example_names():
        path = config.folder / f"{short_name(name).replace('/', '-')}.png"
        # OpenCV writes BGR.
        cv2.imwrite(str(path), cv2.cvtColor(draw_task(name, config), cv2.COLOR_RGB2BGR))
        print(path)


if __name__ == "__main__":
    main(tyro.cli(DrawTasksConfig))
