"""Offscreen images of a MuJoCo model, on EGL or OSMesa, whichever this machine has."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np

from sim import gl_environment
from sim.camera import Camera, as_cameras

_MODULES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw"}


class NoRendererError(RuntimeError):
    """No OpenGL library works here; the message says which variable to unset or what to install."""


class CameraRenderer:
    """Draws named cameras of one model into uint8 RGB arrays, row 0 at the top.

    One GL context, one scene: the geometry is collected once a state and then drawn from each
    camera. Shadows and reflections are off; without `antialias` so is multisampling, which is most
    of the cost on a CPU and changes pixels at edges.

    Args:
        model: whose meshes and textures are uploaded; `render` may draw any model of the same
            geometry.
        cameras: names of the model's cameras, or views of it.
        size: pixels a side.
        antialias: multisample.

    Raises:
        NoRendererError: no GL library, or the one that MUJOCO_GL names does not work.
        ValueError: the model has no such camera.
    """

    _current: ClassVar[CameraRenderer | None] = None

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[str | Camera],
        size: int,
        antialias: bool = False,
    ):
        self._cameras = as_cameras(cameras)
        self.cameras = tuple(camera.name for camera in self._cameras)
        self.size = size
        self._model = model
        self._context = None
        # Also checks the names, before a GL context is made.
        self._views = [camera.in_model(model) for camera in self._cameras]
        with _settings(model, size, antialias):
            self._gl, self._context = self._start(choose_backend())
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZERONEAR
        # Twice, since sites, tendons and the like are drawn as geometries too.
        self._scene = _make_scene(model, max(1000, 2 * model.ngeom))
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, size, size)
        # Read buffer, reused for every image: mjr_readPixels needs contiguous memory.
        self._upside_down = np.empty((size, size, 3), np.uint8)

    def _start(self, backend: str) -> tuple[Any, mujoco.MjrContext]:
        """The backend's context, made current, and MuJoCo's in it."""
        platform = os.environ.get("PYOPENGL_PLATFORM", "").lower()
        # PyOpenGL takes its library from this variable as it is imported, so a contradiction cannot
        # be resolved later in this process.
        if backend != "glfw" and platform not in ("", backend):
            raise _no_renderer(f"PYOPENGL_PLATFORM={platform} contradicts the renderer {backend}")
        try:
            gl = importlib.import_module(_MODULES[backend]).GLContext(self.size, self.size)
            gl.make_current()
            context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # the backends raise AttributeError, ImportError, FatalError...
            raise _no_renderer(f"the renderer {backend} does not start ({error})") from error
        CameraRenderer._current = self
        return gl, context

    def _collect(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Fill the scene, and make a larger one where it is full: the rest would be invisible."""
        everything = mujoco.mjtCatBit.mjCAT_ALL
        view, option = self._views[0], self._option
        mujoco.mjv_updateScene(model, data, option, None, view, everything, self._scene)
        while self._scene.status:
            self._scene = _make_scene(self._model, 2 * self._scene.maxgeom)
            mujoco.mjv_updateScene(model, data, option, None, view, everything, self._scene)

    def render(
        self,
        data: mujoco.MjData,
        out: Mapping[str, np.ndarray],
        model: mujoco.MjModel | None = None,
    ) -> None:
        """Draw the present state of `data` (positions as they are; no physics is computed).

        Args:
            data: of the model.
            out: camera name → uint8 [size, size, 3] that receives the image.
            model: what is drawn, where it is not the renderer's own: a copy of it in which poses or
                colours were changed.
        """
        if self._context is None:
            raise RuntimeError("this renderer is closed")
        model = model or self._model
        self._make_current()
        # The geometry is collected once and drawn from every camera.
        self._collect(model, data)
        for camera, view in zip(self._cameras, self._views, strict=True):
            # Moves the camera alone; the geometry collected above stays.
            mujoco.mjv_updateCamera(model, data, view, self._scene)
            mujoco.mjr_render(self._rect, self._scene, self._context)
            mujoco.mjr_readPixels(self._upside_down, None, self._rect, self._context)
            # OpenGL's row 0 is the bottom, so half a turn exchanges the columns alone.
            seen = self._upside_down[:, ::-1] if camera.turned else self._upside_down[::-1]
            out[camera.name][...] = seen

    def images(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """Newly allocated images, camera name → uint8 [size, size, 3]."""
        out = {name: np.empty((self.size, self.size, 3), np.uint8) for name in self.cameras}
        self.render(data, out)
        return out

    def close(self) -> None:
        """Free the GL context; may be called again."""
        if self._context is None:
            return
        self._make_current()
        # MuJoCo's context first: it frees textures and buffers in the GL context.
        self._context.free()
        self._context = None
        self._gl.free()
        CameraRenderer._current = None

    @classmethod
    def others_have_drawn(cls) -> None:
        """Say that another library of this process has made its own context current."""
        cls._current = None

    def _make_current(self) -> None:
        # Two renderers of one process take turns; most processes have one and never switch.
        if CameraRenderer._current is not self:
            self._gl.make_current()
            CameraRenderer._current = self


def _make_scene(model: mujoco.MjModel, room: int) -> mujoco.MjvScene:
    """An empty scene for so many geometries."""
    scene = mujoco.MjvScene(model, maxgeom=room)
    scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return scene


@contextlib.contextmanager
def _settings(model: mujoco.MjModel, size: int, antialias: bool) -> Iterator[None]:
    """What a context reads of a model as it is made; others may draw the model in their own way."""
    screen, quality = model.vis.global_, model.vis.quality
    kept = screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize
    screen.offwidth = screen.offheight = size
    quality.offsamples = 4 if antialias else 0
    # Shadows are off, so their map, up to 64 MB, would never be drawn.
    quality.shadowsize = 0
    try:
        yield
    finally:
        screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize = kept


def _no_renderer(reason: str) -> NoRendererError:
    return NoRendererError(f"{reason}: {gl_environment.advice()}")


def choose_backend() -> str:
    """The GL backend to use: MUJOCO_GL if set, else EGL with a device, else OSMesa.

    Raises:
        NoRendererError: MUJOCO_GL names none that exists, or no library was found.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted:
        if wanted not in _MODULES:
            raise _no_renderer(f"MUJOCO_GL={wanted!r} draws nothing, {sorted(_MODULES)} do")
        return wanted
    # Loading libEGL proves nothing: without a driver it loads, and fails at the first context.
    if _egl_devices() > 0:
        return "egl"
    try:
        ctypes.CDLL("libOSMesa.so.8")
    except OSError:
        raise _no_renderer("found neither EGL nor OSMesa") from None
    return "osmesa"


def _egl_devices() -> int:
    """How many devices EGL offers; 0 when the library or its driver is missing."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    # ctypes assumes int, which cuts a 64-bit address.
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )(address)
    count = ctypes.c_int(0)
    # With no room for devices EGL only counts them.
    return count.value if query(0, None, ctypes.byref(count)) else 0
