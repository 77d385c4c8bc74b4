"""A trained model as a `Policy`: observations in, action chunks in physical units out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.checkpoint.folder import Checkpoint, latest_complete, load_checkpoint, save_checkpoint
from vla.checkpoint.model_card import model_card
from vla.contract import ObservationBatch, RobotSpec
from vla.lerobot_plugin.description import describe_pipelines, describe_policy
from vla.model.backbone import BackboneConfig
from vla.model.registry import load_pretrained
from vla.model.vla import VLA, Interface, VLAConfig
from vla.processing.embodiments import Embodiment, Embodiments, fit_sizes
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor, ProcessorConfig, common_size_px


class VLAPolicy:
    """Greedy policy of a vision-language-action model.

    Args:
        model: the network; it is put into evaluation mode at every decision.
        conversions: its processor, which brings the contract; or those of several robots.
        embodiment: which of the robots it controls; see `Embodiments.choose`.

    Attributes:
        embodiments: all robots that the model can control, and that a checkpoint holds.
        processor: of the robot that this policy controls.
        spec: that robot's contract.

    Raises:
        ValueError: the processor gives something else than the model takes, or several robots and
            none of them chosen.
    """

    def __init__(
        self,
        model: VLA,
        conversions: Processor | Embodiments,
        embodiment: str | RobotSpec | None = None,
    ):
        if isinstance(conversions, Processor):
            conversions = Embodiments.of(conversions)
        for processor in conversions.processors.values():
            if (given := Interface.of(processor)) != model.interface:
                raise ValueError(f"the model takes {model.interface}, the processor gives {given}")
        self.model = model
        self.embodiments = conversions
        self.processor = conversions[conversions.choose(embodiment)]
        self.spec = self.processor.spec
        self._decide: Callable[[ModelInputs, Tensor], tuple[Tensor, Tensor]] = self._chunk
        self._sightings = model.sightings(0)

    def embodied(self, embodiment: str | RobotSpec) -> VLAPolicy:
        """The same model in control of another of its robots; see `Embodiments.choose`."""
        return VLAPolicy(self.model, self.embodiments, embodiment)

    def compile(self) -> None:
        """Compile what `act` computes, for CUDA into graphs; the first decision takes minutes.

        Apart from rounding its chunks stay the same, and every size of batch is compiled anew.
        """
        # For one observation the calls count as much as the products: graphs, or C++ that calls.
        if self.device.type == "cuda":
            self._decide = torch.compile(self._chunk, mode="reduce-overhead")
        else:
            self._decide = torch.compile(self._chunk, options={"cpp_wrapper": True})

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    @property
    def horizon(self) -> int:
        """Control steps a chunk."""
        return self.model.config.horizon

    def reset(self, indices: Sequence[int] | None = None) -> None:
        """Forget where still points were seen in these rows, or in all; see `VLA.hold`."""
        self._sightings.forget(range(len(self._sightings)) if indices is None else indices)

    @torch.no_grad()
    def encode(self, observation: ObservationBatch, remember: bool = True) -> Tensor:
        """Context of every observation, float32 [n, context_dim].

        Args:
            observation: one row a robot, always in the same order.
            remember: these are decided in, so they count among what has been seen.
        """
        self.model.eval()
        inputs = self.processor.encode_observation(observation).to(self.device)
        rows = self._rows(observation)
        seen = self._sightings.of(rows, observation.instructions)
        held, seen = self.model.hold(self.model.encode(inputs), seen)
        if remember:
            self._sightings.keep(rows, seen)
        return held

    @torch.no_grad()
    def act(self, observation: ObservationBatch) -> Tensor:
        """The greedy chunk, float32 [n, horizon, action.dim]."""
        self.model.eval()
        inputs = self.processor.encode_observation(observation).to(self.device)
        rows = self._rows(observation)
        chunk, seen = self._decide(inputs, self._sightings.of(rows, observation.instructions))
        self._sightings.keep(rows, seen)
        return self.processor.decode_actions(chunk).to(observation.proprio.device)

    def _chunk(self, inputs: ModelInputs, seen: Tensor) -> tuple[Tensor, Tensor]:
        held, seen = self.model.hold(self.model.encode(inputs), seen)
        return self.model.actor.act(held), seen

    def _rows(self, observation: ObservationBatch) -> range:
        """Of what has been seen; another number of robots are other robots."""
        rows = range(len(observation.instructions))
        if len(rows) != len(self._sightings):
            self._sightings = self.model.sightings(len(rows))
        return rows

    def save(
        self,
        folder: Path,
        training_state: dict[str, Any] | None = None,
        command: str | None = None,
        weights: dict[str, Tensor] | None = None,
        lerobot_config: dict[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint with its model card, which LeRobot can read too.

        Args:
            folder: where; replaces a checkpoint of that name.
            training_state: what a training needs to go on exactly.
            command: the shell line that trained it, for the card.
            weights: the model's, where a distributed training has gathered them.
            lerobot_config: LeRobot's settings, where it trains; it then writes its pipelines.
        """
        config = self.model.to_dict()
        specs = {name: p.spec for name, p in self.embodiments.processors.items()}
        return save_checkpoint(
            folder,
            model_config=lerobot_config | config
            if lerobot_config is not None
            else describe_policy(specs, config),
            weights=weights or self.model.state_dict(),
            processor=self.embodiments,
            card=model_card(config, specs, command),
            training_state=training_state,
            documents=describe_pipelines() if lerobot_config is None else None,
        )

    def resume(self, run: Path) -> dict[str, Any] | None:
        """Take the weights of a run's newest complete checkpoint and return its training state.

        Returns:
            None where the run has no checkpoint yet.

        Raises:
            ValueError: the checkpoint holds no training state, or is of other robots.
        """
        if (found := latest_complete(run)) is None:
            return None
        checkpoint = load_checkpoint(found, with_training_state=True)
        if checkpoint.training_state is None:
            raise ValueError(f"{found} holds no training state: train into another folder")
        if (theirs := [*checkpoint.embodiments]) != (ours := [*self.embodiments]):
            raise ValueError(f"{found} is of the robots {theirs}, not {ours}: train elsewhere")
        self.model.load_state_dict(checkpoint.weights)
        return checkpoint.training_state


def vlm_policy(
    name: str,
    backbone: BackboneConfig,
    robots: Mapping[str, Embodiment],
    model: VLAConfig,
    processor: ProcessorConfig,
) -> VLAPolicy:
    """A policy on a pretrained model, which has yet to learn to point and to act.

    Args:
        name: hub id, or folder written by `save_pretrained`.
        backbone: how the pretrained model is used.
        robots: what it is to control, by name; the policy returned is that of the first.
        model: what is built on the pretrained model.
        processor: conversions; what the pretrained model decides is overridden.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is of no architecture that can be used, or its picture tokens are no square.
    """
    specs = [robot.spec for robot in robots.values()]
    size_px = common_size_px(specs, processor)
    cameras = max(processor.camera_slots or 0, *(len(spec.cameras) for spec in specs))
    start = load_pretrained(name, backbone, cameras, size_px, processor.max_text_tokens)
    config = replace(
        fit_sizes(processor, specs),
        image_tokens_per_camera=start.image_tokens,
        max_text_tokens=start.max_text_tokens,
    )
    conversions = Embodiments.make(robots, start.processor, config)
    first = next(iter(robots))
    interface = Interface.of(conversions[first])
    return VLAPolicy(VLA(start.backbone, interface, model), conversions, first)


def load_model(checkpoint: Checkpoint) -> VLA:
    """The network of a checkpoint, on the CPU.

    Raises:
        RuntimeError: the weights do not fit the architecture; the message names them.
    """
    model = VLA.from_dict(checkpoint.model_config)
    model.load_state_dict(checkpoint.weights)
    return model


def load_policy(
    folder: Path | str,
    device: torch.device | str = "cpu",
    embodiment: str | RobotSpec | None = None,
) -> VLAPolicy:
    """Read a checkpoint strictly: every weight present, none surplus.

    Args:
        folder: the checkpoint.
        device: where to compute.
        embodiment: where it controls several robots, the name of one, or the contract of what it
            meets, which has to fit exactly one.

    Raises:
        CheckpointError: missing, damaged, or of another format.
        ContractMismatchError: the contract fits none of several robots, or more than one.
        ValueError: no embodiment of that name, or none named where there are several.
        RuntimeError: the weights do not fit the architecture; the message names them.
    """
    checkpoint = load_checkpoint(folder)
    model = load_model(checkpoint)
    return VLAPolicy(model.to(device), checkpoint.embodiments, embodiment)
