"""From a run's flags to a moving robot, and to a robot that stands still again."""

from __future__ import annotations

import contextlib
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vla_runtime.contract import Robot, RobotPolicy, RobotSpec, SimulatedEpisode
from vla_runtime.execution import ChunkPlan, ChunkTiming, make_plan
from vla_runtime.inference import InferenceProcess, PolicyLoader
from vla_runtime.loop import ControlLoop
from vla_runtime.run_config import RunConfig
from vla_runtime.run_log import RunHeader
from vla_runtime.run_recording import RecordingTarget, RunRecorder
from vla_runtime.run_report import FILM, REPORT, RunReport, write_report
from vla_runtime.safety.gate import SafetyGate
from vla_runtime.safety.limits import LimitsError, SafetyLimits
from vla_runtime.safety.limits_file import load_limits
from vla_runtime.safety.workspace import Kinematics, MujocoKinematics
from vla_runtime.stop_request import StopRequest, interruptible
from vla_runtime.timing import real_time

_MODEL_UNITS = {"rad": 1.0, "m": 1.0, "deg": math.pi / 180}
"""Unit of an action → its size in the unit of a MuJoCo model's joint."""


def main(config: RunConfig) -> int:
    """Run, show the report; 0 after an orderly end, 1 after a fault."""
    with interruptible():
        report = run(config)
    _say(*report.lines(), f"report: {config.out / 'report.html'}")
    return 0 if report.succeeded else 1


def run(config: RunConfig) -> RunReport:
    """Make the robot that the flags name, and `run_robot` it.

    Raises:
        ValueError: see `run_robot`; also an unknown kind of robot.
    """
    from vla_runtime.robots.registry import make_robot

    return run_robot(make_robot(config.robot), config)


def load_policy(source: str, robot: RobotSpec) -> RobotPolicy:
    """See `vla_runtime.loading`, which is imported where the policy runs: it needs ONNX Runtime."""
    from vla_runtime import loading

    return loading.load_policy(source, robot)


def run_robot(robot: Robot, config: RunConfig, load: PolicyLoader = load_policy) -> RunReport:
    """Run the policy on the robot until time is over, somebody stops it, or something fails.

    The robot is connected here, and halted and disconnected however the run ends. Everything that
    can be refused is refused before it is connected.

    Args:
        robot: not connected yet.
        config: the flags; `config.robot` is used for messages alone.
        load: makes the policy, in the inference process; a function of a module.

    Returns:
        The report, which has also been written to `config.out`.

    Raises:
        ContractMismatchError: policy and robot do not share one contract.
        LimitsError: limits are missing, or are no usable numbers.
        OSError: the report cannot be written.
        ValueError: the execution does not fit the policy, or `config.out` holds another report.
        ConnectionError: the robot does not answer.
        InferenceError: the policy cannot be loaded.
        RecordingError: the run cannot be recorded.
        SafetyError: the robot's first measurement is not fresh.
    """
    limits = _limits(robot.spec, config)
    kinematics = _kinematics(robot.spec, config, limits)
    _prepare_out(config.out)
    with ExitStack() as stack:
        inference = InferenceProcess(load, config.policy, robot.spec, config.instruction)
        stack.callback(inference.end)
        recorder = _recorder(robot, config)
        if recorder is not None:
            stack.callback(recorder.end)
            recorder.wait_until_ready()
        chunk_length, can_inpaint = inference.wait_until_ready()
        # A chunk may end as late as the gate waits for a command.
        timing = ChunkTiming(
            chunk_length, 1 / robot.spec.control_rate_hz, config.safety.heartbeat_s
        )
        plan = make_plan(config.execution, timing, can_inpaint)
        details = _drive(robot, config, limits, kinematics, plan, inference, recorder)
        details["recording"] = {}
        if isinstance(robot, SimulatedEpisode):
            details["success"] = robot.success
        # Written now as well: finishing the recording may take long, and be interrupted.
        report = _report(robot, config, details)
        if recorder is not None:
            _say("the robot is halted; finishing the recording")
            details["recording"] = recorder.finish()
            report = _report(robot, config, details)
    if isinstance(robot, SimulatedEpisode):
        robot.film(config.out / FILM)  # last: nothing that fails here may cost the report
    return report


def _say(*lines: str) -> None:
    with contextlib.suppress(OSError):  # whoever listened has gone, and nothing is left undone
        print(*lines, sep="\n", flush=True)


def _report(robot: Robot, config: RunConfig, details: dict[str, Any]) -> RunReport:
    report = RunReport.of(config, robot.spec, details)
    write_report(config.out, report)
    return report


def _prepare_out(folder: Path) -> None:
    if (folder / REPORT).exists():
        raise ValueError(f"--out {folder} holds the report of an earlier run: name another folder")
    # Also a folder that is there already: a run that cannot be reported on must not begin.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write the report to --out {folder}: {error.strerror}") from error


def _limits(spec: RobotSpec, config: RunConfig) -> SafetyLimits:
    if config.limits is not None:
        try:
            return load_limits(config.limits, spec)
        except OSError as error:
            raise OSError(f"--limits {config.limits} cannot be read: {error.strerror}") from error
    try:
        return SafetyLimits.from_spec(spec)
    except LimitsError as error:
        raise LimitsError(f"{error} (--limits FILE)") from error


def _kinematics(spec: RobotSpec, config: RunConfig, limits: SafetyLimits) -> Kinematics | None:
    if not limits.workspace:
        if config.kinematics is not None:
            raise LimitsError(
                f"--kinematics {config.kinematics} guards nothing: the limits have no [workspace] "
                "with boxes for points of the robot; add one (--limits FILE), or leave the flag out"
            )
        return None
    if config.kinematics is None:
        raise LimitsError(
            f"{config.limits} limits the workspace of {sorted(limits.workspace)}: name the robot's "
            "MJCF or URDF with --kinematics FILE"
        )
    # A gripper in percent is no joint of the model: where it stands moves none of the points.
    joints = [
        name.removesuffix(".pos") if unit in _MODEL_UNITS else None
        for name, unit in zip(spec.action.names, spec.action.units, strict=True)
    ]
    scale = [_MODEL_UNITS.get(unit, 0.0) for unit in spec.action.units]
    return MujocoKinematics(config.kinematics, joints, list(limits.workspace), scale)


def _recorder(robot: Robot, config: RunConfig) -> RunRecorder | None:
    if config.record is None and config.rerun is None:
        return None
    source = {"robot": config.robot, "policy": config.policy, "execution": config.execution}
    header = RunHeader(robot.spec, config.instruction, source)
    return RunRecorder(RecordingTarget(header, config.record, config.rerun))


def _connect(robot: Robot, stop: StopRequest) -> None:
    try:
        with stop.waiting():
            robot.connect()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # as a driver does that is still connecting
            robot.disconnect()
        raise


def _drive(
    robot: Robot,
    config: RunConfig,
    limits: SafetyLimits,
    kinematics: Kinematics | None,
    plan: ChunkPlan,
    inference: InferenceProcess,
    recorder: RunRecorder | None,
) -> dict[str, Any]:
    """Connect, run the loop, disconnect; what the report says of it."""
    with StopRequest() as stop:
        _connect(robot, stop)
        trouble: list[str] = []
        try:
            gate = SafetyGate(robot, limits, config.safety, kinematics=kinematics)
            loop = ControlLoop(robot, gate, plan, inference, recorder, stop)
            with real_time(config.priority) as scheduling:
                # Before anything moves: who needs FIFO and may not use it can still stop here.
                _say(f"scheduling: {scheduling}", f"running; to stop: {stop.how}")
                ended = loop.run(config.seconds, config.return_inside)
        finally:
            try:
                robot.disconnect()
            except OSError as error:  # the report is still to be written
                trouble.append(f"disconnecting failed: {error}; what holds: {robot.halted}")
    fault = "; ".join([loop.fault, *trouble] if loop.fault else trouble) or None
    return {"ended": fault or ended, "fault": fault, "scheduling": scheduling, **loop.measured()}
