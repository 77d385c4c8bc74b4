"""The modules that are exported: between them they compute a decision, in physical units.

`encode` turns an observation into what the head reads and the memory; what follows it is `act`, or
`step` for every token and then `decode`. `inpaint` is for real-time chunking. They are the same
modules that decide in torch, cut where the runtime needs numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla.model.heads.autoregressive import AutoregressiveHead
from vla.model.heads.base import HeadInputs, InpaintingHead
from vla.policy import VLAPolicy
from vla.processing.model_inputs import ModelInputs


class Graph(NamedTuple):
    """A module to export.

    Attributes:
        module: takes the arguments below in order.
        inputs: name → example with two rows; for images and numbers of one robot.
        outputs: names of what it returns.
        dynamic: name of an input → axes whose sizes differ between calls, beside rows.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, tuple[int, ...]]


class _Encode(nn.Module):
    """Images, words, proprioception and memory to what the head reads, and the memory."""

    present: Tensor

    def __init__(self, policy: VLAPolicy):
        super().__init__()
        self.network, self._processor = policy.network, policy.processor
        self.register_buffer("present", policy.processor.present, persistent=False)
        self._remembers = bool(policy.model.config.static_points)
        self._attends = policy.actor.head.attends

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `encode_graph`."""
        images = tensors[: len(self._processor.spec.cameras)]
        input_ids, mask, proprio, *memory = tensors[len(images) :]
        pixels = self._processor.stack_images(images)
        # `shape` and not `len`, which would fix the number of rows in the exported graph.
        present = self.present.expand(proprio.shape[0], -1)
        inputs = ModelInputs(pixels, input_ids, mask, proprio, present)
        # Without static points nobody reads the memory, and the graph has none.
        evidence = memory[0] if self._remembers else proprio.new_zeros(0)
        features, evidence = self.network.fused_features(inputs, evidence)
        read = self.network.model.actor.head_inputs(features)
        prompt = (read.prompt, read.prompt_mask) if self._attends else ()
        return read.vector, *prompt, *((evidence,) if self._remembers else ())


class _Head(nn.Module):
    """The part of a network behind `_Encode`."""

    action_mask: Tensor | None

    def __init__(self, policy: VLAPolicy):
        super().__init__()
        self.network = policy.network
        dim = policy.processor.action_dim
        shared = policy.actor.shared
        mask = policy.processor.present[-dim:] if shared else None
        self.register_buffer("action_mask", mask, persistent=False)

    def read(self, vector: Tensor, *prompt: Tensor) -> HeadInputs:
        """The outputs of `_Encode` as the head takes them."""
        count = vector.shape[0]
        # A head that does not attend gets no tokens, as in `VLA.features`.
        tokens, mask = prompt or (
            vector.new_zeros(count, 0, 1),
            vector.new_zeros(count, 0, dtype=torch.bool),
        )
        action_mask = None if self.action_mask is None else self.action_mask.expand(count, -1)
        return HeadInputs(vector, tokens, mask, action_mask)

    def command(self, chunk: Tensor) -> Tensor:
        """The head's chunk in [-1, 1] in physical units, clipped to the contract's limits."""
        network = self.network
        return network.limits(network.action.inverse(chunk * network.model.actor.action_bound))


class _Act(_Head):
    def forward(self, *read: Tensor) -> Tensor:
        """The greedy chunk, physical [n, chunk_length, action.dim]."""
        return self.command(self.network.model.actor.head.act(self.read(*read)))


class _Inpaint(_Head):
    def forward(self, *tensors: Tensor) -> Tensor:
        """As `InpaintingHead.inpaint`, target and result in physical units."""
        target, weight, *read = tensors
        head = self.network.model.actor.head
        assert isinstance(head, InpaintingHead)
        bound = self.network.model.actor.action_bound
        wanted = self.network.action(target) / bound
        return self.command(head.inpaint(self.read(*read), wanted, weight))


class _Step(_Head):
    def forward(self, *tensors: Tensor) -> Tensor:
        """The greedy token int64 [n] after int64 [n, t]; negative where the chunk has ended."""
        tokens, *read = tensors
        head = self.network.model.actor.head
        assert isinstance(head, AutoregressiveHead)
        return head.next_token(self.read(*read), tokens)


class _Decode(_Head):
    def forward(self, *tensors: Tensor) -> Tensor:
        """The chunk that all tokens int64 [n, length] stand for, physical."""
        head = self.network.model.actor.head
        assert isinstance(head, AutoregressiveHead)
        return self.command(head.actions(*tensors))


def graphs_of(policy: VLAPolicy) -> dict[str, Graph]:
    """Everything to export of a policy with the embedded model, by name; `encode` comes first."""
    encode = _encode_graph(policy)
    with torch.no_grad():
        given = encode.module(*encode.inputs.values())
    encoded = dict(zip(encode.outputs, given, strict=True))
    read = {name: encoded[name] for name in ("vector", "prompt", "prompt_mask") if name in encoded}
    graphs = {"encode": encode}
    head, shape = policy.actor.head, (policy.chunk_length, policy.spec.action.dim)
    if isinstance(head, AutoregressiveHead):
        begun = {"tokens": torch.zeros(2, 3, dtype=torch.int64)}
        whole = {"tokens": torch.zeros(2, head.length, dtype=torch.int64)}
        graphs["step"] = Graph(_Step(policy), begun | read, ("token",), {"tokens": (1,)})
        graphs["decode"] = Graph(_Decode(policy), whole, ("actions",), {})
    else:
        graphs["act"] = Graph(_Act(policy), read, ("actions",), {})
    if isinstance(head, InpaintingHead):
        wanted = {"target": torch.zeros(2, *shape), "weight": torch.zeros(2, shape[0])}
        graphs["inpaint"] = Graph(_Inpaint(policy), wanted | read, ("actions",), {})
    return graphs


def _encode_graph(policy: VLAPolicy) -> Graph:
    spec, prompts = policy.spec, policy.processor.prompts
    texts = prompts.texts(["", ""])
    images = {
        f"image.{camera.name}": torch.zeros(2, camera.height, camera.width, 3, dtype=torch.uint8)
        for camera in spec.cameras
    }
    memory, output = {}, ()
    if points := len(policy.model.config.static_points):
        # Ones: the weights by which a sum is divided are never 0 behind an observation.
        memory, output = {"state.evidence": torch.ones(2, points, 4)}, ("next.evidence",)
    inputs = {
        **images,
        "input_ids": texts["input_ids"],
        "attention_mask": texts["attention_mask"],
        "proprio": torch.zeros(2, spec.proprio.dim),
        **memory,
    }
    prompt = ("prompt", "prompt_mask") if policy.actor.head.attends else ()
    return Graph(_Encode(policy), inputs, ("vector", *prompt, *output), {})
