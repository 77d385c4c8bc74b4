"""One episode of scenes: how the arm moves, which frames are kept and what is visible in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.tasks.base import Episode, Motion, Task

# Every fourth control step (0.16 s): neighbouring frames differ too little to teach more.
STEPS = 40
FRAME_EVERY = 4
FRAMES_PER_EPISODE = STEPS // FRAME_EVERY
TARGET_MOVED = 2 / 3
"""Share of the frames that show another target than the episode's."""
# Share of the episodes.
_RANDOM_MOTION = 0.4
# A task whose points leave the view again and again must not loop for ever.
_MOST_RESTARTS = 10


@dataclass(frozen=True)
class Frame:
    """Where the named points of a scene are.

    Attributes:
        points: float64 [phrases, 3], world, metres; NaN where a phrase names nothing.
        image_points: float64 [phrases, cameras, 2], see `sim.camera.Camera.project`.
        all_in_view: no point is outside of a fixed camera's image.
    """

    points: np.ndarray
    image_points: np.ndarray
    all_in_view: bool


class Projector:
    """Projects a task's points into the images of its cameras.

    Args:
        task: whose points.
        phrases: their names, in order.
    """

    def __init__(self, task: Task, phrases: Sequence[str]):
        self._task, self._phrases, self._cameras = task, phrases, task.cameras

    def frame(self, data: Any, episode: Episode) -> Frame:
        """The present state of `data` with this episode's target."""
        named = self._task.points(data, episode)
        # [phrases, 3]; projecting NaN gives NaN, so absent objects stay marked.
        points = np.array([named.get(phrase, np.full(3, np.nan)) for phrase in self._phrases])
        model, physics = self._task.physics(data)
        image_points = np.stack(
            [camera.project(model, physics, points) for camera in self._cameras], axis=1
        )  # [phrases, cameras, 2]
        is_fixed = np.array([camera.is_fixed(model) for camera in self._cameras])
        fixed = image_points[np.isfinite(points).all(1)][:, is_fixed]
        # So that NaN, which is a point behind the camera, is not in view.
        return Frame(points, image_points, bool((np.abs(fixed) <= 1).all()))


def play(
    task: Task, data: Any, seed: int, rng: np.random.Generator, projector: Projector
) -> Iterator[Frame]:
    """Play one episode; `data` shows each frame, its target marked, while it is yielded."""
    motion = task.random_motion(rng) if rng.random() < _RANDOM_MOTION else _noisy_expert(task, rng)
    episode, step, restarts = task.reset(data, seed), 0, 0
    while step < STEPS:
        task.step(data, episode, motion(data, episode))
        frame = projector.frame(data, episode)
        is_over = not frame.all_in_view or task.is_terminated(data, episode)
        if is_over and restarts < _MOST_RESTARTS:
            # The motion goes on with its random stream, so the episode takes another course; frames
            # that were yielded stay.
            episode, restarts = task.reset(data, seed), restarts + 1
            continue
        step += 1
        if step % FRAME_EVERY:
            continue
        shown = episode
        if rng.random() < TARGET_MOVED:
            moved = task.move_target(data, episode, rng)
            # A target outside of the view teaches nothing: keep the episode's own.
            if (moved_frame := projector.frame(data, moved)).all_in_view:
                shown, frame = moved, moved_frame
        task.place_markers(data, shown)
        yield frame


def _noisy_expert(task: Task, rng: np.random.Generator) -> Motion:
    """The scripted expert under noise that lasts for some steps, much or little of it."""
    action = task.spec.action
    low, high = np.array(action.low), np.array(action.high)
    # bool [action.dim]; all noise is a share of half the action's range.
    is_noisy = np.array([name not in task.grip_actions for name in action.names])
    half_range = (high - low)[is_noisy] / 2
    scale = rng.uniform(0.0, 0.3)
    noise = np.zeros(len(half_range))

    def act(data: Any, episode: Episode) -> np.ndarray:
        # First-order autoregression, as in `Task.random_motion`.
        noise[:] = 0.8 * noise + rng.normal(0.0, scale, len(noise))
        disturbed = task.expert_action(data, episode).astype(np.float64)
        disturbed[is_noisy] += half_range * noise
        return np.clip(disturbed, low, high).astype(np.float32)

    return act
