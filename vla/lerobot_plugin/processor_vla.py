"""What LeRobot puts around our policy: batching and moving, no scaling."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_pre_post_processors,
)

from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig

Pipelines = tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]


def make_vla_pre_post_processors(
    config: LeRobotVLAConfig, dataset_stats: dict[str, Any] | None = None
) -> Pipelines:
    """LeRobot's usual pair, in which the normalisers are set to do nothing."""
    return make_default_pre_post_processors(config)
