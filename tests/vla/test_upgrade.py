"""Checkpoints of older formats are read as if they were written today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from two_robots import ARM, observe, tiny_policy
from vla_runtime.atomic_folder import describe_files

from scripts.convert import ConvertConfig
from scripts.convert import main as convert
from vla.checkpoint.folder import CheckpointError, require_current
from vla.checkpoint.initialisation import GROUNDED
from vla.checkpoint.upgrade import upgrade_config, upgrade_weights
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.l1 import L1HeadConfig
from vla.model.points import PointsConfig
from vla.policy import VLAPolicy, load_policy


def test_a_checkpoint_of_format_1_acts_as_it_did(tmp_path: Path) -> None:
    """The shipped one is of format 1; converted, it is the same policy in today's format."""
    observation = observe(load_policy(GROUNDED).spec)
    observation.instructions = ["push the block to the target"] * 3
    before = load_policy(GROUNDED).act(observation)
    convert(ConvertConfig(GROUNDED, tmp_path / "new"))
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert (json.loads((GROUNDED / "manifest.json").read_text())["format"], manifest["format"]) == (
        1,
        4,
    )
    assert torch.equal(load_policy(tmp_path / "new").act(observation), before)
    require_current(tmp_path / "new")
    with pytest.raises(CheckpointError, match="vla convert --checkpoint"):
        require_current(GROUNDED)
    with pytest.raises(ValueError, match="name a new folder"):
        ConvertConfig(GROUNDED, tmp_path / "new")


def test_every_renamed_weight_of_format_1_is_found() -> None:
    """One of each pattern, by hand."""
    old: dict[str, Any] = {
        "actor.summary.0.weight": 0,
        "actor.head.places": 1,
        "actor.head.decoder.places": 2,
        "actor.head.quieter.bias": 3,
        "actor.head.expert.memory.weight": 4,
        "backbone.readout": 5,
    }
    assert upgrade_weights(old, 1) == {
        "actor.readout_projection.0.weight": 0,
        "actor.head.position_embedding": 1,
        "actor.head.decoder.position_embedding": 2,
        "actor.head.noise_scale_head.bias": 3,
        "actor.head.expert.prompt_projection.weight": 4,
        "backbone.readout": 5,
    }
    head = {"type": "token", "spread": 0.1}
    workspace = {"point_center_m": [1, 2, 3], "point_scale_m": 0.5}
    fields = {"horizon": 5, "summary": 16, "still": ["target"], "head": head, **workspace}
    upgraded = upgrade_config({"horizon": 5, "interface": {"cameras": 3}, "vla": fields}, 1)
    assert upgraded["dims"] == {"cameras": 3}
    assert upgraded["vla"] == {
        "chunk_length": 5,
        "readout_dim": 16,
        "points": upgraded["vla"]["points"],
        "action_bound": (),
        "head": {"type": "token", "label_smoothing": 0.1},
    }
    points = PointsConfig.from_dict(upgraded["vla"]["points"])
    assert points.names == ("gripper", "object", "target")
    assert (points.static, points.center_m, points.scale_m) == ((2,), (1, 2, 3), 0.5)


def test_a_checkpoint_of_format_2_acts_as_it_did(tmp_path: Path) -> None:
    """Its points stood in constants and three settings; LeRobot reads its config.json as it is."""
    tiny = tiny_policy(ARM)
    tiny.model.average_static_points(["target"])
    policy = VLAPolicy(tiny.model, tiny.embodiments)  # its memory has the static point
    folder, observation = policy.save(tmp_path / "old"), observe(ARM)
    config = json.loads((folder / "config.json").read_text())
    points = config["vla"].pop("points")
    config["vla"] |= {
        "static_points": ["target"],
        "point_center_m": points["center_m"],
        "point_scale_m": points["scale_m"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    manifest = {"format": 2, "files": describe_files(folder)}
    del manifest["files"]["manifest.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    old = load_policy(folder)
    assert old.model.config == policy.model.config
    assert torch.equal(old.act(observation), policy.act(observation))
    require_current(folder)


def test_an_l1_head_of_format_3_acts_as_it_did(tmp_path: Path) -> None:
    """All of its chunk came from the expert; today's have a part that reads the vector alone."""
    tiny = tiny_policy(ARM)
    chunks = torch.zeros(1, 3, ARM.action.dim)
    tiny.model.replace_actor(chunks, L1HeadConfig(ExpertConfig(16, 1, 2), hidden=0))
    folder, observation = tiny.save(tmp_path / "old"), observe(ARM)
    config = json.loads((folder / "config.json").read_text())
    del config["vla"]["head"]["hidden"]
    (folder / "config.json").write_text(json.dumps(config))
    manifest = {"format": 3, "files": describe_files(folder)}
    del manifest["files"]["manifest.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert torch.equal(load_policy(folder).act(observation), tiny.act(observation))
    assert L1HeadConfig().hidden > 0
