"""Moved scenes: what was demonstrated stays right in them, and is refused where it would not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from two_robots import ARM, POINTS, record, tiny_policy

from policies.imitation.bc import Cloner
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.scene_augmentation import SceneAugmentation, SceneMover, scene_mover
from policies.run_folder import RunFolder
from vla.contract import RobotSpec, VectorSpec
from vla.model.features import Features
from vla.model.heads.flow import FlowHeadConfig
from vla.model.points import PointsConfig
from vla.policy import VLAPolicy

REACHER = replace(
    ARM,
    robot="reacher",
    action=VectorSpec(
        ("dx", "dy", "dz", "grip"), ("0.05 m",) * 3 + ("m",), (-1.0,) * 4, (1.0,) * 4
    ),
    proprio=VectorSpec(
        ("gripper_x", "gripper_y", "gripper_z", "opening"), ("m",) * 4, (0.0,) * 4, (2.0,) * 4
    ),
)
COUNT, LENGTH = 400, 5
GRIPPER = POINTS.names.index("gripper")


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    """For it the gripper is a point, too."""
    return tiny_policy(REACHER, chunk_length=LENGTH)


def samples(policy: VLAPolicy) -> tuple[Features, torch.Tensor]:
    """Positions in a workspace, and small steps, normalised."""
    rng = torch.Generator().manual_seed(0)
    points_m = torch.tensor([1.3, 0.75, 0.45]) + 0.3 * torch.rand(COUNT, 3, 3, generator=rng) - 0.15
    proprio = torch.cat([points_m[:, GRIPPER], torch.rand(COUNT, 1, generator=rng)], dim=1)
    commands = 0.4 * torch.rand(COUNT, LENGTH, 4, generator=rng) - 0.2
    features = replace(
        Features.of_vector(policy.processor.proprio(proprio), 4),
        points=POINTS.scaled(points_m),
        localisation_std=torch.zeros(COUNT, 3),
        readout=torch.arange(float(COUNT))[:, None],
    )
    return features, policy.processor.action(commands)


def metres(policy: VLAPolicy, features: Features, actions: torch.Tensor) -> Any:
    """Points [n, 3, 3], the tool [n, 3], steps [n, 5, 3], what is left of either."""
    points = features.points * POINTS.scale_m + torch.tensor(POINTS.center_m)
    proprio = policy.processor.proprio.inverse(features.proprio)
    commands = policy.processor.action.inverse(actions)
    rest = torch.cat([proprio[:, 3], commands[..., 3].flatten()])
    return points, proprio[:, :3], commands[..., :3] * 0.05, rest


def moved(policy: VLAPolicy, **bounds: float) -> tuple[Any, Any, Features]:
    """Before and after in metres, and the features after."""
    features, actions = samples(policy)
    before = metres(policy, features, actions)
    kept = [column.clone() for column in features._columns()], actions.clone()
    still = dict.fromkeys(("scene_shift", "scene_turn", "tool_offset"), 0.0)
    mover = SceneMover(policy, ["reacher"], SceneAugmentation(**{**still, **bounds}))
    after = mover.move(features, actions, torch.Generator().manual_seed(1))
    assert all(map(torch.equal, features._columns(), kept[0]))  # nothing is changed in place
    assert torch.equal(actions, kept[1])
    return before, metres(policy, *after), after[0]


def near(first: torch.Tensor, second: torch.Tensor) -> None:
    """Within a hundredth of a millimetre."""
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_a_common_shift_leaves_what_is_done(policy: VLAPolicy) -> None:
    """Points and tool by the same, horizontally, up to the bound; steps as they were."""
    before, after, _ = moved(policy, scene_shift=0.1)
    shift = after[1] - before[1]
    near(after[0] - before[0], shift[:, None].expand(-1, 3, -1))
    near(shift[:, 2], torch.zeros(COUNT))
    assert shift[:, :2].abs().max() < 0.1001
    assert (shift[:, :2].abs().amax(0) > 0.095).all()
    near(after[2], before[2])
    near(after[3], before[3])


def test_a_common_turn_turns_what_is_done(policy: VLAPolicy) -> None:
    """Distances, heights and the angle between a step and the way to a point stay."""
    before, after, _ = moved(policy, scene_turn=180)
    way = [points[:, 1:] - tool[:, None] for points, tool, *_ in (before, after)]
    near(way[0].norm(dim=-1), way[1].norm(dim=-1))
    near(before[0][..., 2], after[0][..., 2])
    near(before[2][..., 2], after[2][..., 2])
    near((way[0][:, :1] * before[2][:, 1:2]).sum(-1), (way[1][:, :1] * after[2][:, 1:2]).sum(-1))
    near(before[0].mean(1), after[0].mean(1))
    near(before[3], after[3])
    # By all angles.
    angle = [torch.atan2(*(p[0][:, 2] - p[0][:, 1])[:, :2].T) for p in (before, after)]
    turned = (angle[1] - angle[0]).remainder(2 * math.pi)
    assert torch.histc(turned, 4, 0, 2 * math.pi).min() > COUNT / 8


def test_a_tool_that_was_moved_is_led_back(policy: VLAPolicy) -> None:
    """The chunk ends where the demonstrated one did, within the limits of every step."""
    before, after, _ = moved(policy, tool_offset=0.08)
    offset = after[1] - before[1]
    near(after[0][:, GRIPPER] - before[0][:, GRIPPER], offset)
    near(after[0][:, 1:], before[0][:, 1:])
    near(offset[:, 2], torch.zeros(COUNT))
    assert 0.05 < offset.abs().max() < 0.0801
    assert offset[:, :2].abs().mean() < 0.03  # small ones most often
    near(after[1] + after[2].sum(1), before[1] + before[2].sum(1))
    assert after[2].abs().max() < 0.0501
    near(after[2][:, 2:], before[2][:, 2:])  # two steps of 5 cm are enough
    near(after[3], before[3])


def test_readouts_are_of_other_scenes(policy: VLAPolicy) -> None:
    """Each of them once: the images behind a readout were not moved."""
    _, _, features = moved(policy, scene_shift=0.1)
    assert features.readout[:, 0].tolist() != list(range(COUNT))
    assert sorted(features.readout[:, 0].tolist()) == list(range(COUNT))


OFF = {"scene_shift": 0.0, "scene_turn": 0.0, "tool_offset": 0.0}


def test_cloning_learns_from_moved_scenes(tmp_path: Path) -> None:
    """By default all of it; runs from before the settings are resumed where they are off."""
    data = Demonstrations([record(tmp_path / "data", REACHER, (6, 5, 7))], LENGTH, 0.25)
    losses = set()
    for place, (asked, moved) in enumerate(
        [
            (OFF, {}),
            ({}, {"scene_shift": 0.15, "scene_turn": 180, "tool_offset": 0.05}),
            ({"scene_turn": 0}, {"scene_shift": 0.15, "tool_offset": 0.05}),
            *[({**OFF, name: 0.02}, {name: 0.02}) for name in OFF],
        ]
    ):
        config = CloningConfig(updates=1, batch=8, **asked)
        policy = tiny_policy(REACHER, chunk_length=LENGTH)
        cloner = Cloner(policy, data, config, RunFolder(tmp_path / str(place), config))
        losses.add(cloner._update()["loss/train"])
        saved = cloner._settings(None)["training"]
        assert {name: saved[name] for name in OFF if name in saved} == moved
    assert len(losses) == 6


def test_scenes_stay_by_default_where_they_cannot_be_moved(policy: VLAPolicy) -> None:
    """And are refused where it was asked for."""
    arm = tiny_policy(ARM)
    assert scene_mover(arm, ["arm"], (None, None, None)) is None
    assert scene_mover(policy, ["reacher"], (0, 0, 0)) is None
    found = scene_mover(policy, ["reacher"], (None, 90, None))
    assert found is not None
    assert found.config == SceneAugmentation(scene_turn=90)
    with pytest.raises(ValueError, match="NAME_x, NAME_y and NAME_z in m; arm has"):
        scene_mover(arm, ["arm"], (None, 90, None))


def with_vectors(**changes: VectorSpec) -> RobotSpec:
    """The robot with other actions or proprioception."""
    return replace(REACHER, **changes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ARM, r"NAME_x, NAME_y and NAME_z in m; arm has a \(deg\), b \(deg\)"),
        (
            with_vectors(proprio=replace(REACHER.proprio, units=("0.1 m",) * 4)),
            r"in m; reacher has gripper_x \(0.1 m\)",
        ),
        (
            with_vectors(action=replace(REACHER.action, units=("deg",) * 4)),
            r"actions dx, dy and dz in metres or a multiple, as in 0.05 m; reacher has dx \(deg\)",
        ),
        (
            with_vectors(action=replace(REACHER.action, units=("furlong m",) * 4)),
            r"reacher has dx \(furlong m\)",
        ),
        (
            with_vectors(action=replace(REACHER.action, names=("vx", "vy", "vz", "grip"))),
            r"reacher has vx \(0.05 m\)",
        ),
    ],
)
def test_a_robot_that_is_not_commanded_by_displacements_is_refused(
    spec: RobotSpec, message: str
) -> None:
    """With what it has."""
    with pytest.raises(ValueError, match=message):
        SceneMover(tiny_policy(spec), [spec.robot], SceneAugmentation(0.1))


def test_models_that_act_by_more_than_positions_are_refused(policy: VLAPolicy) -> None:
    """No points, a head that attends, several robots."""
    blind = tiny_policy(REACHER, points=PointsConfig())
    with pytest.raises(ValueError, match="a model with points in one frame; it has none"):
        SceneMover(blind, ["reacher"], SceneAugmentation(0.1))
    with pytest.raises(ValueError, match="one robot; there are reacher, arm"):
        SceneMover(policy, ["reacher", "arm"], SceneAugmentation(0.1))
    attending = tiny_policy(REACHER)
    attending.model.replace_actor(torch.zeros(4, 3, 4), FlowHeadConfig())
    with pytest.raises(ValueError, match="a head that acts by positions alone, such as gaussian"):
        SceneMover(attending, ["reacher"], SceneAugmentation(0.1))


def test_settings_that_cannot_work_are_refused() -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match="scene_turn must be at least 0 and at most 180, got 200"):
        CloningConfig(scene_turn=200)
    with pytest.raises(ValueError, match="tool_offset must be at least 0, got -1"):
        CloningConfig(tool_offset=-1)
    with pytest.raises(ValueError, match="scenes are moved only with perception='frozen'"):
        CloningConfig(perception="trained", scene_shift=0.1)
