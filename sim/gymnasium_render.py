"""Images of gymnasium environments: with our renderer where MuJoCo simulates, else their own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sim.camera import Camera
from sim.render import CameraRenderer, choose_backend
from sim.tasks.base import TaskDeclarationError
from sim.tasks.gymnasium_task import RENDERED, GymnasiumState

_CONTEXTS = 12
"""Geometries whose meshes and textures are kept (50 MB each in Meta-World) after their last use."""


class GymnasiumRenderer:
    """Draws the states of one task.

    Each environment has a model of its own, but those of equal geometry share one GL context.

    Args:
        cameras: what to draw; `RENDERED` is what the environment's own `render()` gives, cut to a
            square and scaled.
        size: pixels a side.
        antialias: multisample what we draw.
    """

    def __init__(self, cameras: Sequence[Camera], size: int, antialias: bool = False):
        self._cameras = [camera for camera in cameras if camera.name != RENDERED]
        self._renders = len(self._cameras) < len(cameras)
        self._size, self._antialias = size, antialias
        # Geometry → renderer, the one used last at the end.
        self._contexts: dict[str, CameraRenderer] = {}
        # State, by its identity → the geometry that it had when it was drawn last.
        self._states: dict[int, str] = {}

    def render(self, data: GymnasiumState, out: Mapping[str, np.ndarray]) -> None:
        """Draw the present state into camera name → uint8 [size, size, 3]."""
        if self._cameras:
            self._context(data).render(data.data, out, data.model)
        if self._renders:
            out[RENDERED][...] = self._rendered(data)

    def images(self, data: GymnasiumState) -> dict[str, np.ndarray]:
        """Newly allocated images, camera name → uint8 [size, size, 3]."""
        names = [camera.name for camera in self._cameras] + [RENDERED] * self._renders
        out = {name: np.empty((self._size, self._size, 3), np.uint8) for name in names}
        self.render(data, out)
        return out

    def close(self) -> None:
        """Free the GL contexts; may be called again."""
        while self._contexts:
            self._contexts.popitem()[1].close()

    def _context(self, data: GymnasiumState) -> CameraRenderer:
        key = data.geometry
        self._states[id(data)] = key
        if key in self._contexts:
            self._contexts[key] = self._contexts.pop(key)
            return self._contexts[key]
        # Never one that a state is in: states are drawn in turn, and each would be made anew.
        idle = [one for one in self._contexts if one not in self._states.values()]
        for old in idle[: max(0, len(self._contexts) + 1 - _CONTEXTS)]:
            self._contexts.pop(old).close()
        self._contexts[key] = CameraRenderer(data.model, self._cameras, self._size, self._antialias)
        return self._contexts[key]

    def _rendered(self, data: GymnasiumState) -> np.ndarray:
        if data.has_mujoco:
            # Gymnasium asks for a screen where nobody says which library to use.
            os.environ.setdefault("MUJOCO_GL", choose_backend())
        # Gymnasium makes the GL context of a MuJoCo environment current once, as if no other one
        # of this process were ever drawn.
        own = getattr(data.env.unwrapped, "mujoco_renderer", None)
        if (viewer := getattr(own, "viewer", None)) is not None:
            viewer.make_context_current()
        frame = data.env.render()
        CameraRenderer.others_have_drawn()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
            raise TaskDeclarationError(
                f"{data.env} renders {type(frame).__name__}, not an image [h, w, 3] of uint8; make "
                'it with render_mode="rgb_array"'
            )
        height, width = frame.shape[:2]
        side = min(height, width)
        # The middle: a stretched image would show angles that are not there.
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(frame[top : top + side, left : left + side, :3])
        return np.asarray(square.resize((self._size, self._size), Image.Resampling.BOX))
