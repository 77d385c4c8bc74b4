"""What a person decides about one run of a policy on a robot."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vla_runtime.safety.gate import SafetyConfig


def _new_folder() -> Path:
    return Path("runs/run") / f"{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True)
class RunConfig:
    """Flags of `vla run`.

    Attributes:
        robot: what to control, KIND[:ARGUMENT], such as fetch:FetchPush or mujoco:arm.xml.
        policy: folder of `vla export`, ws:// address of a server, or, where torch is installed,
            a checkpoint.
        instruction: what to do, in words.
        execution: chunk, receding:STEPS, ensemble[:DECAY] or realtime:STEPS; all but the first
            go on with the old chunk while the next one is computed.
        seconds: how long; until it is stopped when None.
        limits: TOML file of limits, where the robot states none, or tighter ones; see
            `safety.limits_file`.
        kinematics: MJCF or URDF of the robot, where the limits have a workspace; its joints are
            named as the action's dimensions.
        out: new folder of the report, report.json and report.html; by default named after the time.
        record: folder of a LeRobotDataset that the run is added to.
        rerun: show the run live in Rerun: "spawn" for a window here, the address of a viewer, or a
            new file NAME.rrd for later.
        return_inside: let a robot that stands outside its limits move back inside, and only that.
        safety: when the safety gate stops by itself.
        priority: of real-time (FIFO) scheduling, 1 to 99; 0 asks for none.

    Raises:
        ValueError: an empty instruction, or a number out of range.
    """

    robot: str
    policy: str
    instruction: str
    execution: str = "chunk"
    seconds: float | None = None
    limits: Path | None = None
    kinematics: Path | None = None
    out: Path = field(default_factory=_new_folder)
    record: Path | None = None
    rerun: str | None = None
    return_inside: bool = False
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    priority: int = 50

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise ValueError("the instruction is empty: say what to do with --instruction")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be a positive number, got {self.seconds}")
        if not 0 <= self.priority <= 99:
            raise ValueError(f"priority must lie from 0 to 99, got {self.priority}")
