"""The control loop: read, decide elsewhere, execute, through the safety gate, on time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from vla_runtime.contract import ContractMismatchError, Observation, Reading, Robot
from vla_runtime.execution import ChunkPlan
from vla_runtime.inference import Decision, InferenceEndedError, InferenceError, InferenceProcess
from vla_runtime.run_recording import RunRecorder
from vla_runtime.safety.checks import Fault
from vla_runtime.safety.gate import SafetyError, SafetyGate
from vla_runtime.stop_request import StopRequest
from vla_runtime.timing import DurationHistogram, Ticker

_WAIT_PERIODS = 0.3
"""How much of a period a tick waits for a chunk, where there is nothing left to execute."""
_LONGEST_STOP_S = 5.0
"""A robot that has not come to rest by then is halted as it moves."""


@dataclass
class LoopStatistics:
    """What is counted while the loop runs.

    Attributes:
        ticks: control periods.
        waited: ticks without a command of the policy.
        failed_reads: ticks in which the robot gave no usable measurement.
        decisions: latency of each, from the observation until its chunk was ready.
        work: duration of each tick, from its deadline until the robot had its command.
    """

    ticks: int = 0
    waited: int = 0
    failed_reads: int = 0
    decisions: DurationHistogram = field(default_factory=DurationHistogram)
    work: DurationHistogram = field(default_factory=DurationHistogram)


class ControlLoop:
    """One run on a connected robot.

    Args:
        robot: it is read here and written to by the gate alone.
        gate: around that robot.
        plan: says what to execute.
        inference: ready, and idle.
        recorder: ready; None records nothing.
        stop: open.

    Attributes:
        ticker: its lateness.
        statistics: everything else that was counted.
        fault: what the run was stopped for; None for an orderly end.
    """

    def __init__(
        self,
        robot: Robot,
        gate: SafetyGate,
        plan: ChunkPlan,
        inference: InferenceProcess,
        recorder: RunRecorder | None,
        stop: StopRequest,
    ):
        self._robot, self._gate, self._plan = robot, gate, plan
        self._inference, self._recorder, self._stop = inference, recorder, stop
        self._period_s = 1 / robot.spec.control_rate_hz
        self._begin_s = 0.0
        # When the chunk under way was observed, and how many commands had been executed before.
        self._asked = 0.0, 0
        self._late_s = 0.0
        self.ticker = Ticker(self._period_s)
        self.statistics = LoopStatistics()
        self._read_error: str | None = None
        self.fault: str | None = None

    def run(self, seconds: float | None, return_inside: bool = False) -> str:
        """Run until time is over, somebody stops it, or something fails; then brake and halt.

        Args:
            seconds: how long; None has no end.
            return_inside: see `RunConfig`.

        Returns:
            Why it ended, for people.

        Raises:
            ConnectionError: the robot gives no first measurement.
            SafetyError: that measurement is not fresh.
        """
        ended = ""
        try:
            ended = self._tick_until(seconds, return_inside)
        except InferenceError as error:
            self.fault = str(error)
            if isinstance(error, InferenceEndedError):
                self._come_to_rest()  # before anything that takes time
                self.fault = self._inference.how_it_ended()
        finally:
            self._come_to_rest()
        return self.fault or ended

    def measured(self) -> dict[str, Any]:
        """Everything that was counted, as plain data for the report."""
        statistics, lateness = self.statistics, self.ticker.lateness
        return {
            "ticks": statistics.ticks,
            "missed_periods": self.ticker.missed,
            "lateness_ms": lateness.summary_ms(),
            "lateness_histogram_ms": lateness.bins_ms(),
            "work_ms": statistics.work.summary_ms(),
            "decision_ms": statistics.decisions.summary_ms(),
            "ticks_without_command": statistics.waited,
            "failed_reads": statistics.failed_reads,
            "skipped_steps": self._plan.skipped,
            "gate": dict(self._gate.counts),
        }

    def _tick_until(self, seconds: float | None, return_inside: bool) -> str:
        self._robot.read()  # opens cameras and renderers, so it may be old when it comes
        reading = self._robot.read()
        self._validate(reading)
        self._gate.start(reading)
        if return_inside and self._gate.fault is not None and self._gate.fault.kind == "outside":
            self._gate.acknowledge_outside()
        self.ticker.start()
        self._begin_s = time.monotonic()
        while self._gate.fault is None:
            self.ticker.wait()
            if (reason := self._stop.reason()) is not None:
                return f"stopped by {reason}"
            if seconds is not None and self.ticker.deadline_s > self._begin_s + seconds:
                return f"{seconds:g} s are over"
            self._tick()
            self.statistics.ticks += 1
            self.statistics.work.add(time.monotonic() - self.ticker.deadline_s)
        self.fault = self._explain(self._gate.fault)
        return self.fault

    def _tick(self) -> None:
        reading = self._read()
        if reading is None:
            self.statistics.waited += 1
            self._gate.heartbeat()
            return
        self._exchange(reading)
        step = self._plan.step()
        if step is None:
            self.statistics.waited += 1
            written = requested = self._gate.heartbeat()
        else:
            requested = step.command
            # Beside the robot's eyes being open now, the chunk must not be of long ago.
            observed_s = reading.time_s - self._late_s
            written = self._gate.write(requested, observed_s=observed_s, expires_s=step.expires_s)
        if self._recorder is not None:
            self._recorder.add(reading, self._time_s(), written, requested)

    def _read(self) -> Reading | None:
        """A usable reading; None where there is none: the gate slows down, then latches."""
        try:
            reading = self._robot.read()
            self._validate(reading)
        except (OSError, ContractMismatchError) as error:
            self.statistics.failed_reads += 1
            self._read_error = str(error)
            return None
        self._read_error = None
        return reading

    def _validate(self, reading: Reading) -> None:
        Observation(reading.images, reading.proprio, "").validate(self._robot.spec)

    def _exchange(self, reading: Reading) -> None:
        """Take a chunk that has come, and ask for the next one."""
        executed = self.statistics.ticks - self.statistics.waited
        if self._inference.busy:
            self._take(self._inference.poll(), reading, executed)
        if not self._inference.busy and self._plan.due():
            self._inference.ask(reading, self._time_s(), self._plan.ask())
            self._asked = reading.time_s, executed
        # A fast policy answers within the period, and the robot need not wait for the next one.
        if self._inference.busy and self._plan.is_empty():
            wait_s = _WAIT_PERIODS * self._period_s
            self._take(self._inference.poll(wait_s), reading, executed)

    def _take(self, decision: Decision | None, reading: Reading, executed: int) -> None:
        if decision is None:
            return
        self.statistics.decisions.add(decision.latency_s)
        self._plan.accept(decision.actions, time.monotonic())
        # Steps that ran meanwhile are skipped; for the rest of the time the robot has waited.
        asked_s, before = self._asked
        ran_s = (executed - before) * self._period_s
        self._late_s = max(reading.time_s - asked_s - ran_s, 0.0)

    def _time_s(self) -> float:
        return time.monotonic() - self._begin_s

    def _explain(self, fault: Fault) -> str:
        """The gate's reason, and what is behind it."""
        text = f"{fault.kind}: {fault.reason}"
        if fault.kind == "observation":
            waited = f"; the robot had waited {self._late_s:.2f} s for the policy"
            text += waited if self._late_s > self._period_s else ""
            return f"{text}. --safety.max-observation-age-s allows older ones"
        if fault.kind != "heartbeat":
            return text
        if self._read_error is not None:
            return f"{text}; the robot could not be read: {self._read_error}"
        if self._inference.busy:
            return (
                f"{text}; the policy had been deciding for {self._inference.busy_s:.2f} s. "
                "--safety.heartbeat-s allows it more"
            )
        return text

    def _come_to_rest(self) -> None:
        """Slow down within the limits, then halt; safe to repeat."""
        self._gate.stop("the run ends")
        until_s = time.monotonic() + _LONGEST_STOP_S
        while self._gate.mode != "idle" and time.monotonic() < until_s:
            # The first heartbeat is what makes the gate act on the request.
            self._gate.heartbeat()
            if self._gate.at_rest:
                break
            self.ticker.wait()
        try:
            self._gate.halt()
        except SafetyError as error:
            self.fault = f"{self.fault or 'the run had ended'}; {error}"
