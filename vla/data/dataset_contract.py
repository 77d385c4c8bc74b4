"""The contract of a LeRobotDataset v3 on disk: its own, or one derived from what it says of itself.

Reads JSON only; importing this loads neither torch nor LeRobot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.contract import CameraSpec, FeatureMap, RobotSpec, VectorSpec

ACTION, PROPRIO = FeatureMap.action, FeatureMap.proprio
UNKNOWN_UNIT = "unknown"


def read_contract(root: Path) -> RobotSpec:
    """The contract of the data set in `root`.

    `meta/contract.json` where a recording left one; else derived: names, shapes and rate from
    `meta/info.json`, and as limits the extremes in `meta/stats.json`, since such a data set says
    nothing of what the robot may do beyond what it did.

    Raises:
        FileNotFoundError: no data set there.
        ValueError: an older format, no camera, state or action, or no statistics.
    """
    info = _read(root, "info.json")
    if not str(version := info.get("codebase_version", "")).startswith("v3."):
        raise ValueError(
            f"data set {root} has format {version or 'unknown'}, LeRobotDataset v3 is needed: "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30 --help converts a v2.1"
        )
    if (root / "meta" / "contract.json").is_file():
        return RobotSpec.from_dict(_read(root, "contract.json"))
    return derive_contract(info, _read(root, "stats.json"), root)


def derive_contract(
    info: Mapping[str, Any], statistics: Mapping[str, Any], where: Path | str
) -> RobotSpec:
    """A contract from a data set's `info.json` and `stats.json`; see `read_contract`.

    Args:
        info: `meta/info.json`.
        statistics: `meta/stats.json`.
        where: the data set, for messages.
    """
    features: Mapping[str, Any] = info["features"]
    missing = [name for name in (ACTION, PROPRIO) if name not in features]
    cameras = {_camera_name(key): key for key, ft in features.items() if _is_camera(ft)}
    if missing or not cameras:
        lacking = ", ".join(missing) or "a camera (a feature of dtype image or video)"
        raise ValueError(f"data set {where} has no {lacking}; it has {sorted(features)}")
    return RobotSpec(
        robot=str(info.get("robot_type") or "unknown"),
        action=_vector(features[ACTION], statistics, ACTION, where),
        proprio=_vector(features[PROPRIO], statistics, PROPRIO, where),
        cameras=tuple(_camera(name, key, features[key], where) for name, key in cameras.items()),
        control_rate_hz=float(info["fps"]),
        features=FeatureMap(cameras=cameras),
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
        merged, theirs = _widen(merged, spec), _widen(spec, merged)
        merged.require_match(theirs, first_name, name)
    return merged


def _widen(ours: RobotSpec, theirs: RobotSpec) -> RobotSpec:
    """`ours` with limits that contain those of `theirs`, where both were derived."""

    def widest(one: VectorSpec, other: VectorSpec) -> VectorSpec:
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
        ValueError: one of them is missing.
    """
    found = statistics.get(feature, {})
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"data set {where} has no statistics {missing} of {feature!r}: "
            "python -m lerobot.scripts.augment_dataset_quantile_stats --help writes them"
        )
    return {name: [float(value) for value in found[name]] for name in names}


def _vector(
    feature: Mapping[str, Any], statistics: Mapping[str, Any], key: str, where: Path | str
) -> VectorSpec:
    if len(feature["shape"]) != 1:
        raise ValueError(f"data set {where}: {key} has shape {feature['shape']}, expected a vector")
    (dim,) = feature["shape"]
    extremes = require_statistics(statistics, key, ("min", "max"), where)
    # What never moved gets a range around it, so that it stays in the middle of the normalised one.
    bounds = [
        (low, high) if low < high else (low - 1.0, high + 1.0)
        for low, high in zip(extremes["min"], extremes["max"], strict=True)
    ]
    if len(bounds) != dim:
        raise ValueError(
            f"data set {where}: statistics of {key} have {len(bounds)} of {dim} entries"
        )
    low, high = zip(*bounds, strict=True)
    return VectorSpec(_names(feature.get("names"), dim), (UNKNOWN_UNIT,) * dim, low, high)


def _names(recorded: Any, dim: int) -> tuple[str, ...]:
    """LeRobot has names as a list, as a list in a dictionary ({"motors": [...]}), or none."""
    if isinstance(recorded, Mapping):
        recorded = next((names for names in recorded.values() if isinstance(names, list)), None)
    names = tuple(map(str, recorded or ()))
    return names if len(set(names)) == dim else tuple(str(index) for index in range(dim))


def _is_camera(feature: Mapping[str, Any]) -> bool:
    described = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    is_depth = described.get("is_depth_map") or described.get("video.is_depth_map")
    return feature["dtype"] in ("image", "video") and not is_depth


def _camera_name(key: str) -> str:
    return key.removeprefix("observation.images.").removeprefix("observation.")


def _camera(name: str, key: str, feature: Mapping[str, Any], where: Path | str) -> CameraSpec:
    sizes = list(feature["shape"])
    axes = feature.get("names") or ["height", "width", "channels"]
    channels = sizes.pop(0 if str(axes[0]).startswith("channel") else -1)
    if channels != 3 or len(sizes) != 2:
        raise ValueError(f"data set {where}: {key} has shape {feature['shape']}, expected RGB")
    return CameraSpec(name, *sizes)


def _read(root: Path, name: str) -> dict[str, Any]:
    path = root / "meta" / name
    if name == "info.json" and not path.is_file():
        siblings = sorted(path.parent.parent.name for path in root.parent.glob("*/meta/info.json"))
        nearby = f"in {root.parent} there are {siblings}" if siblings else "there are none nearby"
        raise FileNotFoundError(
            f"no data set in {root}; {nearby}. "
            f"Record it: vla collect --task {root.name} --root {root}"
        )
    if not path.is_file():
        raise ValueError(f"data set {root} has no meta/{name}, so its numbers cannot be scaled")
    return json.loads(path.read_text(encoding="utf-8"))
