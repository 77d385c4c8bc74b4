"""Everything that happens in a run, recorded by a process of its own that the loop never waits for.

The process appends to a log (see `run_log`), shows the run in Rerun where that is asked for, and
when the run has ended adds the log to a LeRobotDataset. When the control loop is killed it does so
as well; a log that a kill of this process leaves is added by the next run into the same folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_runtime.child_process import ChildEndedError, ChildProcess, MessageSocket
from vla_runtime.contract import ContractMismatchError, Reading, RobotSpec
from vla_runtime.dataset_files import (
    add_episodes,
    finish_interrupted,
    recording_lock,
    robot_features,
    vector_feature,
)
from vla_runtime.live_view import LiveView
from vla_runtime.run_log import RunHeader, RunLogWriter, RunStep, read_header, read_steps
from vla_runtime.shared_arrays import Layout, SharedArrays

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

_BUFFER_S = 2.0
"""How long the recording process may be busy before control steps are dropped."""
_LONGEST_EPISODE_S = 60.0
"""LeRobot keeps an episode's images in memory while it writes them."""
_KEPT = "the next run into this folder adds the log of this one"


class RecordingError(RuntimeError):
    """The recording process failed, or ended; the message says how."""


@dataclass(frozen=True)
class RecordingTarget:
    """Where a run is recorded to.

    Attributes:
        header: what the run is.
        folder: of the LeRobotDataset; None for none.
        viewer: of Rerun, see `RunConfig.rerun`; None for none.
    """

    header: RunHeader
    folder: Path | None
    viewer: str | None


class RunRecorder:
    """The control loop's end: hands over control steps, and drops them rather than wait.

    Attributes:
        recorded: control steps handed over.
        dropped: control steps that found no room.
        failure: why nothing more is recorded; None while all is well.

    Raises:
        OSError: too little shared memory.
    """

    def __init__(self, target: RecordingTarget):
        spec = target.header.spec
        slots = max(round(_BUFFER_S * spec.control_rate_hz), 4)
        self._arrays = SharedArrays(_layout(spec, slots))
        self._free = list(range(slots))
        self._child = ChildProcess("the recording process", _serve, target, self._arrays)
        self.recorded = self.dropped = 0
        self.failure: str | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def wait_until_ready(self) -> None:
        """Wait until the folder is open and the viewer has shown its first image.

        Raises:
            RecordingError: it cannot record there.
        """
        try:
            answer = self._child.messages.receive()
        except ChildEndedError as error:
            raise RecordingError(self._child.how_it_ended()) from error
        if answer and "error" in answer:
            raise RecordingError(answer["error"])

    def add(
        self, reading: Reading, time_s: float, action: np.ndarray, requested: np.ndarray
    ) -> None:
        """Hand over one control step; see `RunStep`. Never waits, never raises."""
        try:
            self._take_back()
            if self.failure or not self._free:
                self.dropped += 1
                return
            slot = self._free.pop()
            arrays = self._arrays.arrays
            for name, image in reading.images.items():
                arrays[f"image.{name}"][slot] = image
            arrays["proprio"][slot] = reading.proprio
            arrays["action"][slot], arrays["requested"][slot] = action, requested
            self._child.messages.send({"slot": slot, "time_s": time_s})
            self.recorded += 1
        except OSError as error:
            self.failure = str(error)
            self.dropped += 1

    def finish(self) -> dict[str, Any]:
        """Have the log added to the data set, however long that takes.

        Returns:
            What came of it, for the report: "recorded", "dropped" and "failure", and "episodes" and
            "frames" of the data set, or "kept": why it has only the log.
        """
        self._child.messages.end_of_messages()
        summary: dict[str, Any] = {}
        try:
            while not summary:
                message = self._child.messages.receive()
                assert message is not None
                if "error" in message:
                    raise ChildEndedError(message["error"])
                summary = {} if "slot" in message else message
        except ChildEndedError as error:
            self.failure = self.failure or f"{self._child.how_it_ended()} ({error})"
            summary = {"kept": _KEPT}
        except KeyboardInterrupt:  # a second Ctrl-C ends the waiting, not the report
            self.failure = self.failure or "interrupted before the log was in the data set"
            summary = {"kept": _KEPT}
        counts = {"recorded": self.recorded, "dropped": self.dropped, "failure": self.failure}
        return counts | summary

    def end(self) -> None:
        """End the process; a log that it has not added is added by the next run."""
        self._child.end()
        self._arrays.close()

    def _take_back(self) -> None:
        while (answer := self._child.messages.receive(0.0)) is not None:
            if "error" in answer:
                raise ChildEndedError(answer["error"])
            self._free.append(answer["slot"])


def _layout(spec: RobotSpec, slots: int) -> Layout:
    images = {f"image.{c.name}": ((slots, c.height, c.width, 3), "uint8") for c in spec.cameras}
    vectors = {"proprio": spec.proprio.dim, "action": spec.action.dim, "requested": spec.action.dim}
    return images | {name: ((slots, dim), "float32") for name, dim in vectors.items()}


# --- in the recording process


def _serve(messages: MessageSocket, target: RecordingTarget, shared: SharedArrays) -> None:
    view = LiveView(target.viewer, target.header.spec) if target.viewer else None
    if target.folder is None:
        messages.send({"ready": True})
        _follow(messages, shared, target.header.spec, None, view)
        messages.send({"frames": 0, "episodes": 0})
        return
    with open_recording(target.folder, target.header.spec):
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
        log = RunLogWriter(target.folder / ".recording" / name, target.header)
        messages.send({"ready": True})
        _follow(messages, shared, target.header.spec, log, view)
        log.close()
        messages.send(add_logs(target.folder))


def _follow(
    messages: MessageSocket,
    shared: SharedArrays,
    spec: RobotSpec,
    log: RunLogWriter | None,
    view: LiveView | None,
) -> None:
    """Until the control loop says that nothing more comes, or has gone."""
    while True:
        try:
            message = messages.receive()
        except ChildEndedError:
            break
        assert message is not None
        slot, arrays = message["slot"], shared.arrays
        step = RunStep(
            message["time_s"],
            {camera.name: arrays[f"image.{camera.name}"][slot] for camera in spec.cameras},
            *(arrays[name][slot] for name in ("proprio", "action", "requested")),
        )
        if log is not None:
            log.add(step)
        if view is not None:
            view.show(step)
        try:
            messages.send({"slot": slot})
        except OSError:
            continue  # the loop has gone: what it had handed over is still to be read
    if view is not None:
        view.close()


# --- the folder


@contextmanager
def open_recording(folder: Path, spec: RobotSpec | None) -> Iterator[None]:
    """Create or reopen a data set of runs, for this process alone, and finish what a kill left.

    Args:
        folder: of the data set.
        spec: of the robot that is to be added; None where only logs are to be.

    Raises:
        ContractMismatchError: the data set is of another robot.
        ValueError: the folder holds something else.
        BlockingIOError: another process records there.
    """
    work = folder / ".recording"
    if folder.is_dir() and any(folder.iterdir()) and not work.is_dir():
        raise ValueError(f"{folder} exists and is no recording of runs; choose another folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot record in the folder {folder}: {error.strerror}") from error
    with recording_lock(folder, work):
        finish_interrupted(folder, work)
        _require_same_robot(folder, spec)
        yield


def add_logs(folder: Path) -> dict[str, Any]:
    """Add every log to the data set, inside `open_recording`.

    Returns:
        "episodes" and "frames" of the data set, or "kept": why the logs stay as they are.
    """
    if importlib.util.find_spec("lerobot") is None:
        return {
            "kept": f"LeRobot is not installed: {folder} keeps the log of the run. Copy the folder "
            f"to a machine that has it and run `vla-runtime dataset --folder {folder}` there"
        }
    for log in sorted((folder / ".recording").glob("*.log")):
        if log.name not in {run["log"] for run in _runs(folder)}:
            _add_log(folder, log)
        log.unlink()
    file = folder / "meta" / "info.json"
    if not file.is_file():
        return {"episodes": 0, "frames": 0}
    info = json.loads(file.read_text())
    return {"episodes": info["total_episodes"], "frames": info["total_frames"]}


def _add_log(folder: Path, log: Path) -> None:
    if next(read_steps(log), None) is None:
        return  # a kill came before the first control step
    header = read_header(log)
    spec = header.spec
    features = robot_features(spec) | {
        "requested.action": vector_feature(spec.action.names),
        "time_s": {"dtype": "float64", "shape": (1,), "names": None},
    }
    runs = [*_runs(folder), {"log": log.name, "instruction": header.instruction, **header.source}]

    def add(writer: LeRobotDataset, meta: Path) -> None:
        longest = max(round(_LONGEST_EPISODE_S * spec.control_rate_hz), 1)
        unsaved = 0
        for step in read_steps(log):
            writer.add_frame(_frame(step) | {"task": header.instruction})
            unsaved += 1
            if unsaved == longest:
                writer.save_episode()
                unsaved = 0
        if unsaved:
            writer.save_episode()
        (meta / "runs.json").write_text(json.dumps(runs, indent=1))
        (meta / "contract.json").write_text(json.dumps(spec.to_dict(), indent=1))

    add_episodes(folder, folder / ".recording", spec, features, add)


def _frame(step: RunStep) -> dict[str, Any]:
    images = {f"observation.images.{name}": image for name, image in step.images.items()}
    return images | {
        "observation.state": step.proprio,
        "action": step.action,
        "requested.action": step.requested,
        "time_s": np.array([step.time_s]),
    }


def _runs(folder: Path) -> list[dict[str, Any]]:
    file = folder / "meta" / "runs.json"
    return json.loads(file.read_text()) if file.is_file() else []


def _require_same_robot(folder: Path, spec: RobotSpec | None) -> None:
    if spec is None:
        return
    file = folder / "meta" / "contract.json"
    known = [RobotSpec.read(file)] if file.is_file() else []
    for log in (folder / ".recording").glob("*.log"):  # of runs that were killed
        known += [read_header(log).spec] if next(read_steps(log), None) is not None else []
    for other in known:
        try:
            other.require_match(spec, f"data set {folder}", f"robot {spec.robot!r}")
        except ContractMismatchError as error:
            raise ContractMismatchError(f"{error}\nchoose another folder for --record") from error
