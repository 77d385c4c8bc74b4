"""`vla run`: a policy on a robot; see `vla_runtime.run`."""

from __future__ import annotations

from vla_runtime.run import main
from vla_runtime.run_config import RunConfig

__all__ = ["RunConfig", "main"]
