"""What `meta/` of a LeRobotDataset says of the whole data set."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POINT = "points."
"""Begins the key of a position: `points.cup` is where the cup is, [3], world, in metres."""


def read_info(root: Path) -> dict[str, Any]:
    """`meta/info.json` of a data set.

    Raises:
        FileNotFoundError: no data set there.
        ValueError: an older format, or an entry that is missing.
    """
    if not (root / "meta" / "info.json").is_file():
        # The name may be misspelt: the message lists the data sets beside it.
        siblings = sorted(path.parent.parent.name for path in root.parent.glob("*/meta/info.json"))
        nearby = f"in {root.parent} there are {siblings}" if siblings else "there are none nearby"
        record = shlex.join(("vla", "collect", "--task", _folder_name(root), "--root", str(root)))
        raise FileNotFoundError(f"no data set in {root}; {nearby}. Record it: {record}")
    info = read_json(root, "info.json")
    if not isinstance(info, dict):
        raise ValueError(f"data set {root}: meta/info.json is no table of settings")
    if not str(version := info.get("codebase_version", "")).startswith("v3."):
        name, script = _folder_name(root), "lerobot.scripts.convert_dataset_v21_to_v30"
        flags = (f"--repo-id=local/{name}", f"--root={root}", "--push-to-hub=false")
        raise ValueError(
            f"data set {root} has format {version or 'unknown'}, LeRobotDataset v3 is needed. "
            f"A v2.1 is converted, the original kept as {name}_old and nothing uploaded, by: "
            + shlex.join(("python", "-m", script, *flags))
        )
    if missing := [key for key in ("features", "fps", "total_frames") if key not in info]:
        raise ValueError(f"data set {root}: meta/info.json has no {', '.join(missing)}")
    for name, feature in dict(info["features"]).items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not isinstance(shape, list) or "dtype" not in feature:
            raise ValueError(
                f"data set {root}: meta/info.json says of {name!r} {feature}, a dtype and a shape "
                "are needed"
            )
    # NaN and infinity fail the comparison too; JSON as Python reads it can hold both.
    if not (isinstance(fps := info["fps"], int | float) and 0 < fps < math.inf):
        raise ValueError(f"data set {root}: meta/info.json has fps {fps}, a rate above 0 is needed")
    return info


def point_keys(info: Mapping[str, Any]) -> dict[str, str]:
    """Name → key of the points whose positions a data set has."""
    # Another shape is none of ours, such as a cloud of points: nobody asked for it.
    return {
        key.removeprefix(POINT): key
        for key, feature in info["features"].items()
        if key.startswith(POINT) and key != POINT and feature["shape"] == [3]
    }


def vector_names(recorded: Any, dim: int) -> tuple[str, ...]:
    """A name for each dimension of a feature, its number where `info.json` has none.

    LeRobot has names as a list, as a list in a dictionary ({"motors": [...]}), or none.
    """
    if isinstance(recorded, Mapping):
        # The key of the dictionary ("motors", "axes") is free, so the first list counts.
        recorded = next((names for names in recorded.values() if isinstance(names, list)), None)
    names = tuple(map(str, recorded or ()))
    # Names that repeat, or are not one a dimension, are replaced by numbers.
    return names if len(set(names)) == dim else tuple(str(index) for index in range(dim))


def recompute_command(where: Path | str) -> str:
    """The shell line that measures a data set's statistics anew."""
    # LeRobot's augment_dataset_quantile_stats would do too, but always uploads.
    words = (
        "lerobot-edit-dataset",
        f"--repo_id=local/{_folder_name(where)}",
        f"--root={where}",
        f"--new_root={where}",
        "--operation.type=recompute_stats",
        "--operation.overwrite=true",
        "--push_to_hub=false",
    )
    return shlex.join(words)


def _folder_name(folder: Path | str) -> str:
    """Also of `.`, which has none of its own."""
    return Path(os.path.abspath(folder)).name


def read_json(root: Path, name: str) -> dict[str, Any]:
    """`meta/<name>` of a data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON.
    """
    try:
        return json.loads((root / "meta" / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"data set {root}: meta/{name} is no JSON: {error}") from error
