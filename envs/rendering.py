"""Pictures of envs: how MuJoCo renders without a display, and a check of what an env's `render` returns."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pbtrl.envs.errors import ENV_EXCEPTIONS, brief, described
from pbtrl.errors import RenderError

MODE = "rgb_array"
FPS = 30.0
"""Frames per second of an env that does not say."""
_BACKENDS = ("egl", "osmesa")
_PROBE = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current()"


def take_picture(env: Any, where: str) -> NDArray[np.uint8]:
    """Render an env; returns [H, W, 3].

    Raises:
        RenderError: it raises, returns no picture, or MuJoCo has no OpenGL on this machine.
    """
    if "mujoco" in sys.modules:
        choose_opengl(where)
    try:
        frame = env.render()
    except ENV_EXCEPTIONS as error:
        raise RenderError(where, f"cannot render: {brief(error)}") from error
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise RenderError(where, f"render() must return a uint8 array [H, W, 3], not {described(frame)}")
    return frame


def choose_opengl(where: str) -> None:
    """Set MUJOCO_GL to EGL or else OSMesa, whichever works; a setting or a display of the user takes precedence.

    Raises:
        RenderError: none of them works.
    """
    if "MUJOCO_GL" in os.environ or sys.platform != "linux":
        return
    if working := next((backend for backend in _BACKENDS if _works(backend)), None):
        os.environ["MUJOCO_GL"] = working
    elif "DISPLAY" not in os.environ:
        raise RenderError(
            where,
            "cannot render without a display, because neither EGL nor OSMesa works: install libegl1 and a driver "
            "(Debian: libgl1-mesa-dri) or libosmesa6, or set MUJOCO_GL",
        )


def _works(backend: str) -> bool:
    """Try an OpenGL in another process, because PyOpenGL keeps the first one that it loads."""
    env = {**os.environ, "MUJOCO_GL": backend}
    env.pop("PYOPENGL_PLATFORM", None)
    try:
        result = subprocess.run([sys.executable, "-c", _PROBE], env=env, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0
