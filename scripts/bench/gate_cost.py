"""What the safety gate costs a control step, for six joints.

    python -m scripts.bench.gate_cost

times `SafetyGate.write` with targets that jump, so that nearly every command is limited, beside the
closed form alone. The robot only takes the command. Processor time of the thread is what the gate
needs; wall time is what the loop waits, with whatever else the machine does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import tyro
from vla_runtime.contract import Reading, RobotSpec, VectorSpec
from vla_runtime.safety.gate import SafetyGate
from vla_runtime.safety.limits import Box, SafetyLimits
from vla_runtime.safety.motion import Axis
from vla_runtime.safety.workspace import MujocoKinematics

from vla.settings import require_numbers

JOINTS = 6


@dataclass(frozen=True)
class GateCostConfig:
    """How long is timed.

    Attributes:
        steps: control steps of each variant.
        control_rate_hz: nominal rate; the clock is simulated, nothing waits.
        seed: of the targets.
    """

    steps: int = 20_000
    control_rate_hz: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("steps",), above_0=("control_rate_hz",))


class _Sink:
    """A robot that takes everything."""

    halted = "nothing moves"

    def __init__(self, spec: RobotSpec) -> None:
        self.spec = spec

    def connect(self) -> None:
        """Nothing to open."""

    def read(self) -> Reading:
        """Where it began."""
        zeros = np.zeros(JOINTS)
        return Reading({}, zeros.astype(np.float32), zeros, 0.0)

    def write(self, command: np.ndarray) -> None:
        """Nothing to send."""

    def halt(self) -> None:
        """Nothing moves."""

    def disconnect(self) -> None:
        """Nothing to close."""


def arm_model() -> mujoco.MjModel:
    """Six links of 0.1 m, hinges about alternating axes, a site at the tip."""
    axes = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
    tail = '<site name="tip" pos="0.1 0 0"/>' + "</body>" * JOINTS
    links = "".join(
        f'<body pos="{0.1 if i else 0} 0 0"><joint name="j{i}" axis="{axis}"/>'
        '<geom size="0.01" pos="0.05 0 0"/>'
        for i, axis in enumerate(axes)
    )
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{links}{tail}</worldbody></mujoco>")


def arm_limits(control_rate_hz: float) -> SafetyLimits:
    """Limits like those of a small arm: 2 rad/s, 10 rad/s^2."""
    names = tuple(f"j{i}" for i in range(JOINTS))
    return SafetyLimits(
        action=VectorSpec(names, ("rad",) * JOINTS, (-2.0,) * JOINTS, (2.0,) * JOINTS),
        kinds=("position",) * JOINTS,
        velocity=(2.0,) * JOINTS,
        acceleration=(10.0,) * JOINTS,
        control_rate_hz=control_rate_hz,
    )


def gate_step(limits: SafetyLimits) -> Callable[[np.ndarray], object]:
    """A control step through the gate, on a clock that is always on time."""
    now = [0.0]
    kinematics = None
    if limits.workspace:
        kinematics = MujocoKinematics(arm_model(), limits.action.names, ("tip",))
    spec = RobotSpec("arm", limits.action, limits.action, (), limits.control_rate_hz)
    robot = _Sink(spec)
    gate = SafetyGate(robot, limits, clock=lambda: now[0], kinematics=kinematics)
    gate.start(robot.read())

    def step(target: np.ndarray) -> np.ndarray:
        now[0] += limits.period_s
        written = gate.write(target, observed_s=now[0], expires_s=now[0])
        assert gate.fault is None, gate.fault
        return written

    return step


def closed_form_step(limits: SafetyLimits) -> Callable[[np.ndarray], object]:
    """The closed form of every joint, without checks, clock or robot."""
    axes = [Axis(-2.0, 2.0, 2.0, 10.0, limits.period_s) for _ in range(JOINTS)]
    motions = [axis.rest(0.0) for axis in axes]

    def step(target: np.ndarray) -> None:
        for i, axis in enumerate(axes):
            motions[i] = axis.toward(motions[i], float(target[i]))

    return step


def microseconds(
    step: Callable[[np.ndarray], object], targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Processor and wall time of each step, microseconds, [step]."""
    cpu, wall = np.empty(len(targets)), np.empty(len(targets))
    for k, target in enumerate(targets):
        cpu_before, before = time.thread_time_ns(), time.perf_counter_ns()
        step(target)
        wall[k] = time.perf_counter_ns() - before
        cpu[k] = time.thread_time_ns() - cpu_before
    return cpu / 1e3, wall / 1e3


def table(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """Percentiles of each variant."""
    head = f"{'':34}{'cpu p50':>10}{'p99':>8}{'p99.9':>8}{'wall p50':>10}{'p99':>8}   us a step"
    lines = [
        f"{label:34}"
        + "".join(
            f"{value:{width}.1f}"
            for value, width in zip(
                [*np.percentile(cpu, (50, 99, 99.9)), *np.percentile(wall, (50, 99))],
                (10, 8, 8, 10, 8),
                strict=True,
            )
        )
        for label, cpu, wall in rows
    ]
    return "\n".join([head, *lines])


def main(config: GateCostConfig) -> int:
    """Time every variant on the same targets and print one table."""
    rng = np.random.default_rng(config.seed)
    # A new target every ten steps, often out of reach and out of range.
    targets = np.repeat(rng.uniform(-2.5, 2.5, (config.steps // 10, JOINTS)), 10, axis=0)
    plain = arm_limits(config.control_rate_hz)
    jerk = replace(plain, jerk=(100.0,) * JOINTS)
    boxes = {"tip": Box((0.0, -0.4, -0.4), (0.65, 0.4, 0.4))}
    variants = {
        "closed form alone": closed_form_step(plain),
        "gate": gate_step(plain),
        "gate with jerk": gate_step(jerk),
        "gate with workspace": gate_step(replace(plain, workspace=boxes)),
        "gate with jerk and workspace": gate_step(replace(jerk, workspace=boxes)),
    }
    print(table([(label, *microseconds(step, targets)) for label, step in variants.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(GateCostConfig)))
