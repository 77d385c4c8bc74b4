"""The vision-language-action model: backbone, pointer and actor.

Between them stands the context, one vector a frame: the readout's hidden state, the points that the
pointer finds (hand, thing to move, goal) and proprioception. With a frozen backbone the context of
a frame never changes, so it can be computed once and trained on many times.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vla.model.actor import Actor
from vla.model.backbone import Backbone, Hidden
from vla.model.heads.gaussian import ActionDistribution, GaussianHeadConfig
from vla.model.pointer import Pointer, Pointing
from vla.model.registry import backbone_from_dict
from vla.model_inputs import ModelInputs
from vla.processor import Processor


@dataclass(frozen=True)
class VLAConfig:
    """What is built on a backbone.

    Attributes:
        horizon: control steps a chunk.
        summary: width to which the readout is projected for the head.
        point_center_m: world position that the pointer calls 0.
        point_scale_m: distance from it that the pointer calls 1.
        head: the action head.
    """

    horizon: int = 5
    summary: int = 16
    point_center_m: tuple[float, float, float] = (1.3, 0.75, 0.5)
    point_scale_m: float = 0.2
    head: GaussianHeadConfig = field(default_factory=GaussianHeadConfig)


@dataclass(frozen=True)
class Interface:
    """Sizes of what goes in and comes out.

    Attributes:
        cameras: pictures an observation.
        image_tokens: tokens a picture.
        proprio: numbers of proprioception.
        action: numbers a control step.
    """

    cameras: int
    image_tokens: int
    proprio: int
    action: int

    @classmethod
    def of(cls, processor: Processor) -> Interface:
        """What this processor gives and takes."""
        spec = processor.spec
        tokens = processor.config.image_tokens_per_camera
        return cls(len(spec.cameras), tokens, spec.proprio.dim, spec.action.dim)


class VLA(nn.Module):
    """A policy network from pictures, words and proprioception to a distribution over chunks.

    Args:
        backbone: gives hidden states of pictures and words.
        interface: sizes of inputs and outputs.
        config: sizes of what is built on the backbone.
    """

    def __init__(self, backbone: Backbone, interface: Interface, config: VLAConfig):
        super().__init__()
        self.config, self.interface = config, interface
        self.backbone = backbone
        width = self.backbone.width
        self.pointer = Pointer(width, interface.cameras, interface.image_tokens, interface.proprio)
        self.actor = Actor(
            width, interface.proprio, config.summary, config.horizon, interface.action, config.head
        )
        self.context_dim = sum(self.actor.split)

    def perception_parameters(self) -> list[nn.Parameter]:
        """What trains of backbone and pointer: all but what the backbone's tuning froze."""
        every = (*self.backbone.parameters(), *self.pointer.parameters())
        return [parameter for parameter in every if parameter.requires_grad]

    def point(self, inputs: ModelInputs) -> tuple[Pointing, Tensor]:
        """Where things are, and the readout [n, width] for the actor."""
        hidden: Hidden = self.backbone(inputs)
        pointing = self.pointer(hidden.readout[:, :-1], hidden.pictures, inputs.proprio)
        return pointing, hidden.readout[:, -1]

    def encode(self, inputs: ModelInputs) -> Tensor:
        """Context float32 [n, context_dim]: readout, points, proprioception."""
        pointing, readout = self.point(inputs)
        return torch.cat([readout, pointing.world.flatten(1), inputs.proprio], dim=1)

    def points_m(self, context: Tensor) -> Tensor:
        """Where the `POINTS` are thought to be: [n, POINTS, 3], world, metres."""
        center = torch.tensor(self.config.point_center_m, device=context.device)
        return self.actor.points(context) * self.config.point_scale_m + center

    def distribution(self, context: Tensor) -> ActionDistribution:
        """Distribution over normalised chunks."""
        return self.actor(context)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to build the same architecture: plain data for JSON."""
        return {
            "vla": asdict(self.config),
            "interface": asdict(self.interface),
            "backbone": self.backbone.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VLA:
        """An untrained model of the architecture that `to_dict` described."""
        fields = dict(data["vla"])
        fields["head"] = GaussianHeadConfig(**fields["head"])
        fields["point_center_m"] = tuple(fields["point_center_m"])
        backbone = backbone_from_dict(data["backbone"])
        return cls(backbone, Interface(**data["interface"]), VLAConfig(**fields))
