"""The contract of a LeRobotDataset v3 on disk: its own, or one derived from its metadata.

Reads JSON only, unless it has to say where a number is not finite; importing this loads neither
torch nor LeRobot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.contract import CameraSpec, FeatureMap, RobotSpec, VectorSpec
from vla.data.dataset_info import read_info, read_json, recompute_command, vector_names
from vla.data.recorded_frames import read_frames

ACTION, PROPRIO = FeatureMap.action, FeatureMap.proprio
UNKNOWN_UNIT = "unknown"


def read_contract(root: Path, cameras: Sequence[str] = ()) -> RobotSpec:
    """The contract of the data set in `root`.

    `meta/contract.json` where a recording left one; else derived: names, shapes and rate from
    `meta/info.json`, and as limits the extremes in `meta/stats.json`, since such a data set records
    what the robot did and not what it may do.

    Args:
        root: folder of the data set.
        cameras: names of those that are used, in this order; others are left out, whatever they
            hold. By default all are used, and all have to be RGB.

    Raises:
        FileNotFoundError: no data set there.
        ValueError: an older format, no state or action, no camera or none of that name, a camera
            that is not RGB (infrared, depth), or statistics that are missing or not finite.
    """
    info = read_info(root)
    if not (root / "meta" / "contract.json").is_file():
        return derive_contract(info, _read_statistics(root, info), root, cameras)
    spec = RobotSpec.from_dict(read_json(root, "contract.json"))
    if not cameras:
        return spec
    # In the order that was asked for, which is that of the model's image slots.
    named = {camera.name: camera for camera in spec.cameras}
    return replace(spec, cameras=tuple(named[c] for c in _choose(named, cameras, root)))


def derive_contract(
    info: Mapping[str, Any],
    statistics: Mapping[str, Any],
    where: Path | str,
    cameras: Sequence[str] = (),
) -> RobotSpec:
    """A contract from a data set's `info.json` and `stats.json`; see `read_contract`.

    Args:
        info: `meta/info.json`.
        statistics: `meta/stats.json`.
        where: the data set, for messages.
        cameras: names of those that are used; by default all.
    """
    features: Mapping[str, Any] = info["features"]
    missing = [name for name in (ACTION, PROPRIO) if name not in features]
    keys = {_camera_name(key): key for key, ft in features.items() if _is_camera(key, ft)}
    if missing or not keys:
        lacking = ", ".join(missing) or "a camera (a feature of dtype image or video)"
        raise ValueError(f"data set {where} has no {lacking}; it has {sorted(features)}")
    chosen = {name: keys[name] for name in _choose(keys, cameras, where)}
    _require_rgb({key: features[key] for key in chosen.values()}, keys, where)
    return RobotSpec(
        robot=str(info.get("robot_type") or "unknown"),
        action=_vector(features[ACTION], statistics, ACTION, where),
        proprio=_vector(features[PROPRIO], statistics, PROPRIO, where),
        cameras=tuple(CameraSpec(name, *_size(features[key])) for name, key in chosen.items()),
        control_rate_hz=float(info["fps"]),
        features=FeatureMap(cameras=chosen),
    )


def merge_contracts(specs: Mapping[str, RobotSpec]) -> RobotSpec:
    """One contract for several data sets of one robot.

    Limits that were derived are what each data set happened to reach, so the widest hold; all else
    must be equal.

    Args:
        specs: what each contract belongs to, for messages → contract.

    Raises:
        ContractMismatchError: with one line per difference.
    """
    (first_name, merged), *others = specs.items()
    for name, spec in others:
        # Widened both ways, so that derived limits agree and `require_match` sees all other fields.
        merged, theirs = _widen(merged, spec), _widen(spec, merged)
        merged.require_match(theirs, first_name, name)
    return merged


def _widen(ours: RobotSpec, theirs: RobotSpec) -> RobotSpec:
    """`ours` with limits that contain those of `theirs`, where both were derived."""

    def widest(one: VectorSpec, other: VectorSpec) -> VectorSpec:
        # Limits with a unit come from a contract of the robot and not from data: they must be
        # equal.
        if one.names != other.names or {*one.units, *other.units} != {UNKNOWN_UNIT}:
            return one
        low, high = map(min, one.low, other.low), map(max, one.high, other.high)
        return replace(one, low=tuple(low), high=tuple(high))

    return replace(
        ours,
        action=widest(ours.action, theirs.action),
        proprio=widest(ours.proprio, theirs.proprio),
    )


def require_statistics(
    statistics: Mapping[str, Any], feature: str, names: Sequence[str], where: Path | str
) -> dict[str, list[float]]:
    """These statistics of a feature.

    Raises:
        ValueError: one of them is missing or not finite.
    """
    found = statistics.get(feature, {})
    missing = [name for name in names if name not in found]
    numbers = {name: _floats(found[name]) for name in names if name not in missing}
    endless = [name for name, values in numbers.items() if not all(map(math.isfinite, values))]
    if missing or endless:
        what = f"no statistics {missing}" if missing else f"no finite statistics {endless}"
        raise ValueError(
            f"data set {where} has {what} of {feature!r}. LeRobot measures them, and uploads "
            f"nothing, with: {recompute_command(where)}"
        )
    return numbers


def describe_unusual_camera(feature: Mapping[str, Any]) -> str:
    """Why a camera's frames are not 8-bit RGB; empty where they are."""
    # Older recordings call the entry `video_info`, newer ones `info`.
    described = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if described.get("is_depth_map") or described.get("video.is_depth_map"):
        return "is marked as a depth map"
    if feature["dtype"] not in ("image", "video"):
        return f"holds {feature['dtype']} numbers"
    if len(feature["shape"]) != 3 or feature["shape"][_channel_axis(feature)] != 3:
        return f"has shape {list(feature['shape'])}"
    return ""


def _read_statistics(root: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """`meta/stats.json`; where an extreme is not finite, the frame that made it so is named."""
    if not (root / "meta" / "stats.json").is_file():
        raise ValueError(
            f"data set {root} has no meta/stats.json, so its numbers cannot be scaled. LeRobot "
            f"measures them, and uploads nothing, with: {recompute_command(root)}"
        )
    statistics = read_json(root, "stats.json")
    for key in (ACTION, PROPRIO):
        # Only a non-finite extreme costs reading the frames, which finds the frame to name.
        extremes = statistics.get(key, {})
        values = [v for name in ("min", "max") for v in _floats(extremes.get(name, ()))]
        if key in info["features"] and not all(map(math.isfinite, values)):
            read_frames(root).vectors(key)
    return statistics


def _floats(values: Iterable[Any]) -> list[float]:
    # null stands for NaN where the file is strict JSON.
    return [math.nan if value is None else float(value) for value in values]


def _vector(
    feature: Mapping[str, Any], statistics: Mapping[str, Any], key: str, where: Path | str
) -> VectorSpec:
    if len(feature["shape"]) != 1:
        raise ValueError(f"data set {where}: {key} has shape {feature['shape']}, expected a vector")
    (dim,) = feature["shape"]
    extremes = require_statistics(statistics, key, ("min", "max"), where)
    # A dimension that never moved gets a range of 2 around its value, which becomes 0 when
    # normalised by limits.
    bounds = [
        (low, high) if low < high else (low - 1.0, high + 1.0)
        for low, high in zip(extremes["min"], extremes["max"], strict=True)
    ]
    if len(bounds) != dim:
        raise ValueError(
            f"data set {where}: statistics of {key} have {len(bounds)} of {dim} entries"
        )
    low, high = zip(*bounds, strict=True)
    return VectorSpec(vector_names(feature.get("names"), dim), (UNKNOWN_UNIT,) * dim, low, high)


def _is_camera(key: str, feature: Mapping[str, Any]) -> bool:
    # By name too: depth is sometimes stored as a plain array of numbers.
    return feature["dtype"] in ("image", "video") or key.startswith("observation.images.")


def _camera_name(key: str) -> str:
    return key.removeprefix("observation.images.").removeprefix("observation.")


def _choose(available: Iterable[str], cameras: Sequence[str], where: Path | str) -> tuple[str, ...]:
    """Names of the cameras that are used."""
    names = tuple(available)
    if unknown := [name for name in cameras if name not in names]:
        raise ValueError(f"data set {where} has no camera {unknown}; it has {list(names)}")
    return tuple(dict.fromkeys(cameras)) or names  # each once, in the order asked for


def _require_rgb(
    chosen: Mapping[str, Mapping[str, Any]], cameras: Mapping[str, str], where: Path | str
) -> None:
    why = {key: describe_unusual_camera(feature) for key, feature in chosen.items()}
    if not any(why.values()):
        return
    listed = "; ".join(f"{key} {text}" for key, text in why.items() if text)
    usable = [name for name, key in cameras.items() if not why.get(key)]
    mend = "there is no RGB camera"
    if usable:
        mend = (
            f"leave it out: --cameras {' '.join(usable)} "
            f"(in LeRobot's commands --policy.cameras='[{','.join(usable)}]')"
        )
    raise ValueError(
        f"data set {where}: {listed}, and a policy sees RGB images of 3 channels; {mend}"
    )


def _channel_axis(feature: Mapping[str, Any]) -> int:
    axes = feature.get("names")
    # Features name their axes; without names images are height, width, channels.
    first = str(axes[0]) if isinstance(axes, Sequence) and len(axes) == 3 else ""
    return 0 if first.startswith("channel") else -1


def _size(feature: Mapping[str, Any]) -> list[int]:
    """Height and width."""
    sizes = list(feature["shape"])
    del sizes[_channel_axis(feature)]
    return sizes
