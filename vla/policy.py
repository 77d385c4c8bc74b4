"""A trained model as a `Policy`: observations in, action chunks in physical units out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.checkpoint import latest_complete, load_checkpoint, save_checkpoint
from vla.contract import ObservationBatch
from vla.model.vla import VLA
from vla.processor import Processor


class VLAPolicy:
    """Greedy policy of a vision-language-action model.

    Args:
        model: the network; it is put into evaluation mode at every decision.
        processor: its conversions; brings the contract.
    """

    def __init__(self, model: VLA, processor: Processor):
        self.model = model
        self.processor = processor
        self.spec = processor.spec

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    @property
    def horizon(self) -> int:
        """Control steps a chunk."""
        return self.model.config.horizon

    def reset(self, indices: Sequence[int]) -> None:
        """Nothing is remembered between decisions."""

    @torch.no_grad()
    def encode(self, observation: ObservationBatch) -> Tensor:
        """Context of every observation, float32 [n, context_dim]."""
        self.model.eval()
        return self.model.encode(self.processor.encode_observation(observation).to(self.device))

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """The greedy chunk, float32 [n, horizon, action.dim]."""
        chunk = self.model.actor.act(self.encode(observation))
        return self.processor.decode_actions(chunk).to(observation.proprio.device)

    def save(self, folder: Path, training_state: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint; `training_state` is what a training needs to go on exactly."""
        return save_checkpoint(
            folder,
            model_config=self.model.to_dict(),
            weights=self.model.state_dict(),
            processor=self.processor,
            training_state=training_state,
        )

    def resume(self, run: Path) -> dict[str, Any] | None:
        """Take the weights of a run's newest complete checkpoint and return its training state.

        Returns:
            None where the run has no checkpoint yet.

        Raises:
            ValueError: the checkpoint holds no training state.
        """
        if (found := latest_complete(run)) is None:
            return None
        checkpoint = load_checkpoint(found, with_training_state=True)
        if checkpoint.training_state is None:
            raise ValueError(f"{found} holds no training state: train into another folder")
        self.model.load_state_dict(checkpoint.weights)
        return checkpoint.training_state


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> VLAPolicy:
    """Read a checkpoint strictly: every weight present, none surplus.

    Raises:
        CheckpointError: missing, damaged, or of another format.
        RuntimeError: the weights do not fit the architecture; the message names them.
    """
    checkpoint = load_checkpoint(folder)
    model = VLA.from_dict(checkpoint.model_config)
    model.load_state_dict(checkpoint.weights)
    return VLAPolicy(model.to(device), checkpoint.processor)
