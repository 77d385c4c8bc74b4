"""What LeRobot puts around a served policy: batching and moving, no scaling."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from vla.lerobot_plugin.configuration_vla_remote import LeRobotVLARemoteConfig
from vla.lerobot_plugin.processor_vla import Pipelines


def make_vla_remote_pre_post_processors(
    config: LeRobotVLARemoteConfig, dataset_stats: dict[str, Any] | None = None
) -> Pipelines:
    """LeRobot's usual pair, in which the normalisers are set to do nothing."""
    return make_default_pre_post_processors(config)
