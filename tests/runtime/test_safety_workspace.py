"""Boxes for points of the robot: kinematics, and that a stop ahead of a wall is in time."""

from __future__ import annotations

import math
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from safety_robot import DT, LIMITS, Bench
from vla_runtime.contract import Reading, VectorSpec
from vla_runtime.safety.limits import Box, LimitsError
from vla_runtime.safety.workspace import EndEffectorKinematics, MujocoKinematics, Workspace

ARM = """
<mujoco>
  <worldbody>
    <body name="base">
      <joint name="shoulder" axis="0 0 1"/>
      <geom size="0.01"/>
      <body name="forearm" pos="1 0 0">
        <joint name="elbow" axis="0 0 1"/>
        <geom size="0.01"/>
        <site name="tip" pos="1 0 0"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
WALL = Box((-math.inf, -math.inf, -math.inf), (1.9, math.inf, math.inf))


def two_links(angles: np.ndarray) -> np.ndarray:
    """Tip of two links of 1 m, [step, 3]."""
    first, second = angles[:, 0], angles.sum(axis=1)
    x, y = np.cos(first) + np.cos(second), np.sin(first) + np.sin(second)
    return np.stack([x, y, 0 * x], axis=1)


def arm(scale: tuple[float, float] | None = None) -> MujocoKinematics:
    """The same two links in MuJoCo."""
    model = mujoco.MjModel.from_xml_string(ARM)
    return MujocoKinematics(model, ("shoulder", "elbow"), ("forearm", "tip"), scale)


def test_mujoco_kinematics_by_hand() -> None:
    """Bodies and sites, in the order that was asked for; degrees by a scale."""
    angles = np.random.default_rng(0).uniform(-3, 3, (20, 2))
    places = arm().locate(angles)
    assert places.shape == (20, 2, 3)
    assert places[:, 1] == pytest.approx(two_links(angles))
    elbow = np.stack([np.cos(angles[:, 0]), np.sin(angles[:, 0])], axis=1)
    assert places[:, 0, :2] == pytest.approx(elbow)
    degrees = arm((math.pi / 180,) * 2).locate(np.rad2deg(angles))
    assert degrees == pytest.approx(places)


def test_mujoco_kinematics_from_a_file_and_without_a_joint(tmp_path) -> None:
    """A gripper's command need not move a joint of the model."""
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    kinematics = MujocoKinematics(path, ("shoulder", None), ("tip",))
    assert kinematics.locate(np.array([[math.pi / 2, 9.0]]))[0, 0] == pytest.approx([0, 2, 0])


def test_unknown_names_are_listed() -> None:
    """With those that exist."""
    model = mujoco.MjModel.from_xml_string(ARM)
    with pytest.raises(LimitsError, match=r"no joint \['wrist'\]; it has \['shoulder', 'elbow'\]"):
        MujocoKinematics(model, ("shoulder", "wrist"), ("tip",))
    with pytest.raises(LimitsError, match=r"no site or body \['hand'\]; it has .*'tip'"):
        MujocoKinematics(model, ("shoulder", "elbow"), ("hand",))
    with pytest.raises(LimitsError, match=r"for \['hand'\]: the kinematics knows \['forearm', "):
        Workspace({"hand": WALL}, arm())
    with pytest.raises(LimitsError, match=r"boxes for \['tip'\]: give a kinematics"):
        Bench(replace(LIMITS, workspace={"tip": WALL}))


@pytest.mark.parametrize("jerk", [(), (60.0, 60.0)])
def test_the_tip_stops_before_the_wall(jerk: tuple[float, ...]) -> None:
    """From full speed in time, with every command on the near side; away from it it may go."""
    limits = replace(LIMITS, workspace={"tip": WALL}, jerk=jerk)
    bench = Bench(limits, kinematics=arm()).start(0.9, 0.0)
    for _ in range(150):
        bench.tick(0.0, 0.0)
    x = np.array(bench.robot.written)
    nearest = two_links(x)[:, 0].max()
    assert 1.85 < nearest <= 1.9
    assert bench.gate.counts["workspace"] > 0
    assert np.abs(np.diff(x, 2, axis=0) / DT**2).max(axis=0) == pytest.approx([5, 0], abs=1e-6)
    assert bench.kind() is None
    for _ in range(150):
        bench.tick(0.9, 0.0)
    assert bench.gate.command == pytest.approx([0.9, 0.0])


def test_starting_beyond_the_wall_is_outside() -> None:
    """After it is acknowledged the tip only comes nearer to its box."""
    limits = replace(LIMITS, workspace={"tip": WALL})
    bench = Bench(limits, kinematics=arm()).start(0.0, 0.0)
    assert bench.gate.fault is not None
    assert "tip is 0.1 m out of its workspace" in bench.gate.fault.reason
    bench.gate.acknowledge_outside()
    for command in (0.0, -0.001, 0.8):
        for _ in range(60):
            bench.tick(command, 0.0)
    place = two_links(np.array(bench.robot.written))[:, 0]
    assert (np.diff(place) <= 1e-12).all()
    assert bench.gate.mode == "running"
    assert place[-1] == pytest.approx(2 * math.cos(0.8))


def test_a_kinematics_that_fails_latches_and_brakes() -> None:
    """A place that is not known is not allowed; one that raises is a fault."""
    kinematics = arm()
    limits = replace(LIMITS, workspace={"tip": WALL})
    bench = Bench(limits, kinematics=kinematics).start(0.9, 0.0)
    for _ in range(10):
        bench.tick(0.5, 0.0)

    def raises(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("no model")

    kinematics.locate = raises
    bench.tick(0.5, 0.0)
    assert bench.kind() == "motion"
    velocity = np.diff(np.array(bench.robot.written)[-3:, 0])
    assert np.diff(velocity) == pytest.approx(5 * DT**2)


def displacement_bench() -> Bench:
    """A gripper that moves by displacements of up to 5 cm, below a ceiling of 0.3 m."""
    limits = replace(
        LIMITS,
        action=VectorSpec(("x", "y", "z"), ("m",) * 3, (-0.05,) * 3, (0.05,) * 3),
        kinds=("displacement",) * 3,
        velocity=(1.0,) * 3,
        acceleration=(5.0,) * 3,
        workspace={"gripper": Box((-1.0, -1.0, 0.0), (1.0, 1.0, 0.3))},
    )
    return Bench(limits, kinematics=EndEffectorKinematics("gripper", (1, 2, 3), (0, 1, 2)))


def measured(bench: Bench, height: float) -> Reading:
    """The gripper above the middle."""
    proprio = np.array([7, 0, 0, height], np.float32)
    return Reading({}, proprio, np.zeros(3), bench.now)


def test_displacements_add_up_from_the_reading() -> None:
    """The gripper stops below the ceiling; a new measurement says how much room is left."""
    bench = displacement_bench()
    bench.gate.start(measured(bench, 0.1))
    for _ in range(60):
        bench.tick(0.0, 0.0, 0.05)
    risen = np.array(bench.robot.written)[:, 2].sum()
    assert 0.15 < risen <= 0.2
    assert np.abs(np.diff(np.array(bench.robot.written)[:, 2])).max() <= 5 * DT**2 * (1 + 1e-9)
    count = len(bench.robot.written)
    # It was held up on its way: there is room again.
    bench.gate.measure(measured(bench, 0.2))
    for _ in range(60):
        bench.tick(0.0, 0.0, 0.05)
    assert 0.05 < np.array(bench.robot.written)[count:, 2].sum() <= 0.1


def test_a_gripper_that_was_not_measured_does_not_move() -> None:
    """NaN is no place inside a box."""
    bench = displacement_bench()
    bench.gate.start(measured(bench, math.nan))
    assert bench.kind() == "outside"
    bench.gate.acknowledge_outside()
    for _ in range(5):
        assert bench.tick(0.0, 0.0, 0.05).tolist() == [0, 0, 0]
