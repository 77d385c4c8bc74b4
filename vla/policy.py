"""A trained model as a `Policy`: observations in, action chunks in physical units out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.checkpoint.folder import Checkpoint, load_checkpoint, save_checkpoint
from vla.checkpoint.ledger import Ledger
from vla.checkpoint.lerobot_files import describe_pipelines, describe_policy
from vla.checkpoint.model_card import model_card
from vla.contract import ObservationBatch, RobotSpec
from vla.model.actor import Actor
from vla.model.backbone import BackboneConfig
from vla.model.features import Features
from vla.model.network import RobotNetwork
from vla.model.point_filter import PolicyState
from vla.model.registry import load_pretrained
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.processing.embodiments import Embodiment, Embodiments, fit_sizes
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor, ProcessorConfig, common_size_px


class VLAPolicy:
    """Greedy policy of a vision-language-action model.

    `forward` is a function of an observation and an explicit memory. `act` and `reset` are the
    `Policy` protocol on top of it, for callers that let the policy keep the memory.

    Args:
        model: the network; it is put into evaluation mode at every decision.
        conversions: its processor, which holds the robot's contract; or those of several robots.
        embodiment: which of the robots it controls; see `Embodiments.choose`.
        ledger: what was spent on the weights so far.

    Attributes:
        embodiments: all robots that the model can control, and that a checkpoint holds.
        processor: of the robot that this policy controls.
        network: the model in that robot's units.
        spec: that robot's contract.
        ledger: what was spent on the weights; trainers add to it, checkpoints store it.

    Raises:
        ValueError: the processor's sizes are not the model's, or there are several robots and none
            is chosen.
    """

    def __init__(
        self,
        model: VLA,
        conversions: Processor | Embodiments,
        embodiment: str | RobotSpec | None = None,
        ledger: Ledger | None = None,
    ):
        if isinstance(conversions, Processor):
            conversions = Embodiments.of(conversions)
        # One network serves all robots, so every processor has to give the same padded sizes.
        for processor in conversions.processors.values():
            if (given := ModelDims.of(processor)) != model.dims:
                raise ValueError(f"the model takes {model.dims}, the processor gives {given}")
        self.model = model
        self.embodiments = conversions
        self.processor = conversions[conversions.choose(embodiment)]
        self.network = RobotNetwork(model, self.processor)
        self.spec = self.processor.spec
        self.ledger = ledger or Ledger()
        # What `forward` calls. `compile` replaces it; trainings go on with the module itself.
        self._network: Callable[[ModelInputs, Tensor], tuple[Tensor, Tensor]] = self.network
        # No rows yet: the first observation says how many robots there are.
        self._state = self.initial_state(0)

    def embodied(self, embodiment: str | RobotSpec) -> VLAPolicy:
        """The same model in control of another of its robots; see `Embodiments.choose`."""
        return VLAPolicy(self.model, self.embodiments, embodiment, self.ledger)

    def compile(self) -> None:
        """Compile what `forward` computes, for CUDA into graphs; the first decision takes minutes.

        Apart from rounding its chunks stay the same. Each batch size is compiled separately.
        """
        # At batch 1 the overhead of each call costs as much as the arithmetic: CUDA graphs, or a
        # C++ wrapper in the place of Python, remove it.
        if self.device.type == "cuda":
            self._network = torch.compile(self.network, mode="reduce-overhead")
        else:
            self._network = torch.compile(self.network, options={"cpp_wrapper": True})

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    @property
    def actor(self) -> Actor:
        """Features to actions; with frozen perception the only part that is trained."""
        return self.model.actor

    @property
    def chunk_length(self) -> int:
        """Control steps a chunk."""
        return self.model.config.chunk_length

    def initial_state(self, rows: int) -> PolicyState:
        """The memory of this many robots whose episodes begin."""
        return PolicyState.initial(rows, len(self.model.config.points.static), self.device)

    @torch.no_grad()
    def features(
        self, observation: ObservationBatch, state: PolicyState
    ) -> tuple[Features, PolicyState]:
        """What the actor reads, and the memory with this observation; args as `forward`."""
        inputs, state = self._inputs(observation, state)
        # Not `_network`: that is compiled as a whole, and gives chunks instead of features.
        features, evidence = self.network.fused_features(inputs, state.evidence)
        return features, replace(state, evidence=evidence)

    @torch.no_grad()
    def forward(
        self, observation: ObservationBatch, state: PolicyState
    ) -> tuple[Tensor, PolicyState]:
        """The greedy chunk, within the contract's limits, and the memory with this observation.

        Args:
            observation: one row a robot.
            state: memory of the same rows; `initial_state` at first, `state.reset(rows)` where
                episodes begin.

        Returns:
            Float32 [n, chunk_length, action.dim] in the contract's units on the observation's
            device, and the memory for the next decision.

        Raises:
            ContractMismatchError: the observation does not follow the contract, or a command is
                not finite.
        """
        inputs, state = self._inputs(observation, state)
        chunk, evidence = self._network(inputs, state.evidence)
        # The network has clipped already; this refuses NaN, which passes through clipping.
        chunk = self.processor.limits.enforce(chunk).to(observation.proprio.device)
        return chunk, replace(state, evidence=evidence.clone())  # graphs reuse their outputs

    def encode(self, chunk: Tensor) -> Tensor:
        """Physical [n, chunk_length, action.dim] to normalised; the inverse of `decode`."""
        return self.processor.encode_actions(chunk)

    def decode(self, chunk: Tensor) -> Tensor:
        """Normalised [n, chunk_length, action] to physical, within limits; NaN is refused."""
        return self.processor.decode_actions(chunk)

    def reset(self, indices: Sequence[int] | None = None) -> None:
        """New episodes begin in these rows, or in all."""
        self._state = self._state.reset(range(len(self._state)) if indices is None else indices)

    def observe(self, observation: ObservationBatch, remember: bool = True) -> Features:
        """What the actor reads, from the memory that `act` keeps.

        Args:
            observation: one row a robot, always in the same order.
            remember: add this observation to the memory, as `act` does.
        """
        features, state = self.features(observation, self._rows(observation))
        if remember:
            self._keep(state)
        return features

    def act(self, observation: ObservationBatch) -> Tensor:
        """The greedy chunk, float32 [n, chunk_length, action.dim]; see `forward`."""
        chunk, state = self.forward(observation, self._rows(observation))
        self._keep(state)
        return chunk

    def _rows(self, observation: ObservationBatch) -> PolicyState:
        """The memory of the observation's rows; further rows stay as they are."""
        # A smaller batch is of the first rows alone: it must not erase the memory of the others.
        self._state = self._state.grow(len(observation))
        count = len(observation)
        return PolicyState(self._state.evidence[:count], self._state.instructions[:count])

    def _keep(self, state: PolicyState) -> None:
        count = len(state)
        self._state = PolicyState(
            torch.cat([state.evidence, self._state.evidence[count:]]),
            (*state.instructions, *self._state.instructions[count:]),
        )

    def _inputs(
        self, observation: ObservationBatch, state: PolicyState
    ) -> tuple[ModelInputs, PolicyState]:
        # A trainer may have left training mode on, and dropout must not act in a decision.
        self.model.eval()
        inputs = self.processor.encode_observation(observation).to(self.device)
        return inputs, state.follow(observation.instructions)

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
            training_state: what a trainer needs to resume exactly.
            command: the shell line that trained it, for the card.
            weights: the model's, where a distributed training has gathered them.
            lerobot_config: LeRobot's settings, where it trains; it then writes its pipelines.
        """
        config = self.model.to_dict()
        specs = {name: p.spec for name, p in self.embodiments.processors.items()}
        return save_checkpoint(
            folder,
            # The right side wins: the model is rebuilt from its own keys, whatever LeRobot wrote
            # there.
            model_config=lerobot_config | config
            if lerobot_config is not None
            else describe_policy(specs, config),
            weights=weights or self.model.state_dict(),
            processor=self.embodiments,
            card=model_card(config, specs, command),
            training_state=training_state,
            ledger=self.ledger.amounts,
            # After its own training LeRobot adds its pipelines; in all other cases we write them.
            documents=describe_pipelines() if lerobot_config is None else None,
        )

    def describe(self) -> dict[str, Any]:
        """What this policy is apart from its weights: plain data, compared when a run resumes."""
        return {
            **self.model.to_dict(),
            "embodiments": {
                name: {"contract": p.spec.to_dict(), **p.to_dict()}
                for name, p in self.embodiments.processors.items()
            },
        }

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a checkpoint of the same architecture, in place.

        Raises:
            CheckpointError: missing, incomplete, damaged, or of another format.
            RuntimeError: the weights do not fit the architecture; the message names them.
        """
        self.model.load_state_dict(load_checkpoint(folder).weights)


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
        processor: conversions; settings that the pretrained model determines are overridden.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its architecture is not supported, or its image tokens are no square.
    """
    specs = [robot.spec for robot in robots.values()]
    size_px = common_size_px(specs, processor)
    # Sizes are those of the largest robot: the others are padded up to it.
    cameras = max(processor.camera_slots or 0, *(len(spec.cameras) for spec in specs))
    readouts = len(model.points) + 1
    start = load_pretrained(name, backbone, cameras, size_px, processor.max_text_tokens, readouts)
    config = replace(
        fit_sizes(processor, specs),
        image_tokens_per_camera=start.image_tokens,
        max_text_tokens=start.max_text_tokens,
    )
    conversions = Embodiments.make(robots, start.processor, config)
    first = next(iter(robots))
    # Any robot will do, since they share the padded sizes.
    dims = ModelDims.of(conversions[first])
    return VLAPolicy(VLA(start.backbone, dims, model), conversions, first)


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
    bf16: bool = False,
) -> VLAPolicy:
    """Read a checkpoint strictly: every weight present, none surplus.

    Args:
        folder: the checkpoint.
        device: where to compute.
        embodiment: where it controls several robots, the name of one, or the contract of the
            present one, which has to match exactly one.
        bf16: run the backbone in bfloat16 where the device multiplies it natively.

    Raises:
        CheckpointError: missing, damaged, or of another format.
        ContractMismatchError: the contract fits none of several robots, or more than one.
        ValueError: no embodiment of that name, or none named where there are several.
        RuntimeError: the weights do not fit the architecture; the message names them.
    """
    checkpoint = load_checkpoint(folder)
    model = load_model(checkpoint)
    # A choice of this caller and not of the checkpoint: weights stay as they were saved.
    model.backbone.bf16 = bf16
    return VLAPolicy(model.to(device), checkpoint.embodiments, embodiment, checkpoint.ledger)
