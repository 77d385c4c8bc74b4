"""The README.md of a checkpoint: what it is, what it controls, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla.contract import RobotSpec
from vla.model.points import PointsConfig

_TEMPLATE = """\
# Vision-language-action policy for {robots}

Load it with `vla.policy.load_policy({call})`. Every file is listed with its SHA-256 in
`manifest.json`.

| | |
|---|---|
| vision-language model | {backbone} |
| chunk | {chunk_length} control steps |
| points | {points} |
{rows}
| trained by | {command} |

{licence}
"""


def model_card(config: dict[str, Any], specs: Mapping[str, RobotSpec], command: str | None) -> str:
    """Markdown text.

    Args:
        config: the model's, as in config.json.
        specs: contracts of the robots that it controls, by name.
        command: the shell line that trained it, where it is known.
    """
    backbone = config["backbone"]
    kind = backbone["kind"]
    # A pretrained part keeps its transformers configuration under these keys, see
    # `Backbone.to_dict`.
    parts = {"vlm": ("model",), "dual": ("vision", "text")}.get(kind, ())
    towers = " + ".join(_origin(backbone[part]) for part in parts)
    if kind == "embedded":
        description = f"embedded, made here ({backbone['model_type']})"
        licence = "The vision-language model was made and trained with this project."
        if backbone.get("language_width"):
            description += ", words by the language tower in `language_tower.json`"
            licence += "\nThe language tower keeps its own licence; its weights are not in here."
    else:
        # A model's configuration does not name its licence.
        options = backbone["options"]
        description = f"{towers}, {options['tuning']}, layer {options['layer']}, {options['dtype']}"
        licence = (
            "The pretrained weights within keep the licence of their authors: look it up, and state"
            "\nit here, before this checkpoint is passed on."
        )
    return _TEMPLATE.format(
        robots=", ".join(specs),
        call='"<this folder>"' if len(specs) == 1 else '"<this folder>", embodiment="<name>"',
        backbone=description,
        chunk_length=config["vla"]["chunk_length"],
        points=_points(PointsConfig.from_dict(config["vla"]["points"])),
        rows="\n".join(
            f"| {what if len(specs) == 1 else f'`{name}`: {what}'} | {value} |"
            for name, spec in specs.items()
            for what, value in _describe(spec).items()
        ),
        command="not recorded" if command is None else f"`{command}`",
        licence=licence,
    )


def _points(points: PointsConfig) -> str:
    """Which positions the model estimates, in which frame and over which workspace."""
    if not len(points):
        return "none"
    named = ", ".join(
        f"{spec.name} ({spec.frame}{', averaged over an episode' if spec.static else ''})"
        for spec in points.specs
    )
    centre = ", ".join(f"{number:g}" for number in points.center_m)
    return f"{named}; workspace {points.scale_m:g} m around ({centre}) m"


def _describe(spec: RobotSpec) -> dict[str, str]:
    cameras = (f"{c.name} ({c.width} x {c.height} px)" for c in spec.cameras)
    return {
        "control rate": f"{spec.control_rate_hz} Hz",
        "cameras, in order": ", ".join(cameras),
        "proprioception": _units(spec.proprio.names, spec.proprio.units),
        "action": _units(spec.action.names, spec.action.units),
    }


def _origin(config: dict[str, Any]) -> str:
    # Empty where the model was built from a configuration instead of loaded by name.
    name = config.get("_name_or_path")
    return f"{config['model_type']} `{name}`" if name else config["model_type"]


def _units(names: tuple[str, ...], units: tuple[str, ...]) -> str:
    return ", ".join(f"{name} [{unit}]" for name, unit in zip(names, units, strict=True))
