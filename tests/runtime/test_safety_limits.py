"""Limits: what is refused, and that the message names it; the TOML file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safety_robot import LIMITS, MOTION, RANGE, SPEC
from vla_runtime.contract import MotionLimits, RobotSpec, VectorSpec
from vla_runtime.safety.limits import Box, LimitsError, SafetyLimits
from vla_runtime.safety.limits_file import load_limits

SO101 = replace(
    SPEC,
    robot="so101",
    action=VectorSpec(("pan.pos", "lift.pos"), ("deg",) * 2, (-90.0, -45.0), (90.0, 45.0)),
)
GOOD = """
[action."pan.pos"]
kind = "position"
low = -80
velocity = 60.0
acceleration = 200

[action."lift.pos"]
kind = "position"
velocity = 30.0
acceleration = 100.0

[workspace.gripper]
low = [0.0, -0.3, 0.02]
high = [0.4, 0.3, 0.5]
"""


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e300, 5e-324])
@pytest.mark.parametrize("label", ["velocity", "acceleration", "jerk"])
def test_a_limit_is_a_positive_number(label: str, value: float) -> None:
    """NaN compares false with everything, so it would limit nothing."""
    with pytest.raises(LimitsError, match=f"{label} of 'lift' has to be .*, 1e-12 to 1e.12, got"):
        replace(LIMITS, **{label: (1.0, value)})


def test_every_dimension_has_every_limit() -> None:
    """Shorter tuples are not filled up."""
    for label, values in (("velocity", (1.0,)), ("kinds", ()), ("jerk", (1.0, 2.0, 3.0))):
        with pytest.raises(LimitsError, match=f"{label} has {len(values)} entries"):
            replace(LIMITS, **{label: values})


@pytest.mark.parametrize("rate", [0.0, -50.0, math.nan, math.inf, 1e6])
def test_the_control_rate_is_one(rate: float) -> None:
    """It is what every difference is divided by."""
    with pytest.raises(LimitsError, match="control rate"):
        replace(LIMITS, control_rate_hz=rate)


@pytest.mark.parametrize(("name", "unit"), [("wheel.vel", "unknown"), ("wheel", "rad/s")])
def test_a_velocity_is_no_position(name: str, unit: str) -> None:
    """Stopped as a position the wheel would go on turning as fast as it did."""
    action = replace(RANGE, names=(name, RANGE.names[1]), units=(unit, RANGE.units[1]))
    with pytest.raises(LimitsError, match=f"'{name}' is a velocity, .* kind = \"displacement\""):
        replace(LIMITS, action=action)
    replace(LIMITS, action=action, kinds=("displacement", "position"))


def test_limits_stay_as_they_were_checked() -> None:
    """A list that is changed afterwards would widen them; arrays are numbers, too."""
    speed: Any = [1.0, 2.0]
    acceleration: Any = np.array(LIMITS.acceleration)
    limits = replace(LIMITS, velocity=speed, acceleration=acceleration)
    speed[0] = 1000.0
    assert limits == LIMITS


def test_positions_have_a_range_and_displacements_may_be_zero() -> None:
    """A command of infinity is no limit; a displacement that cannot be 0 cannot stop."""
    endless = replace(RANGE, high=(1.0, math.inf))
    with pytest.raises(LimitsError, match=r"range of position 'lift' is \[-2.0, inf\]"):
        replace(LIMITS, action=endless)
    moving = replace(RANGE, low=(-1.0, 0.1))
    displacements: Any = ("displacement", "displacement")
    with pytest.raises(LimitsError, match=r"displacement 'lift' .* has to contain 0"):
        replace(LIMITS, action=moving, kinds=displacements)
    assert replace(LIMITS, action=endless, kinds=displacements).action.high[1] == math.inf
    with pytest.raises(LimitsError, match="kind of 'pan' is 'torque'"):
        replace(LIMITS, kinds=("torque", "position"))


@pytest.mark.parametrize(
    ("low", "high"),
    [((0.0,) * 3, (1.0, 1.0)), ((0.0,) * 3, (1.0, 0.0, 1.0)), ((0.0,) * 3, (1.0, math.nan, 1.0))],
)
def test_a_box_has_three_sides(low: Any, high: Any) -> None:
    """Each with low below high."""
    with pytest.raises(LimitsError, match="box"):
        Box(low, high)


def test_limits_come_from_the_contract() -> None:
    """All that it states, jerk too."""
    motion = replace(MOTION, jerk=(50.0, 60.0))
    limits = SafetyLimits.from_spec(replace(SPEC, motion=motion))
    assert limits.action == RANGE
    assert (limits.velocity, limits.jerk) == ((1.0, 2.0), (50.0, 60.0))
    assert limits.period_s == pytest.approx(0.02)


def load(tmp_path: Path, text: str, spec: RobotSpec = SO101) -> SafetyLimits:
    """The text as a file."""
    path = tmp_path / "limits.toml"
    path.write_text(text)
    return load_limits(path, spec)


def test_a_file_states_what_the_contract_does_not(tmp_path: Path) -> None:
    """Range and units stay the contract's where the file has none."""
    limits = load(tmp_path, GOOD)
    assert limits.action.low == (-80.0, -45.0)
    assert limits.action.high == (90.0, 45.0)
    assert limits.action.units == ("deg", "deg")
    assert limits.velocity == (60.0, 30.0)
    assert limits.acceleration == (200.0, 100.0)
    assert limits.jerk == ()
    assert limits.workspace == {"gripper": Box((0.0, -0.3, 0.02), (0.4, 0.3, 0.5))}


def test_a_file_tightens_the_contract(tmp_path: Path) -> None:
    """What it leaves out is the contract's; jerk for one dimension completes the contract's."""
    motion = MotionLimits(("position",) * 2, (60.0, 30.0), (200.0, 100.0), (900.0, 800.0))
    spec = replace(SO101, motion=motion)
    limits = load(tmp_path, '[action."pan.pos"]\nvelocity = 10\njerk = 500', spec)
    assert limits.velocity == (10.0, 30.0)
    assert limits.acceleration == (200.0, 100.0)
    assert limits.jerk == (500.0, 800.0)
    assert load(tmp_path, "", spec).velocity == (60.0, 30.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low = -80", "low = -100", r"range of 'pan.pos' is \[-100.0, 90.0\], wider than"),
        ("low = -80", "low = 95", "low = 95.0 is not below high = 90.0"),
        ("low = -80", "low = nan", 'action."pan.pos". low = nan has to be a finite number'),
        ("velocity = 60.0", "velocity = inf", "velocity = inf has to be a finite number"),
        ("velocity = 60.0", "velocity = -1", "velocity of 'pan.pos' has to be positive"),
        ("velocity = 60.0", "velocity = true", "velocity = True has to be a finite number"),
        ("velocity = 60.0", 'velocity = "60"', "velocity = '60' has to be a finite number"),
        ("velocity = 60.0", "velocity = 1" + "0" * 400, "has to be a finite number"),
        ("velocity = 60.0", "", "has no velocity, and the contract states none"),
        ("velocity = 60.0", "speed = 60.0", "unknown .'speed'.; keys of .* are .'kind', 'low'"),
        ("velocity = 60.0", "velocity = 60.0\njerk = 9", "for none: .'lift.pos'. have none"),
        ('kind = "position"\nlow', 'kind = "torque"\nlow', "'torque', valid is one of .'position'"),
        ('kind = "position"\nlow', "kind = []\nlow", "kind = .., valid is one of"),
        ('kind = "position"\nlow', "low", "has no kind, .* one of .'position', 'displacement'.;"),
        ('"pan.pos"', "pan.pos", "action.pan. is no dimension .* with a dot are quoted"),
        ('"pan.pos"', "elbow", "action.elbow. is no dimension of robot 'so101'"),
        ("[workspace.gripper]", "[workspaces.gripper]", "unknown .'workspaces'.; tables are"),
        ("low = [0.0,", "low = [0.9,", "workspace.gripper.: low must be below high"),
        ("low = [0.0, ", "low = [", "low = .-0.3, 0.02. has to be three numbers"),
        ("low = [0.0,", 'low = ["a",', "workspace.gripper. low = 'a' has to be a finite number"),
        ("high = [0.4, 0.3, 0.5]", "", "high = None has to be three numbers"),
        ("high = [0.4", "hight = 1\nhigh = [0.4", "unknown .'hight'.; keys of .workspace.gripper"),
        ("[workspace.gripper]", "[workspace]", "table .workspace.low. is expected"),
        ("velocity = 60.0", "velocity 60.0", "Expected '='"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    """File, dimension, and what is valid."""
    assert old in GOOD
    with pytest.raises(LimitsError, match=message) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(error.value).startswith(f"{tmp_path / 'limits.toml'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("velocity = 61", "velocity of 'pan.pos' is 61.0, wider than the contract's 60.0"),
        ("acceleration = 201", "acceleration of 'pan.pos' is 201.0, wider than"),
        ('kind = "displacement"', "kind of 'pan.pos' is 'displacement', the contract says"),
    ],
)
def test_a_file_never_widens_the_contract(tmp_path: Path, text: str, message: str) -> None:
    """Nor changes what a command means."""
    motion = MotionLimits(("position",) * 2, (60.0, 30.0), (200.0, 100.0))
    with pytest.raises(LimitsError, match=message):
        load(tmp_path, f'[action."pan.pos"]\n{text}', replace(SO101, motion=motion))


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    """Tables are what the file is made of."""
    for text, message in (
        ("action = 3", r"\[action.NAME\] tables are expected, got action = 3"),
        ("[action]\n'pan.pos' = 3", r"a table \[action.pan.pos\] is expected"),
    ):
        with pytest.raises(LimitsError, match=message):
            load(tmp_path, text)


def test_a_contracts_jerk_cannot_be_dropped() -> None:
    """Limits without jerk are wider than a contract with it."""
    spec = replace(SPEC, motion=replace(MOTION, jerk=(50.0, 50.0)))
    with pytest.raises(LimitsError, match="jerk of 'pan' is not limited, wider than"):
        LIMITS.require_within(spec)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    """The operating system's error, and one that names the file."""
    with pytest.raises(OSError, match="nowhere"):
        load_limits(tmp_path / "nowhere.toml", SO101)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LimitsError, match=r"binary\.toml is no text: .* TOML"):
        load_limits(tmp_path / "binary.toml", SO101)
