"""The vision-language-action model: backbone, pointer and actor.

Between perception and the actor stand `Features`: the readout's hidden state, the points that the
pointer finds if the model knows any, proprioception and, for a head that attends to it, the
prompt's hidden states.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vla.model.actor import Actor
from vla.model.backbone import Backbone, Hidden, reduced_precision
from vla.model.features import Features
from vla.model.heads.base import HeadConfig
from vla.model.heads.gaussian import GaussianHeadConfig
from vla.model.heads.registry import head_from_dict, head_to_dict
from vla.model.point_filter import fuse_static_points
from vla.model.pointer import Pointer, Pointing
from vla.model.points import PointsConfig
from vla.model.registry import backbone_from_dict
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor
from vla.settings import require_numbers


@dataclass(frozen=True)
class VLAConfig:
    """What is built on a backbone.

    Attributes:
        chunk_length: control steps a chunk.
        readout_dim: width to which the readout is projected for the head.
        head: which action head, and its settings.
        points: which points it estimates; by default none.
        action_bound: largest magnitude of each normalised action dimension; empty for 1. `vla
            pretrain` sets it from the demonstrations.
    """

    chunk_length: int = 5
    readout_dim: int = 16
    head: HeadConfig = field(default_factory=GaussianHeadConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    action_bound: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("chunk_length", "readout_dim"))


@dataclass(frozen=True)
class ModelDims:
    """Sizes of what goes in and comes out.

    Attributes:
        cameras: images an observation.
        image_tokens: tokens an image.
        proprio: dimensions of proprioception.
        action: dimensions of a control step.
        prompt: tokens of images and words.
        shared: several robots have these sizes, the smaller ones with padding, and the model is
            given a mask of the dimensions that a robot has.
    """

    cameras: int
    image_tokens: int
    proprio: int
    action: int
    prompt: int
    shared: bool = False

    @classmethod
    def of(cls, processor: Processor) -> ModelDims:
        """What this processor gives and takes."""
        prompts, config = processor.prompts, processor.config
        cameras, tokens = processor.cameras, config.image_tokens_per_camera
        # Two towers have their image tokens beside the text instead of in it.
        beside = cameras * tokens if prompts.image_token_id is None else 0
        length, sizes = prompts.length + beside, (processor.proprio_dim, processor.action_dim)
        return cls(cameras, tokens, *sizes, length, config.is_shared)


class VLA(nn.Module):
    """A network from images, words and proprioception to chunks of normalised actions.

    Args:
        backbone: gives hidden states of images and words.
        dims: sizes of inputs and outputs.
        config: what is built on the backbone.

    Attributes:
        pointer: estimates the points; None where the model knows none.

    Raises:
        ValueError: the backbone has not one readout for each point and one for the actor.
    """

    def __init__(self, backbone: Backbone, dims: ModelDims, config: VLAConfig):
        super().__init__()
        if (given := len(backbone.readout)) != (needed := len(config.points) + 1):
            raise ValueError(
                f"{len(config.points)} points and the actor need {needed} readouts, the backbone "
                f"has {given}"
            )
        self.config, self.dims = config, dims
        self.backbone = backbone
        backbone.prompt_tokens = dims.prompt
        self.pointer = self._make_pointer()
        self.actor = self._make_actor()

    def _make_pointer(self) -> Pointer | None:
        dims, count = self.dims, len(self.config.points)
        if not count:
            return None
        tokens = self.backbone.placed_tokens(dims.image_tokens)
        return Pointer(count, self.backbone.width, dims.cameras, tokens, dims.proprio)

    def _make_actor(self) -> Actor:
        config, dims = self.config, self.dims
        return Actor(
            self.backbone.width,
            dims.proprio,
            config.readout_dim,
            config.chunk_length,
            dims.action,
            config.head,
            config.points,
            config.action_bound,
            dims.shared,
        )

    def replace_actor(self, chunks: Tensor, head: HeadConfig) -> None:
        """Put an untrained actor in the place of the present one, unless it is of this kind.

        Args:
            chunks: demonstrated actions [n, chunk_length, action], normalised; what the head has
                to be able to command, and what its settings are fitted to.
            head: which head, and its settings.
        """
        # The bound first: what the head fits (FAST its tokenizer) is fitted to chunks in [-1, 1].
        bound = _action_bound(chunks)
        fitted = head.fitted(chunks / torch.tensor(bound or 1.0))
        length = chunks.shape[1]
        config = replace(self.config, chunk_length=length, head=fitted, action_bound=bound)
        # An equal configuration keeps the weights, so that their training can continue.
        if config != self.config:
            device = next(self.actor.parameters()).device
            self.config = config
            self.actor = self._make_actor().to(device)

    def extend_head(self, head: HeadConfig) -> None:
        """Take other settings of the same head that add parts to it; all that it has stays.

        Raises:
            RuntimeError: they change the shape of what it has.
        """
        kept, device = self.actor.state_dict(), next(self.actor.parameters()).device
        self.config = replace(self.config, head=head)
        self.actor = self._make_actor().to(device)
        self.actor.load_state_dict(self.actor.state_dict() | kept)

    def average_static_points(self, names: Collection[str] | None) -> None:
        """Average these points over an episode; None for `target` if the model knows it.

        Raises:
            ValueError: a name that is none of the model's points.
        """
        points = self.config.points
        if names is None:
            names = {"target"} & {*points.names}
        self.config = replace(self.config, points=points.with_static(names))

    def replace_dims(self, dims: ModelDims) -> None:
        """Fit other sizes: the model points as it did, the actor starts untrained."""
        if dims == self.dims:
            return
        device, old = self.backbone.readout.device, self.pointer
        self.dims = dims
        self.backbone.prompt_tokens = dims.prompt
        self.pointer = self._make_pointer()
        if self.pointer is not None and old is not None:
            self.pointer.to(device).take_wider(old)
        # The bound is that of another robot's actions.
        self.config = replace(self.config, action_bound=())
        self.actor = self._make_actor().to(device)

    def drop_points(self) -> None:
        """Know no points from now on; the actor starts untrained."""
        if self.pointer is None:
            return
        self.config = replace(self.config, points=PointsConfig(), action_bound=())
        self.pointer = None
        self.backbone.keep_last_readout()
        self.actor = self._make_actor().to(self.backbone.readout.device)

    def drop_relative(self) -> None:
        """Read no relative positions from now on; the actor starts untrained if it did."""
        if not self.config.points.relative:
            return
        points = replace(self.config.points, relative=(), relative_gain=1.0)
        self.config = replace(self.config, points=points, action_bound=())
        self.actor = self._make_actor().to(self.backbone.readout.device)

    def perception_parameters(self) -> list[nn.Parameter]:
        """What trains of backbone and pointer: all but what the backbone's tuning froze."""
        parts = [self.backbone] if self.pointer is None else [self.backbone, self.pointer]
        return [weight for part in parts for weight in part.parameters() if weight.requires_grad]

    def point(self, inputs: ModelInputs, proprio: Tensor) -> tuple[Pointing | None, Hidden]:
        """Estimated positions of the points if the model knows any, and all hidden states.

        Args:
            inputs: of n observations.
            proprio: float32 [n, proprio], normalised and padded; `RobotNetwork` does that.
        """
        device = inputs.pixel_values.device
        # The backbone alone: positions and actions are computed in float32.
        with reduced_precision(device) if self.backbone.bf16 else nullcontext():
            hidden: Hidden = self.backbone(inputs)
        if self.pointer is None:
            return None, hidden
        # `present` is [n, cameras + proprio + action]: cameras first.
        camera_mask = inputs.present[:, : self.dims.cameras] if self.dims.shared else None
        queries = hidden.readout[:, :-1]  # [n, points, width]
        return self.pointer(queries, hidden.images, proprio, camera_mask), hidden

    def features(self, inputs: ModelInputs, proprio: Tensor) -> Features:
        """Features of n observations, each from its own images alone; args as `point`."""
        pointing, hidden = self.point(inputs, proprio)
        # The prompt of a large model is megabytes a frame: a head that does not attend gets none.
        tokens = slice(None) if self.actor.head.attends else slice(0)
        # `shape` and not `len`, which would fix the number of rows in an exported graph.
        count = proprio.shape[0]
        return Features(
            readout=hidden.readout[:, -1],  # those before it are the queries for points
            points=proprio.new_zeros(count, 0, 3) if pointing is None else pointing.world,
            localisation_std=proprio.new_zeros(count, 0)
            if pointing is None
            else pointing.localisation_std,
            proprio=proprio,
            dim_mask=inputs.present[:, self.dims.cameras :],
            prompt=hidden.prompt[:, tokens],
            prompt_mask=hidden.mask[:, tokens],
        )

    def fuse_static_points(self, features: Features, evidence: Tensor) -> tuple[Features, Tensor]:
        """Features whose static points are averages over the episode.

        Args:
            features: of the present observations.
            evidence: float32 [n, static, 4] of the episode so far, see `PolicyState`.

        Returns:
            The features, and the evidence with the present observations.
        """
        which = [*self.config.points.static]  # [static]
        if not which:
            return features, evidence
        points = features.points.clone()  # features are shared, never changed in place
        points[:, which], evidence = fuse_static_points(
            points[:, which], features.localisation_std[:, which], evidence
        )
        return replace(features, points=points), evidence

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to build the same architecture: plain data for JSON."""
        return {
            "vla": {**asdict(self.config), "head": head_to_dict(self.config.head)},
            "dims": asdict(self.dims),
            "backbone": self.backbone.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VLA:
        """An untrained model of the architecture that `to_dict` described."""
        fields = dict(data["vla"])
        fields["head"] = head_from_dict(fields["head"])
        fields["points"] = PointsConfig.from_dict(fields["points"])
        # JSON has no tuples, and `replace_actor` compares configurations.
        fields["action_bound"] = tuple(fields["action_bound"])
        backbone = backbone_from_dict(data["backbone"], len(fields["points"]) + 1)
        return cls(backbone, ModelDims(**data["dims"]), VLAConfig(**fields))


def _action_bound(chunks: Tensor) -> tuple[float, ...]:
    """Largest magnitude a dimension of [n, chunk_length, action]; empty where none exceeds 1."""
    largest = chunks.abs().amax((0, 1))
    if bool((largest <= 1.0 + 1e-4).all()):  # rounding of actions that lie on their limits
        return ()
    return tuple(largest.clamp_min(1.0).tolist())
