"""What a LeRobotDataset from elsewhere says of its robot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_folder import write_folder

from vla.contract import CameraSpec, ContractMismatchError, RobotSpec
from vla.data.dataset_contract import PROPRIO, derive_contract, merge_contracts, read_contract

IMAGE = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
INFO: dict[str, Any] = {
    "codebase_version": "v3.0",
    "robot_type": "so101",
    "fps": 30,
    "total_frames": 1,
    "features": {
        "action": {"dtype": "float32", "shape": [2], "names": ["shoulder.pos", "gripper.pos"]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
        "observation.images.top": IMAGE,
        "observation.image": {
            "dtype": "image",
            "shape": [3, 24, 32],
            "names": ["channels", "height", "width"],
        },
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    },
}
STATISTICS: dict[str, Any] = {
    "action": {"min": [-3, 0], "max": [4, 0]},
    "observation.state": {"min": [0, 1], "max": [1, 2]},
}


def changed(**features: Any) -> dict[str, Any]:
    """INFO with other features; None takes one away."""
    merged = INFO["features"] | features
    return INFO | {"features": {key: ft for key, ft in merged.items() if ft is not None}}


def write(root: Path, info: dict[str, Any], statistics: dict[str, Any] | None) -> Path:
    """A data set's metadata."""
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    if statistics is not None:
        (root / "meta" / "stats.json").write_text(json.dumps(statistics))
    return root


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ([], "meta/info.json is no table"),
        (changed(action={"dtype": "float32", "shape": None}), "of 'action' .* a shape are needed"),
        (changed(action={"shape": [2]}), "of 'action' .* a dtype and"),
    ],
)
def test_metadata_of_another_form_are_named(info: Any, message: str, tmp_path: Path) -> None:
    """Instead of a traceback out of the code that reads them."""
    with pytest.raises(ValueError, match=message):
        read_contract(write(tmp_path / "set", info, STATISTICS))


def test_names_rate_cameras_and_limits_come_from_the_data(tmp_path: Path) -> None:
    """Names from a list or a dictionary; limits are what was recorded."""
    spec = read_contract(write(tmp_path / "set", INFO, STATISTICS))
    assert (spec.robot, spec.control_rate_hz) == ("so101", 30.0)
    assert spec.action.names == ("shoulder.pos", "gripper.pos")
    assert spec.proprio.names == ("a", "b")
    assert (spec.action.low, spec.action.high) == ((-3, -1), (4, 1)), "what is still gets a range"
    assert spec.cameras == (CameraSpec("top", 48, 64), CameraSpec("image", 24, 32))
    assert spec.features.camera("top") == "observation.images.top"
    assert spec.features.camera("image") == "observation.image"
    assert RobotSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_where_a_data_set_keeps_things_is_no_difference() -> None:
    """Two robots agree although their data sets use other names."""
    spec = derive_contract(INFO, STATISTICS, "a")
    renamed = RobotSpec.from_dict(spec.to_dict() | {"features": {"cameras": {"top": "elsewhere"}}})
    assert renamed != spec
    spec.require_match(renamed, "a", "b")


def test_vectors_without_usable_names_are_numbered() -> None:
    """No names, or too few."""
    for names in (None, ["only one"], {"axes": None}):
        info = changed(action={"dtype": "float32", "shape": [2], "names": names})
        assert derive_contract(info, STATISTICS, "a").action.names == ("0", "1")


def test_a_recording_of_ours_keeps_its_own_contract(tmp_path: Path) -> None:
    """Units and true limits, which LeRobot's files do not hold."""
    task = write_folder(tmp_path / "FetchReach", [3])
    assert read_contract(tmp_path / "FetchReach") == task.spec


def test_data_sets_of_one_robot_share_the_widest_limits() -> None:
    """Derived limits are what was reached; everything else must agree."""
    further = {"action": {"min": [-4, 0], "max": [1, 5]}, PROPRIO: STATISTICS[PROPRIO]}
    one, two = derive_contract(INFO, STATISTICS, "a"), derive_contract(INFO, further, "b")
    merged = merge_contracts({"a": one, "b": two})
    assert (merged.action.low, merged.action.high) == ((-4, -1), (4, 5))
    assert merged.proprio == one.proprio
    with pytest.raises(ContractMismatchError, match=r"data b.*\n.*control_rate_hz: 30.0 != 10.0"):
        merge_contracts({"a": one, "data b": replace(two, control_rate_hz=10.0)})
    known = replace(one, action=replace(one.action, units=("m", "m")))
    with pytest.raises(ContractMismatchError, match=r"action\.low"):
        merge_contracts(
            {"a": known, "b": replace(known, action=replace(two.action, units=("m", "m")))}
        )


@pytest.mark.parametrize(
    ("info", "statistics", "message"),
    [
        (INFO | {"codebase_version": "v2.1"}, STATISTICS, "v2.1.*convert_dataset_v21_to_v30"),
        (changed(action=None), STATISTICS, r"has no action; it has \['observation"),
        (changed(**{"observation.state": None}), STATISTICS, "has no observation.state"),
        (
            changed(**{"observation.images.top": None, "observation.image": None}),
            STATISTICS,
            "has no a camera",
        ),
        (INFO, None, r"no meta/stats\.json"),
        (INFO, {"action": STATISTICS["action"]}, r"no statistics \['min', 'max'\] of 'obs"),
        (INFO, STATISTICS | {"action": {"min": [0], "max": [1]}}, "1 of 2 entries"),
        (INFO | {"codebase_version": "v2.1"}, STATISTICS, "--push-to-hub=false"),
        (INFO, None, r"stats\.json.* --operation.type=recompute_stats .*--push_to_hub=false"),
        (INFO | {"fps": 0}, STATISTICS, "has fps 0, a rate above 0"),
        (INFO | {"fps": None}, STATISTICS, "has fps None, a rate above 0"),
        (INFO, {}, r"no statistics.* --operation.type=recompute_stats .*--push_to_hub=false"),
        ({"codebase_version": "v3.0", "fps": 1}, None, r"info\.json has no features, total_frames"),
    ],
)
def test_what_does_not_say_enough_is_refused(
    tmp_path: Path, info: dict[str, Any], statistics: dict[str, Any] | None, message: str
) -> None:
    """Naming the data set, what is missing and what helps."""
    with pytest.raises(ValueError, match=message):
        read_contract(write(tmp_path / "set", info, statistics))


UNUSUAL: list[tuple[str, dict[str, Any], str]] = [
    ("depth", {**IMAGE, "info": {"is_depth_map": True}}, "is marked as a depth map"),
    ("depth", {**IMAGE, "video_info": {"video.is_depth_map": True}}, "is marked as a depth map"),
    ("infrared", IMAGE | {"shape": [48, 64, 1]}, r"has shape \[48, 64, 1\]"),
    ("infrared", IMAGE | {"shape": [48, 64], "names": ["height", "width"]}, "has shape"),
    ("depth", {"dtype": "uint16", "shape": [48, 64, 1], "names": None}, "holds uint16 numbers"),
    ("depth", {"dtype": "float32", "shape": [48, 64], "names": None}, "holds float32 numbers"),
]


@pytest.mark.parametrize(("name", "feature", "why"), UNUSUAL)
def test_cameras_that_are_not_rgb_are_named_and_can_be_left_out(
    name: str, feature: dict[str, Any], why: str
) -> None:
    """Infrared and depth, however a data set marks them."""
    info = changed(**{f"observation.images.{name}": feature})
    message = rf"data set here: observation\.images\.{name} {why}.*--cameras top image"
    with pytest.raises(ValueError, match=message):
        derive_contract(info, STATISTICS, "here")
    spec = derive_contract(info, STATISTICS, "here", ["image"])
    assert spec.cameras == (CameraSpec("image", 24, 32),)
    with pytest.raises(ValueError, match=r"no camera \['wrist'\]; it has \['top', 'image', "):
        derive_contract(info, STATISTICS, "here", ["image", "wrist"])


def test_cameras_of_a_recording_of_ours_are_chosen_too(tmp_path: Path) -> None:
    """In the order in which they are named."""
    write_folder(tmp_path / "FetchReach", [3])
    cameras = read_contract(tmp_path / "FetchReach", ["wrist", "front"]).cameras
    assert [camera.name for camera in cameras] == ["wrist", "front"]


@pytest.mark.parametrize("text", ["", "{", '{"fps": 1'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    """Rather than a place in JSON that might be anywhere."""
    root = write(tmp_path / "set", INFO, None)
    (root / "meta" / "stats.json").write_text(text)
    with pytest.raises(ValueError, match=r"set: meta/stats\.json is no JSON"):
        read_contract(root)


def test_statistics_that_are_stale_are_told_from_bad_numbers() -> None:
    """`null` is how JSON writes NaN."""
    for value in (None, float("nan"), float("inf")):
        statistics = STATISTICS | {"action": {"min": [0, 0], "max": [1, value]}}
        with pytest.raises(
            ValueError, match=r"here has no finite statistics \['max'\] of 'action'"
        ):
            derive_contract(INFO, statistics, "here")
