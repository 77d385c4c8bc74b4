"""Environment variables that decide which OpenGL library draws, and what to do when none does."""

from __future__ import annotations

import os

_INSTALL = (
    "install a software renderer, `apt-get update && apt-get install -y libegl1 libgl1-mesa-dri` "
    "(EGL) or `apt-get update && apt-get install -y libosmesa6` (OSMesa), as root"
)
_PLATFORM = "PYOPENGL_PLATFORM"
_PREFIXES = (
    *("MUJOCO_GL", "MUJOCO_EGL_", "PYOPENGL_", "EGL_", "__EGL_", "__GLX_", "LIBGL_", "MESA_"),
    *("GALLIUM_", "GLVND_"),
)


def variables() -> dict[str, str]:
    """Environment variables that concern OpenGL: name → value.

    MuJoCo itself sets PYOPENGL_PLATFORM to the library that MUJOCO_GL, or EGL by default, means;
    in that case it is no choice of the user's and is left out.
    """
    found = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_PREFIXES)}
    # Reporting it would blame the user for what MuJoCo's import has set.
    if found.get(_PLATFORM, "").lower() == (found.get("MUJOCO_GL", "").lower() or "egl"):
        del found[_PLATFORM]
    return found


def advice() -> str:
    """What to do when nothing can be drawn.

    A variable that is set is the likelier cause: no installation helps as long as it is.
    """
    if not (present := variables()):
        return _INSTALL
    listed = ", ".join(f"{name} (now {value!r})" for name, value in present.items())
    unset = f"environment variables choose the OpenGL library and its driver: unset {listed}"
    # The library that it names may be the right one, but missing.
    if present.keys() == {"MUJOCO_GL"} and present["MUJOCO_GL"].lower() in ("egl", "osmesa"):
        return f"{unset}, or {_INSTALL}"
    return unset
