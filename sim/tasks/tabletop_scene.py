"""The tabletop's world: the Fetch robot, coloured blocks, coloured zones, and where they lie.

Blocks start in the half of the table that is nearer to the robot and zones lie in the farther one,
so that each of the nine (block, zone) pairs of every scene can be pushed straight, away from the
robot, with no other block in the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from sim.tasks.fetch_arm import fetch_asset, skip_impossible_contacts
from sim.tasks.fetch_cameras import ARM_VIEW, add_cameras

BLOCK_COLOURS = {
    "red": (0.9, 0.02, 0.02, 1.0),
    "green": (0.0, 0.6, 0.05, 1.0),
    "yellow": (1.0, 0.85, 0.0, 1.0),
}
# No colour is both a block's and a zone's, so one colour word never means two objects.
ZONE_COLOURS = {
    "blue": (0.03, 0.15, 1.0, 1.0),
    "cyan": (0.0, 0.85, 0.9, 1.0),
    "purple": (0.45, 0.0, 0.6, 1.0),
}
BLOCKS = tuple(f"{colour} block" for colour in BLOCK_COLOURS)
ZONES = tuple(f"{colour} zone" for colour in ZONE_COLOURS)


TABLE_HEIGHT_M = 0.4
BLOCK_HALF_M = 0.025
REST_HEIGHT_M = TABLE_HEIGHT_M + BLOCK_HALF_M
"""Height of a block's centre while it rests on the table."""
ZONE_RADIUS_M = 0.055


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are drawn; all positions are in the world frame.

    Attributes:
        block_x_m: range of the block centres' x (the robot stands at smaller x).
        zone_x_m: range of the zone centres' x.
        middle_y_m: the middle of the table.
        block_y_m: half range of the block centres' y about the middle.
        zone_y_m: half range of the zone centres' y about the middle.
        block_gap_m: least difference of two block centres' y; the open gripper is 13 cm wide, so a
            finger beside one block must not come down on its neighbour.
        zone_gap_m: least difference of two zone centres' y; above two success radii, so that no
            block is ever in two zones.
        lane_m: least distance of every other block's centre from a push line.
        slope: greatest |dy / dx| of a push line; steeper ones would push a block by its corner.
    """

    block_x_m: tuple[float, float] = (1.16, 1.21)
    zone_x_m: tuple[float, float] = (1.40, 1.47)
    middle_y_m: float = 0.75
    block_y_m: float = 0.15
    zone_y_m: float = 0.16
    block_gap_m: float = 0.105
    zone_gap_m: float = 0.118
    lane_m: float = 0.068
    slope: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Centres on the table: `blocks` and `zones` float64 [3, 2], world frame, metres."""

    blocks: np.ndarray
    zones: np.ndarray


def sample_scene(config: SceneConfig, seed: int) -> Scene:
    """Draw a scene in which every block can be pushed straight to every zone."""
    random = np.random.default_rng([seed, 0])
    middle = config.middle_y_m
    for _ in range(10_000):
        blocks = _draw(random, config.block_x_m, middle, config.block_y_m, config.block_gap_m)
        zones = _draw(random, config.zone_x_m, middle, config.zone_y_m, config.zone_gap_m)
        if _is_clear(config, blocks, zones):
            return Scene(blocks, zones)
    raise RuntimeError(f"no scene satisfies {config}; widen its ranges or lower its gaps")


def _draw(
    random: np.random.Generator,
    x_m: tuple[float, float],
    middle_y_m: float,
    half_y_m: float,
    gap_y_m: float,
) -> np.ndarray:
    """Three centres [3, 2] in shuffled order whose y differ by at least the gap."""
    # Sorted uniform numbers plus multiples of the gap: uniform over all admissible triples, without
    # rejecting any (three points, hence two gaps).
    slack = 2 * half_y_m - 2 * gap_y_m
    y = middle_y_m - half_y_m + gap_y_m * np.arange(3) + np.sort(random.uniform(0, slack, size=3))
    return np.stack([random.uniform(*x_m, size=3), random.permutation(y)], axis=1)


def _is_clear(config: SceneConfig, blocks: np.ndarray, zones: np.ndarray) -> bool:
    lines = zones[None] - blocks[:, None]  # (block, zone, xy)
    if (np.abs(lines[..., 1]) > config.slope * lines[..., 0]).any():
        return False
    ways = lines / np.linalg.norm(lines, axis=-1, keepdims=True)
    others = blocks[None] - blocks[:, None]  # (block, other, xy)
    across = np.abs(
        others[:, None, :, 0] * ways[:, :, None, 1] - others[:, None, :, 1] * ways[:, :, None, 0]
    )  # (block, zone, other)
    across[np.arange(len(blocks)), :, np.arange(len(blocks))] = np.inf
    return bool((across >= config.lane_m).all())


def build_spec() -> mujoco.MjSpec:
    """The Fetch robot and table of gymnasium-robotics with our blocks and zones, not compiled."""
    spec = mujoco.MjSpec.from_file(str(fetch_asset("pick_and_place.xml")))
    spec.delete(spec.body("object0"))
    spec.delete(spec.site("target0"))
    # The table's own friction rules its contacts, so blocks slide easily over it and still stick
    # to the fingers; that is what keeps a slanted push from slipping.
    table = spec.body("table0").geoms[0]
    table.priority = 1
    table.friction = [1.0, 0.005, 0.0001]
    for index, (name, rgba) in enumerate(zip(BLOCKS, BLOCK_COLOURS.values(), strict=True)):
        _add_block(spec, name, rgba, y_m=0.63 + 0.12 * index)
    for index, (name, rgba) in enumerate(zip(ZONES, ZONE_COLOURS.values(), strict=True)):
        _add_zone(spec, name, rgba, y_m=0.63 + 0.12 * index)
    add_cameras(spec, ARM_VIEW)
    skip_impossible_contacts(spec)
    return spec


def _add_block(spec: mujoco.MjSpec, name: str, rgba: tuple[float, ...], y_m: float) -> None:
    position = [1.2, y_m, REST_HEIGHT_M]
    body = spec.worldbody.add_body(name=name, pos=position)
    body.add_freejoint(name=f"{name}:joint")
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[BLOCK_HALF_M] * 3,
        mass=0.5,
        friction=[1.5, 0.02, 0.0001],
        rgba=rgba,
    )


def _add_zone(spec: mujoco.MjSpec, name: str, rgba: tuple[float, ...], y_m: float) -> None:
    # A mocap body lies where `MjData.mocap_pos` says: the model stays the same for every scene.
    body = spec.worldbody.add_body(name=name, pos=[1.46, y_m, TABLE_HEIGHT_M + 0.001], mocap=True)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[ZONE_RADIUS_M, 0.001, 0],
        contype=0,
        conaffinity=0,
        rgba=rgba,
    )
