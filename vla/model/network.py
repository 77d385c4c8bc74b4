"""The model in one robot's units: what is compiled, and exported as a whole."""

from __future__ import annotations

from torch import Tensor, nn

from vla.model.backbone import Hidden
from vla.model.features import Features
from vla.model.pointer import Pointing
from vla.model.vla import VLA
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor


class RobotNetwork(nn.Module):
    """A VLA between a robot's proprioception and its commands, both in physical units.

    Args:
        model: shared with whoever else uses it.
        processor: of the robot; brings its normalisers and limits.
    """

    def __init__(self, model: VLA, processor: Processor):
        super().__init__()
        self.model = model
        # Registered as submodules: their buffers move, compile and export with the network.
        self.proprio, self.action, self.limits = (
            processor.proprio,
            processor.action,
            processor.limits,
        )

    def point(self, inputs: ModelInputs) -> tuple[Pointing | None, Hidden]:
        """Estimated positions of the points if the model knows any, and all hidden states."""
        return self.model.point(inputs, self.proprio(inputs.proprio))

    def features(self, inputs: ModelInputs) -> Features:
        """Features of n observations, each of which sees its own images alone."""
        return self.model.features(inputs, self.proprio(inputs.proprio))

    def fused_features(self, inputs: ModelInputs, evidence: Tensor) -> tuple[Features, Tensor]:
        """Features with static points averaged over the episode; see `VLA.fuse_static_points`."""
        return self.model.fuse_static_points(self.features(inputs), evidence)

    def forward(self, inputs: ModelInputs, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """The greedy chunk float32 [n, chunk_length, action.dim] within limits, and the memory.

        Args:
            inputs: of n observations.
            evidence: float32 [n, static, 4] of the episode so far, see `PolicyState`.
        """
        features, evidence = self.fused_features(inputs, evidence)
        # Clipped inside the network: no export can command anything beyond the limits.
        return self.limits(self.action.inverse(self.model.actor.act(features))), evidence
