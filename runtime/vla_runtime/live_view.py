"""A run as it happens in Rerun, which the extra `rerun` installs."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.contract import RobotSpec
from vla_runtime.run_log import RunStep

HERE = "spawn"
"""Stands for a new viewer on this machine."""
_FILE = ".rrd"
_LONGEST_FLUSH_S = 10.0


class LiveView:
    """Shows images, proprioception and commands of control steps.

    Its first calls take up to half a minute, so they are made here, before anything moves.

    Args:
        viewer: "spawn", the address of a running one, such as rerun+http://10.0.0.2:9876/proxy, or
            a new file NAME.rrd, for a viewer later.
        spec: the robot's contract.

    Raises:
        ValueError: Rerun is not installed, or there is no such viewer.
        FileExistsError: the file exists.
    """

    def __init__(self, viewer: str, spec: RobotSpec):
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise ValueError(
                'rerun is not installed: pip install "vla-runtime[rerun]", or leave --rerun out'
            ) from error
        self._spec = spec
        images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in spec.cameras}
        action = np.zeros(spec.action.dim, np.float32)
        try:
            self._open(viewer)
            self.show(RunStep(0.0, images, np.zeros(spec.proprio.dim, np.float32), action, action))
            # An address is connected to in the background: only this tells that nobody answers.
            self._flush()
        except RuntimeError as error:
            raise ValueError(
                f"--rerun {viewer} cannot be used: {error}; valid: {HERE}, the address of a "
                f"running viewer such as rerun+http://127.0.0.1:9876/proxy, a new file NAME{_FILE}"
            ) from error

    def show(self, step: RunStep) -> None:
        """Show one control step."""
        rerun = self._rerun
        rerun.set_time("run", duration=step.time_s)
        for name, image in step.images.items():
            rerun.log(f"camera/{name}", rerun.Image(image))
        for group, names, values in (
            ("proprio", self._spec.proprio.names, step.proprio),
            ("action", self._spec.action.names, step.action),
            ("requested", self._spec.action.names, step.requested),
        ):
            for name, value in zip(names, values, strict=True):
                rerun.log(f"{group}/{name}", rerun.Scalars(float(value)))

    def close(self) -> None:
        """Hand over what is still on its way; a viewer that was closed meanwhile is no error."""
        with contextlib.suppress(RuntimeError):
            self._flush()

    def _open(self, viewer: str) -> None:
        self._rerun.init("vla run", spawn=viewer == HERE)
        if viewer.endswith(_FILE):
            if Path(viewer).exists():
                raise FileExistsError(f"--rerun {viewer} exists: name a new file")
            self._rerun.save(viewer)
        elif viewer != HERE:
            self._rerun.connect_grpc(viewer)

    def _flush(self) -> None:
        self._rerun.get_global_data_recording().flush(timeout_sec=_LONGEST_FLUSH_S)
