"""A run in a process of its own, to be killed: `python run_process.py FOLDER SECONDS [POLICY]`.

Prints a line of JSON with the process ids once the robot moves, and one with the end of the report.
The robot writes every command it gets, and every halt, into FOLDER/robot.txt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from loop_doubles import NumpyRobot, load
from vla_runtime import run as run_module
from vla_runtime.inference import InferenceProcess
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.run_recording import RunRecorder
from vla_runtime.safety.gate import SafetyConfig


class LoggingRobot(NumpyRobot):
    """Writes down what is done to it, and tells when it moves first."""

    def __init__(self, file: Path, pids: dict[str, int]):
        super().__init__()
        self._file, self._pids = file.open("a", buffering=1), pids

    def write(self, command: np.ndarray) -> None:
        """Note the command."""
        if not self.written:
            print(json.dumps(self._pids), flush=True)
        super().write(command)
        self._file.write(f"{command[0]:.6f}\n")

    def halt(self) -> None:
        """Note it."""
        super().halt()
        self._file.write("halt\n")


def main() -> None:
    """Run, and tell the process ids through patched constructors."""
    folder, seconds, *policy = sys.argv[1:]
    pids = {"control": os.getpid()}

    class Inference(InferenceProcess):
        def wait_until_ready(self) -> tuple[int, bool]:
            pids["inference"] = self.pid
            return super().wait_until_ready()

    class Recorder(RunRecorder):
        def wait_until_ready(self) -> None:
            pids["recording"] = self.pid
            super().wait_until_ready()

    run_module.InferenceProcess, run_module.RunRecorder = Inference, Recorder
    place = Path(folder)
    config = RunConfig(
        "double",
        policy[0] if policy else "ramp",
        "go",
        seconds=float(seconds),
        out=place / f"out-{os.getpid()}",  # a folder takes one report
        record=place / "data",
        safety=SafetyConfig(heartbeat_s=2.0, max_observation_age_s=5.0),
    )
    report = run_robot(LoggingRobot(place / "robot.txt", pids), config, load)
    print(json.dumps({"fault": report.fault, "recording": report.details["recording"]}))


if __name__ == "__main__":
    main()
