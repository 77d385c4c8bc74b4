"""The files that LeRobot reads in a checkpoint folder of ours, as plain data.

Written by hand rather than by LeRobot's classes, whose import takes seconds, which no training of
ours should wait for; LeRobot fills in the rest with the defaults of `LeRobotVLAConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla.contract import RobotSpec

POLICY_TYPE = "vla"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"


def describe_policy(specs: Mapping[str, RobotSpec], model: dict[str, Any]) -> dict[str, Any]:
    """config.json: LeRobot's description of a policy and the model's own configuration.

    Args:
        specs: the robots that it is for, by name; for several, features are left empty
            and LeRobot fills in those of its data set or environment.
        model: `VLA.to_dict`.
    """
    # One LeRobot policy has one set of features: several robots cannot be described by it.
    inputs, outputs = _features(*specs.values()) if len(specs) == 1 else ({}, {})
    return {
        # LeRobot finds the class of the configuration by this name.
        "type": POLICY_TYPE,
        "chunk_length": model["vla"]["chunk_length"],
        "head": model["vla"]["head"]["type"],
        "input_features": inputs,
        "output_features": outputs,
        **model,
    }


def _features(spec: RobotSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a robot gives and takes, under the names of its data sets."""
    images = {
        spec.features.camera(camera.name): {
            "type": "VISUAL",
            "shape": [3, camera.height, camera.width],  # channels first, as LeRobot passes images
        }
        for camera in spec.cameras
    }
    state = {spec.features.proprio: {"type": "STATE", "shape": [spec.proprio.dim]}}
    action = {spec.features.action: {"type": "ACTION", "shape": [spec.action.dim]}}
    return images | state, action


def describe_pipelines() -> dict[str, Any]:
    """File name → pipeline, around a policy that scales by itself: batch, move, nothing else.

    The normalisers do nothing and are there because LeRobot overrides them by name when it
    continues to train a checkpoint.
    """
    identity = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")
    normaliser = {"eps": 1e-8, "features": {}, "norm_map": identity}
    to_cpu = {"device": "cpu", "float_dtype": None}
    # The keys are names in LeRobot's registry of steps, and run in this order.
    before: dict[str, Any] = {
        "rename_observations_processor": {"rename_map": {}},
        "to_batch_processor": {},
        "device_processor": to_cpu,
        "normalizer_processor": normaliser,
    }
    after: dict[str, Any] = {"unnormalizer_processor": normaliser, "device_processor": to_cpu}
    return {
        f"{name}.json": {
            "name": name,
            "steps": [{"registry_name": step, "config": config} for step, config in steps.items()],
        }
        for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after))
    }
