"""What LeRobot hands to a policy, as our observations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla.contract import ContractMismatchError, ObservationBatch, RobotSpec


def observation_of(batch: dict[str, Any], spec: RobotSpec) -> ObservationBatch:
    """A batch of LeRobot as our observations.

    Raises:
        ContractMismatchError: a camera, the state or the instruction is missing.
    """
    names = spec.features
    wanted = [names.proprio, *(names.camera(camera.name) for camera in spec.cameras), "task"]
    if missing := [name for name in wanted if name not in batch]:
        raise ContractMismatchError(f"the policy needs {missing}; there are {sorted(batch)}")
    images = {camera.name: _as_bytes(batch[names.camera(camera.name)]) for camera in spec.cameras}
    state = batch[names.proprio]
    return ObservationBatch(images, state, list(batch["task"]), torch.zeros(len(state)))


def _as_bytes(image: Tensor) -> Tensor:
    """LeRobot's [n, 3, height, width], floats in 0..1 or bytes, as uint8 [n, height, width, 3]."""
    if image.dtype != torch.uint8:
        # Back to bytes, exactly: LeRobot divided bytes by 255.
        image = (image * 255).round().clamp(0, 255).byte()
    return image.permute(0, 2, 3, 1)
