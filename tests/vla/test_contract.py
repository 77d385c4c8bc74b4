"""The contract refuses what differs from it, and says what."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from example_robot import SPEC, make_observation
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_runtime.contract import MotionLimits

from vla.contract import (
    ActionChunk,
    CameraSpec,
    ContractMismatchError,
    ObservationBatch,
    RobotSpec,
    VectorSpec,
)


def test_import_loads_neither_torch_nor_transformers():
    """A robot that only checks its contract needs neither."""
    program = (
        "import sys, vla.contract; "
        "print([m for m in ('torch', 'transformers', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@st.composite
def vectors(draw):
    """Any named vector."""
    names = draw(st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True))
    numbers = st.floats(-1e6, 1e6)
    low = [draw(numbers) for _ in names]
    high = [value + draw(st.floats(0.1, 1e6)) for value in low]
    units = [draw(st.sampled_from(["m", "rad", "1"])) for _ in names]
    return VectorSpec(tuple(names), tuple(units), tuple(low), tuple(high))


@st.composite
def specs(draw):
    """Any contract."""
    names = draw(st.lists(st.text(max_size=5), max_size=3, unique=True))
    size = st.integers(1, 2000)
    cameras = tuple(CameraSpec(name, draw(size), draw(size)) for name in names)
    rate_hz = draw(st.floats(0.1, 1e4))
    return RobotSpec(draw(st.text()), draw(vectors()), draw(vectors()), cameras, rate_hz)


@settings(max_examples=30, deadline=None)
@given(specs())
def test_spec_survives_json_exactly(spec):
    """For any contract."""
    again = RobotSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert spec.differences(again) == []
    spec.require_match(again, "one", "other")


def test_differences_name_every_leaf_that_differs():
    """One line each, with both values, so that the fix is plain."""
    other = replace(
        SPEC,
        control_rate_hz=10.0,
        action=replace(SPEC.action, units=("m", "m/s", "m")),
        cameras=SPEC.cameras[::-1],
    )
    with pytest.raises(ContractMismatchError) as caught:
        SPEC.require_match(other, "checkpoint a", "environment b")
    first, *lines = str(caught.value).splitlines()
    assert first == "the contract of checkpoint a differs from that of environment b:"
    assert [line.strip().split(":")[0] for line in lines] == [
        "action.units",
        "cameras",
        "control_rate_hz",
    ]
    assert lines[2].strip() == "control_rate_hz: 25.0 != 10.0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": ("m",)}, "equal length"),
        ({"names": (), "units": (), "low": (), "high": ()}, "equal length"),
        ({"names": ("a", "a")}, "names repeat"),
        ({"low": (0.0, 1.0)}, r"low must be below high for \['b'\]"),
        ({"high": (1.0, float("nan"))}, r"low must be below high for \['b'\]"),
    ],
)
def test_vector_spec_refuses(fields, message):
    """A vector without one clear meaning per dimension."""
    valid = {"names": ("a", "b"), "units": ("m", "m"), "low": (0.0, 0.0), "high": (1.0, 1.0)}
    VectorSpec(**valid)
    with pytest.raises(ValueError, match=message):
        VectorSpec(**{**valid, **fields})


def test_observation_that_follows_the_contract_is_valid():
    """The checks below fail for their one reason only."""
    make_observation().validate(SPEC)


@pytest.mark.parametrize(
    ("camera", "image", "message"),
    [
        ("rear", np.zeros((12, 16, 3), np.uint8), "cameras"),
        ("wrist", np.zeros((16, 12, 3), np.uint8), "'wrist' is uint8"),
        ("wrist", np.zeros((12, 16, 3), np.float32), "'wrist' is float32"),
    ],
)
def test_observation_with_wrong_images_is_refused(camera, image, message):
    """By the name of the camera."""
    observation = make_observation()
    wrong = replace(observation, images={**observation.images, camera: image})
    with pytest.raises(ContractMismatchError, match=message):
        wrong.validate(SPEC)


def test_observation_without_a_camera_is_refused():
    """By what there is and what there should be."""
    observation = make_observation()
    wrong = replace(observation, images={"front": observation.images["front"]})
    with pytest.raises(
        ContractMismatchError, match=r"\['front'\], contract has \['front', 'wrist'"
    ):
        wrong.validate(SPEC)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_observation_that_is_not_finite_names_the_dimension(bad):
    """Not a number, and endless."""
    proprio = np.array([0, 0, bad, 0], np.float32)
    with pytest.raises(ContractMismatchError, match=r"proprio is not finite in \['pz'\]"):
        replace(make_observation(), proprio=proprio).validate(SPEC)


def test_observation_of_another_length_is_refused():
    """With the length that the contract has."""
    with pytest.raises(ContractMismatchError, match="contract says 4"):
        replace(make_observation(), proprio=np.zeros(5, np.float32)).validate(SPEC)


def test_action_chunk_is_checked():
    """Axes, length and finiteness."""
    ActionChunk(np.zeros((4, 3), np.float32)).validate(SPEC)
    for actions, message in [
        (np.zeros(3, np.float32), r"expected \[chunk_length, action\]"),
        (np.zeros((4, 2), np.float32), "contract says 3"),
        (np.full((4, 3), np.nan, np.float32), r"\['x', 'y', 'grip'\]"),
    ]:
        with pytest.raises(ContractMismatchError, match=message):
            ActionChunk(actions).validate(SPEC)


def test_batch_select_copies_rows():
    """Later changes of the batch do not reach the copy."""
    batch = ObservationBatch(
        images={"front": torch.arange(3, dtype=torch.uint8)[:, None, None, None]},
        proprio=torch.arange(3.0)[:, None],
        instructions=["a", "b", "c"],
        time_s=torch.arange(3.0),
    )
    chosen = batch.select([2, 0])
    batch.proprio[2] = 9
    assert len(chosen) == 2
    assert chosen.instructions == ["c", "a"]
    assert chosen.proprio.tolist() == [[2], [0]]
    assert chosen.images["front"].flatten().tolist() == [2, 0]
    assert chosen.time_s.tolist() == [2, 0]


def limits(**changes: Any) -> MotionLimits:
    """Of the example robot's two action dimensions, one of each kind."""
    given = {"kinds": ("position", "displacement"), "velocity": (1.0, 2.0)}
    return MotionLimits(**{**given, "acceleration": (3.0, 4.0), "jerk": ()} | changes)


def test_lists_and_arrays_make_the_same_contract() -> None:
    """Who describes a robot by hand takes what is at hand, and a policy's contract holds tuples."""
    values: Any = {"names": ["pan"], "units": ["rad"], "low": np.array([-1.0]), "high": [1.0]}
    joint = VectorSpec(**values)
    cameras: Any = [CameraSpec("front", 2, 2)]
    spec = RobotSpec("arm", joint, joint, cameras, 50.0)
    again = RobotSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert spec.differences(again) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("position", "velocity")}, "velocity"),
        ({"velocity": (1.0,)}, "velocity has 1 entries"),
        ({"acceleration": (1.0, float("nan"))}, "positive and finite"),
        ({"velocity": (1.0, -1.0)}, "positive and finite"),
        ({"velocity": (1.0, float("inf"))}, "positive and finite"),
        ({"jerk": (0.0, 1.0)}, "positive and finite"),
    ],
)
def test_motion_limits_that_limit_nothing_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    """NaN, infinite, zero and negative limits, and another number of them."""
    with pytest.raises(ValueError, match=message):
        limits(**changes)


def test_motion_limits_survive_json_and_are_no_part_of_the_agreement() -> None:
    """How fast a robot may move is its own affair: a policy fits whatever the limits are."""
    ones = (1.0,) * SPEC.action.dim
    kinds = ("position",) * SPEC.action.dim
    limited = replace(SPEC, motion=limits(kinds=kinds, velocity=ones, acceleration=ones))
    assert RobotSpec.from_dict(json.loads(json.dumps(limited.to_dict()))) == limited
    assert "motion" not in SPEC.to_dict()
    assert limited.differences(SPEC) == []
    with pytest.raises(ValueError, match="motion limits of 1 dimensions"):
        replace(SPEC, motion=limits(kinds=("position",), velocity=(1.0,), acceleration=(1.0,)))
