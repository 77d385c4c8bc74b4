"""A trained model as a `Policy`: observations in, action chunks in physical units out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vla.checkpoint import load_checkpoint
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

    def reset(self, indices: Sequence[int]) -> None:
        """Nothing is remembered between decisions."""

    @torch.no_grad()
    def encode(self, observation: ObservationBatch) -> Tensor:
        """Context of every observation, float32 [n, context_dim]."""
        self.model.eval()
        return self.model.encode(self.processor.encode_observation(observation).to(self.device))

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """The most likely chunk, float32 [n, horizon, action.dim]."""
        chunk = self.model.distribution(self.encode(observation)).mode()
        return self.processor.decode_actions(chunk).to(observation.proprio.device)


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
