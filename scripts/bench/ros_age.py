"""How old what a ROS robot measured is: when it arrives here, and when a control loop reads it.

    python -m scripts.bench.ros_age --config robot.toml --seconds 60

Nothing is commanded. The age at arrival compares the robot's clock with this machine's, and means
something only where they agree; the age when read counts from the least delay that was seen.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tyro
from vla_runtime.robots.ros import RosRobot
from vla_runtime.robots.ros_config import load_ros_config
from vla_runtime.robots.ros_messages import stamp_s
from vla_runtime.robots.rosbridge import Rosbridge

from vla.settings import require_numbers


@dataclass(frozen=True)
class RosAgeConfig:
    """What is measured.

    Attributes:
        config: the robot, as after `--robot ros:`.
        seconds: how long, for each of the two.
    """

    config: str
    seconds: float = 30.0

    def __post_init__(self) -> None:
        require_numbers(self, above_0=("seconds",))


def main(config: RosAgeConfig) -> int:
    """Print percentiles of both ages, in milliseconds."""
    settings, spec = load_ros_config(config.config)
    robot = RosRobot(settings, spec)
    robot.connect()
    try:
        read_ages = _ages_when_read(robot, config.seconds)
    finally:
        robot.disconnect()
    topics = {settings.state.topic: settings.state.type}
    topics |= {camera.topic: camera.type for camera in settings.cameras.values()}
    bridge = Rosbridge(
        settings.address, max_message_bytes=2**24, open_timeout_s=5.0, close_timeout_s=0.5
    )
    ages: dict[str, list[float]] = {topic: [] for topic in topics}
    for topic, message_type in topics.items():
        packed = "none" if topic == settings.state.topic else settings.compression
        receive = partial(_note_age, ages[topic])
        bridge.subscribe(topic, message_type, receive, compression=packed)
    time.sleep(config.seconds)
    bridge.close()
    _print(f"age when read at {spec.control_rate_hz:g} Hz", read_ages)
    for topic, values in ages.items():
        _print(f"age of {topic} at arrival", values)
    return 0


def _ages_when_read(robot: RosRobot, seconds: float) -> list[float]:
    """Of the oldest part of each reading, at the control rate."""
    ages = []
    due = time.monotonic()
    for _ in range(int(seconds * robot.spec.control_rate_hz)):
        due += 1 / robot.spec.control_rate_hz
        time.sleep(max(0.0, due - time.monotonic()))
        reading = robot.read()
        ages.append(time.monotonic() - reading.time_s)
    return ages


def _note_age(ages: list[float], message: dict[str, Any], arrival_s: float) -> None:
    # From the arrival, though this line runs later.
    ages.append(time.time() - (time.monotonic() - arrival_s) - stamp_s(message))


def _print(name: str, ages: list[float]) -> None:
    if not ages:
        print(f"{name}: nothing came")
        return
    p50, p99, p999 = 1e3 * np.percentile(ages, (50, 99, 99.9))
    worst = 1e3 * max(ages)
    print(
        f"{name}: p50 {p50:.1f}, p99 {p99:.1f}, p99.9 {p999:.1f}, worst {worst:.1f} ms, {len(ages)}"
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(RosAgeConfig)))
