"""The vision-language-action model: backbone, pointer and action head.

Between backbone and head stands the context, one vector a frame: the readout's hidden states, the
points that the pointer reads from them (where the thing to move and where the goal is) and
proprioception. With a frozen backbone the context of a frame never changes, so it can be computed
once and trained on many times.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vla.model.backbone import Backbone, backbone_from_dict
from vla.model.heads.gaussian import ActionDistribution, GaussianHead, GaussianHeadConfig
from vla.processor import ModelInputs

POINTS = ("object", "target")


@dataclass(frozen=True)
class VLAConfig:
    """What is built on a backbone.

    Attributes:
        horizon: control steps a chunk.
        readout_tokens: positions of the language model that are read.
        summary: width to which the readout is projected for the head.
        point_center_m: world position that the pointer calls 0.
        point_scale_m: distance from it that the pointer calls 1.
        head: the action head.
    """

    horizon: int = 5
    readout_tokens: int = 4
    summary: int = 32
    point_center_m: tuple[float, float, float] = (1.3, 0.75, 0.5)
    point_scale_m: float = 0.2
    head: GaussianHeadConfig = field(default_factory=GaussianHeadConfig)


class VLA(nn.Module):
    """A policy network from pictures, words and proprioception to a distribution over chunks.

    Args:
        language_model: a transformers image-text model.
        proprio_dim: numbers of proprioception.
        action_dim: numbers a control step.
        config: sizes.
    """

    def __init__(
        self, language_model: PreTrainedModel, proprio_dim: int, action_dim: int, config: VLAConfig
    ):
        super().__init__()
        self.config = config
        self.backbone = Backbone(language_model, config.readout_tokens)
        read = config.readout_tokens * self.backbone.width
        self.pointer = nn.Sequential(nn.LayerNorm(read), nn.Linear(read, 3 * len(POINTS)))
        self.summary = nn.Sequential(nn.LayerNorm(read), nn.Linear(read, config.summary))
        self._split = (read, 3 * len(POINTS), proprio_dim)
        self.context_dim = sum(self._split)
        features = config.summary + 3 * len(POINTS) + proprio_dim
        self.head = GaussianHead(features, config.horizon, action_dim, config.head)

    def encode(self, inputs: ModelInputs) -> Tensor:
        """Context float32 [n, context_dim]: readout, points, proprioception."""
        hidden = self.backbone(inputs).flatten(1)
        return torch.cat([hidden, self.pointer(hidden), inputs.proprio], dim=1)

    def scaled_points(self, context: Tensor) -> Tensor:
        """Where object and target are thought to be, in the pointer's units: [n, 2, 3]."""
        return context.split(self._split, dim=1)[1].unflatten(1, (len(POINTS), 3))

    def points_m(self, context: Tensor) -> Tensor:
        """Where object and target are thought to be: [n, 2, 3], world, metres."""
        center = torch.tensor(self.config.point_center_m, device=context.device)
        return self.scaled_points(context) * self.config.point_scale_m + center

    def distribution(self, context: Tensor) -> ActionDistribution:
        """Distribution over normalised chunks."""
        return self.head(self._features(context))

    def cloning_loss(self, context: Tensor, actions: Tensor, is_pad: Tensor) -> Tensor:
        """Negative log-likelihood of normalised actions [n, horizon, action]."""
        return self.head.loss(self._features(context), actions, is_pad)

    def perturb(self, context: Tensor, noise: Tensor) -> Tensor:
        """Add `noise` [n, context_dim] to the points and proprioception of a context."""
        measured = torch.ones_like(context[:1])
        measured[:, : self._split[0]] = 0.0
        return context + noise * measured

    def _features(self, context: Tensor) -> Tensor:
        hidden, points, proprio = context.split(self._split, dim=1)
        return torch.cat([self.summary(hidden), points, proprio], dim=1)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to build the same architecture: plain data for JSON."""
        return {
            "vla": asdict(self.config),
            "backbone": self.backbone.language_model.config.to_dict(),
            "proprio_dim": self._split[2],
            "action_dim": self.head.shape[1],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VLA:
        """An untrained model of the architecture that `to_dict` described."""
        fields = dict(data["vla"])
        fields["head"] = GaussianHeadConfig(**fields["head"])
        fields["point_center_m"] = tuple(fields["point_center_m"])
        return cls(
            backbone_from_dict(data["backbone"]),
            data["proprio_dim"],
            data["action_dim"],
            VLAConfig(**fields),
        )
