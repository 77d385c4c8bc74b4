"""Scenes near the demonstrated ones: points and tool are moved together, turned, and moved apart.

With frozen perception a sample is a few positions, so one demonstration stands for many. A common
shift or turn about the vertical leaves right what was demonstrated, where actions displace the
tool. A tool that alone is moved is led back onto its demonstrated path by the first steps of the
chunk, as fast as their limits allow.

Source: shifts and turns as in Mandlekar et al. 2023 (MimicGen, arXiv:2310.17596), who transform
whole demonstrations and play them again; corrective labels as in Zhou et al. 2023 (SPARTN,
arXiv:2301.08556). Departure: both happen to the estimated positions, sample by sample. The readout
is of a scene that was not moved, so each sample gets that of another one: the head learns to act by
positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vla.contract import RobotSpec
from vla.model.features import Features
from vla.policy import VLAPolicy

_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class SceneAugmentation:
    """How far scenes are moved, drawn uniformly up to these bounds; 0 moves nothing.

    Attributes:
        scene_shift: of points and tool together along x and y, metres.
        scene_turn: of both about the vertical through the middle of the points, degrees.
        tool_offset: of the tool alone along x and y, metres; small ones are drawn most often.
    """

    scene_shift: float = 0.15
    scene_turn: float = 180.0
    tool_offset: float = 0.05


def scene_mover(
    policy: VLAPolicy, robots: Sequence[str], bounds: Sequence[float | None]
) -> SceneMover | None:
    """What moves the scenes of these robots; None where nothing does.

    Args:
        policy: as of `SceneMover`.
        robots: likewise.
        bounds: those of `SceneAugmentation`; None for its default, where scenes can be moved.

    Raises:
        ValueError: see `SceneMover`; only where a bound above 0 was asked for.
    """
    usual = astuple(SceneAugmentation())
    chosen = [b if b is not None else default for b, default in zip(bounds, usual, strict=True)]
    if not any(chosen):
        return None
    try:
        return SceneMover(policy, robots, SceneAugmentation(*chosen))
    except ValueError:
        if any(bounds):
            raise
        return None


class SceneMover:
    """Moves the scenes of one robot.

    Args:
        policy: its model knows points, some in the world; whose proprioception has the tool's
            position in metres, and whose actions displace it along the same axes.
        robots: those of the demonstrations; there has to be one.
        config: how far.

    Raises:
        ValueError: there are no such points, position or actions, the head attends to images, or
            there are several robots.
    """

    def __init__(self, policy: VLAPolicy, robots: Sequence[str], config: SceneAugmentation):
        self.config = config
        points = policy.model.config.points
        if not len(points) or len({spec.frame for spec in points.specs}) > 1:
            known = ", ".join(f"{spec.name} ({spec.frame})" for spec in points.specs) or "none"
            raise ValueError(
                f"moving scenes needs a model with points in one frame; it has {known}"
            )
        if policy.model.actor.head.attends:
            raise ValueError(
                "moving scenes needs a head that acts by positions alone, such as gaussian: one "
                "that attends reads from the images where things were"
            )
        if len(robots) != 1:
            raise ValueError(
                f"moving scenes needs demonstrations of one robot; there are {', '.join(robots)}"
            )
        policy = policy.embodied(robots[0])
        spec = policy.spec
        tool, self._tool = _tool_position(spec)
        self._actions, self._metres = _displacements(spec)
        # The model may estimate where the tool is, too: then that point goes with it.
        self._is_tool = torch.tensor([name == tool for name in points.names])[:, None]
        self._center_m, self._scale_m = torch.tensor(points.center_m), points.scale_m
        self._proprio, self._action = policy.processor.proprio, policy.processor.action
        # Of a control step, in metres, [3].
        low, high = torch.tensor(spec.action.low), torch.tensor(spec.action.high)
        self._low, self._high = (
            self._metres * low[self._actions],
            self._metres * high[self._actions],
        )

    def move(
        self, features: Features, actions: Tensor, generator: torch.Generator
    ) -> tuple[Features, Tensor]:
        """The same samples in moved scenes.

        Args:
            features: of n observations.
            actions: demonstrated chunks float32 [n, chunk_length, action], normalised.
            generator: draws everything, on its own device.
        """
        count, device = len(features), features.device

        def draw(bound: float, axes: int) -> Tensor:
            drawn = torch.rand(count, axes, generator=generator, device=generator.device)
            return bound * (2 * drawn - 1).to(device)

        def horizontal(bound: float) -> Tensor:
            return F.pad(draw(bound, 2), (0, 1))

        # Metres from here on: points [n, points, 3], tool [n, 3], steps [n, chunk_length, 3].
        center_m, metres = self._center_m.to(device), self._metres.to(device)
        points = features.points * self._scale_m + center_m
        proprio = self._proprio.inverse(features.proprio)
        commands = self._action.inverse(actions)
        tool, steps = proprio[:, self._tool], commands[..., self._actions] * metres
        middle = points.mean(1)
        turn = _about_vertical(draw(math.radians(self.config.scene_turn), 1)[:, 0])
        to = middle + horizontal(self.config.scene_shift)
        points = (points - middle[:, None]) @ turn + to[:, None]
        tool = ((tool - middle)[:, None] @ turn)[:, 0] + to
        offset = horizontal(self.config.tool_offset) * draw(1.0, 1).abs()
        points = points + self._is_tool.to(device) * offset[:, None]
        proprio[:, self._tool] = tool + offset
        commands[..., self._actions] = self._catch_up(steps @ turn, -offset) / metres
        others = torch.randperm(count, generator=generator, device=generator.device).to(device)
        moved = replace(
            features,
            readout=features.readout[others],
            points=(points - center_m) / self._scale_m,
            proprio=self._proprio(proprio),
        )
        return moved, self._action(commands)

    def _catch_up(self, steps: Tensor, owed: Tensor) -> Tensor:
        """Steps [n, chunk_length, 3] within limits; `owed` [n, 3] is made up for by the first."""
        low, high = self._low.to(steps.device), self._high.to(steps.device)
        taken = []
        for step in steps.unbind(1):
            taken.append((step + owed).clamp(low, high))
            owed = step + owed - taken[-1]
        return torch.stack(taken, dim=1)


def _about_vertical(angle: Tensor) -> Tensor:
    """Matrices [n, 3, 3] that turn rows by angles [n] in radians."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = ((cos, sin, zero), (-sin, cos, zero), (zero, zero, zero + 1))
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _tool_position(spec: RobotSpec) -> tuple[str, list[int]]:
    """The tool's name, and the dimensions of proprioception that are its position in metres."""
    names, units = spec.proprio.names, spec.proprio.units
    in_metres = {name for name, unit in zip(names, units, strict=True) if unit == "m"}
    prefixes = [name[:-2] for name in names if name.endswith("_x")]
    found = [p for p in prefixes if in_metres.issuperset(f"{p}_{axis}" for axis in _AXES)]
    if len(found) != 1:
        raise ValueError(
            "moving scenes needs one position of a tool in proprioception: NAME_x, NAME_y and "
            f"NAME_z in m; {spec.robot} has {_described(names, units)}"
        )
    return found[0], [names.index(f"{found[0]}_{axis}") for axis in _AXES]


def _displacements(spec: RobotSpec) -> tuple[list[int], Tensor]:
    """The dimensions of actions that displace the tool, and their units in metres, [3]."""
    names, units = spec.action.names, spec.action.units
    wanted = [f"d{axis}" for axis in _AXES]
    try:
        found = [names.index(name) for name in wanted]
        # "0.05 m", or "m" alone.
        metres = [float(units[i].removesuffix("m").strip() or 1) for i in found]
        if not all(units[i].endswith("m") for i in found):
            raise ValueError
    except ValueError:
        raise ValueError(
            "moving scenes needs actions dx, dy and dz in metres or a multiple, as in 0.05 m; "
            f"{spec.robot} has {_described(names, units)}"
        ) from None
    return found, torch.tensor(metres)


def _described(names: Sequence[str], units: Sequence[str]) -> str:
    return ", ".join(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
