"""The vision-language-action model: backbone, pointer and actor.

Between them stands the context, one vector a frame: the readout's hidden state, the points that the
pointer finds (hand, thing to move, goal), proprioception and, for a head that attends to them, the
prompt's hidden states. With a frozen backbone the context of a frame never changes, so it can be
computed once and trained on many times.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vla.model.actor import Actor
from vla.model.backbone import Backbone, Hidden
from vla.model.heads.base import HeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.registry import head_from_dict, head_to_dict
from vla.model.point_filter import Sightings
from vla.model.pointer import POINTS, Pointer, Pointing
from vla.model.registry import backbone_from_dict
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor

_SHARP = 0.02
"""Standard deviation of a sharp sighting, a picture being 2 wide: some millimetres."""


@dataclass(frozen=True)
class VLAConfig:
    """What is built on a backbone.

    Attributes:
        horizon: control steps a chunk.
        summary: width to which the readout is projected for the head.
        point_center_m: world position that the pointer calls 0.
        point_scale_m: distance from it that the pointer calls 1.
        head: which action head, and its settings.
        still: those of `POINTS` that stay where they are while the words stay the same: all
            sightings of them count, see `VLA.hold`.
    """

    horizon: int = 5
    summary: int = 16
    point_center_m: tuple[float, float, float] = (1.3, 0.75, 0.5)
    point_scale_m: float = 0.2
    head: HeadConfig = field(default_factory=GaussianHeadConfig)
    still: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.still) - set(POINTS):
            raise ValueError(f"no points {sorted(unknown)}; there are {', '.join(POINTS)}")


@dataclass(frozen=True)
class Interface:
    """Sizes of what goes in and comes out.

    Attributes:
        cameras: pictures an observation.
        image_tokens: tokens a picture.
        proprio: numbers of proprioception.
        action: numbers a control step.
        prompt: tokens of pictures and words.
        shared: several robots have these sizes, the smaller ones with padding, and the model is
            told which numbers are real.
    """

    cameras: int
    image_tokens: int
    proprio: int
    action: int
    prompt: int
    shared: bool = False

    @classmethod
    def of(cls, processor: Processor) -> Interface:
        """What this processor gives and takes."""
        prompts, config = processor.prompts, processor.config
        cameras, tokens = processor.cameras, config.image_tokens_per_camera
        # Two towers have their picture tokens beside the text instead of in it.
        beside = cameras * tokens if prompts.image_token_id is None else 0
        length, sizes = prompts.length + beside, (processor.proprio_dim, processor.action_dim)
        return cls(cameras, tokens, *sizes, length, config.is_shared)


class VLA(nn.Module):
    """A policy network from pictures, words and proprioception to chunks of actions.

    Args:
        backbone: gives hidden states of pictures and words.
        interface: sizes of inputs and outputs.
        config: sizes of what is built on the backbone.
    """

    def __init__(self, backbone: Backbone, interface: Interface, config: VLAConfig):
        super().__init__()
        self.config, self.interface = config, interface
        self.backbone = backbone
        self.pointer = self._make_pointer()
        self.actor = self._make_actor()

    def _make_pointer(self) -> Pointer:
        sizes = self.interface
        return Pointer(self.backbone.width, sizes.cameras, sizes.image_tokens, sizes.proprio)

    def _make_actor(self) -> Actor:
        config, sizes = self.config, self.interface
        return Actor(
            self.backbone.width,
            sizes.prompt,
            sizes.proprio,
            config.summary,
            config.horizon,
            sizes.action,
            config.head,
            sizes.shared,
        )

    def replace_actor(self, horizon: int, head: HeadConfig) -> None:
        """Put an untrained actor in the place of the present one, unless it is of this kind."""
        config = replace(self.config, horizon=horizon, head=head)
        if config != self.config:
            device = next(self.actor.parameters()).device
            self.config = config
            self.actor = self._make_actor().to(device)

    def replace_interface(self, interface: Interface, widen: bool = False) -> None:
        """Fit other robots: what their sizes decide starts untrained, all else stays.

        Args:
            interface: the new sizes.
            widen: the robot for which the model has learned to point is among them: it goes on
                pointing as it did, only the actor starts untrained.
        """
        if interface == self.interface:
            return
        self.interface, old = interface, self.pointer
        kept = old.state_dict()
        device = next(old.parameters()).device
        self.pointer = self._make_pointer().to(device)
        if widen:
            self.pointer.take_wider(old)
        else:
            fresh = self.pointer.state_dict()
            fitting = {name: w for name, w in kept.items() if w.shape == fresh[name].shape}
            self.pointer.load_state_dict(fresh | fitting)
        self.actor = self._make_actor().to(device)

    @property
    def context_dim(self) -> int:
        """Numbers of a context."""
        return sum(self.actor.split)

    def perception_parameters(self) -> list[nn.Parameter]:
        """What trains of backbone and pointer: all but what the backbone's tuning froze."""
        every = (*self.backbone.parameters(), *self.pointer.parameters())
        return [parameter for parameter in every if parameter.requires_grad]

    def point(self, inputs: ModelInputs) -> tuple[Pointing, Hidden]:
        """Where things are, and all hidden states."""
        hidden: Hidden = self.backbone(inputs)
        seen = inputs.present[:, : self.interface.cameras] if self.interface.shared else None
        queries = hidden.readout[:, :-1]
        return self.pointer(queries, hidden.pictures, inputs.proprio, seen), hidden

    def encode(self, inputs: ModelInputs) -> Tensor:
        """Contexts float32 [n, context_dim], see `Actor.pack`."""
        pointing, hidden = self.point(inputs)
        return self.actor.pack(
            hidden.readout[:, -1],
            pointing.world,
            pointing.spread,
            inputs.proprio,
            inputs.present[:, self.interface.cameras :],
            hidden.prompt,
            hidden.mask,
        )

    def hold(self, context: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Put what has been seen so far of the `still` points into a context.

        A thing may be hidden behind the hand for a while. What stands still is the mean of all its
        sightings, each by the inverse of its variance in the pictures: what Kalman's filter (1960,
        doi:10.1115/1.3662552) makes of a constant.

        Args:
            context: of the present observations, [n, context_dim].
            seen: float32 [n, still, 4], summed weights and weighted sums of places; 0 at first.

        Returns:
            The context, and what has been seen with the present sightings.
        """
        if not self.config.still:
            return context, seen
        which = [POINTS.index(name) for name in self.config.still]
        points = self.actor.points(context).clone()
        weight = 1 / (_SHARP**2 + self.actor.spread(context)[:, which, None].square())
        seen = seen + torch.cat([weight, weight * points[:, which]], -1)
        points[:, which] = seen[..., 1:] / seen[..., :1]
        return self.actor.replace_points(context, points), seen

    def sightings(self, rows: int) -> Sightings:
        """Nothing seen so far by so many robots."""
        return Sightings(rows, len(self.config.still), next(self.parameters()).device)

    def points_m(self, context: Tensor) -> Tensor:
        """Where the `POINTS` are thought to be: [n, POINTS, 3], world, metres."""
        center = torch.tensor(self.config.point_center_m, device=context.device)
        return self.actor.points(context) * self.config.point_scale_m + center

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to build the same architecture: plain data for JSON."""
        return {
            "vla": {**asdict(self.config), "head": head_to_dict(self.config.head)},
            "interface": asdict(self.interface),
            "backbone": self.backbone.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VLA:
        """An untrained model of the architecture that `to_dict` described."""
        fields = dict(data["vla"])
        fields["head"] = head_from_dict(fields["head"])
        for name in ("point_center_m", "still"):
            fields[name] = tuple(fields.get(name, ()))
        backbone = backbone_from_dict(data["backbone"])
        return cls(backbone, Interface(**data["interface"]), VLAConfig(**fields))
