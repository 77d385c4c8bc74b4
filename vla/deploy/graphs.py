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
from vla.model.heads.base import ActionHead, HeadInputs
from vla.model.heads.flow import FlowHead
from vla.policy import VLAPolicy
from vla.processing.language_tower import LanguageTower
from vla.processing.model_inputs import ModelInputs
from vla.processing.prompts import EmbeddedPrompts
from vla.processing.tower_prompts import TowerPrompts

Tensors = dict[str, Tensor]

# What `encode` reads of an instruction: the mask second.
_OWN_WORDS, _TOWER_WORDS = ("input_ids", "attention_mask"), ("words", "attention_mask")


class Graph(NamedTuple):
    """A module to export.

    Attributes:
        module: takes the inputs below in order.
        inputs: name → example with two rows.
        outputs: names of what it returns.
        dynamic: name of an input → axes whose sizes differ between calls, beside rows.
        alike: inputs without rows.
        has_gradients: its forward pass computes a gradient.
    """

    module: nn.Module
    inputs: Tensors
    outputs: tuple[str, ...]
    dynamic: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  never changed
    alike: tuple[str, ...] = ()
    has_gradients: bool = False


class Chain(NamedTuple):
    """A graph that does one thing again and again, exported once.

    Attributes:
        begin: gives what the first step takes under `at`, and may give more for every step.
        step: takes `at` and `time`, and gives under `after` the next `at`.
        times: of the steps, float32 [steps].
        finish: takes the last `at`.
    """

    begin: Graph
    step: Graph
    times: Tensor
    finish: Graph


def graphs_of(policy: VLAPolicy) -> dict[str, Graph | Chain]:
    """Everything to export of a policy with the embedded model, by name; `encode` comes first."""
    encode = _encode_graph(policy)
    with torch.no_grad():
        given = encode.module(*encode.inputs.values())
    encoded = dict(zip(encode.outputs, given, strict=True))
    read = {name: encoded[name] for name in ("vector", "prompt", "prompt_mask") if name in encoded}
    head = policy.actor.head
    longer = _longer_prompts(policy, *(name for name in read if name != "vector"))
    if isinstance(head, AutoregressiveHead):
        graphs: dict[str, Graph | Chain] = {**_token_graphs(policy, head, read, longer)}
    elif isinstance(head, FlowHead):
        graphs = {**_flow_graphs(policy, head, read, longer)}
    else:
        graphs = {"act": Graph(_Act(policy, head), read, ("actions",), longer)}
    language = policy.processor.language
    words = {"words": _words_graph(language)} if isinstance(language, LanguageTower) else {}
    return {"encode": encode, **graphs, **words}


def _words_graph(tower: LanguageTower) -> Graph:
    """The language tower, which the runtime runs once for each instruction."""
    tokens = {"input_ids": torch.ones(2, 7, dtype=torch.int64)}
    return Graph(_Words(tower), tokens, ("words",), {"input_ids": (1,)})


class _Words(nn.Module):
    """See `LanguageTower.states`."""

    def __init__(self, tower: LanguageTower):
        super().__init__()
        self.model, self._tower = tower.model, tower

    def forward(self, input_ids: Tensor) -> Tensor:
        return self._tower.states(input_ids)


def _encode_graph(policy: VLAPolicy) -> Graph:
    spec, texts = policy.spec, policy.processor.prompts.texts(["", ""])
    images = {
        f"image.{camera.name}": torch.zeros(2, camera.height, camera.width, 3, dtype=torch.uint8)
        for camera in spec.cameras
    }
    memory, output = {}, ()
    if points := len(policy.model.config.points.static):
        # Ones: the weights by which a sum is divided are never 0 behind an observation.
        memory, output = {"state.evidence": torch.ones(2, points, 4)}, ("next.evidence",)
    numbers = {"proprio": torch.zeros(2, spec.proprio.dim)}
    prompt = ("prompt", "prompt_mask") if policy.actor.head.attends else ()
    # What else a pretrained model reads of a prompt follows from these two.
    is_tower = isinstance(policy.processor.prompts, TowerPrompts)
    words = {name: texts[name] for name in (_TOWER_WORDS if is_tower else _OWN_WORDS)}
    inputs = {**images, **words, **numbers, **memory}
    outputs = ("vector", *prompt, *output)
    return Graph(_Encode(policy), inputs, outputs, _longer_prompts(policy, *words))


def _longer_prompts(policy: VLAPolicy, *names: str) -> dict[str, tuple[int, ...]]:
    """Inputs with a prompt's tokens in axis 1, if instructions can make prompts longer."""
    can = isinstance(policy.processor.prompts, EmbeddedPrompts | TowerPrompts)
    return dict.fromkeys(names, (1,)) if can else {}


class _Encode(nn.Module):
    """Images, words, proprioception and memory to what the head reads, and the memory."""

    present: Tensor

    def __init__(self, policy: VLAPolicy):
        super().__init__()
        self.network, self._processor = policy.network, policy.processor
        self.register_buffer("present", policy.processor.present, persistent=False)
        self._remembers = bool(policy.model.config.points.static)
        self._attends = policy.actor.head.attends
        self._is_tower = isinstance(policy.processor.prompts, TowerPrompts)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `_encode_graph`."""
        images = tensors[: len(self._processor.spec.cameras)]
        words, mask, proprio, *memory = tensors[len(images) :]
        pixels = self._processor.stack_images(images)
        # `shape` and not `len`, which would fix the number of rows in the exported graph.
        present = self.present.expand(proprio.shape[0], -1)
        # A tower's tokens were for the tower alone: what is read here are its hidden states.
        extra = {"words": words} if self._is_tower else {}
        inputs = ModelInputs(pixels, mask if extra else words, mask, proprio, present, extra)
        # Without static points nobody reads the memory, and the graph has none.
        evidence = memory[0] if self._remembers else proprio.new_zeros(0)
        features, evidence = self.network.fused_features(inputs, evidence)
        read = self.network.model.actor.head_inputs(features)
        prompt = (read.prompt, read.prompt_mask) if self._attends else ()
        return read.vector, *prompt, *((evidence,) if self._remembers else ())


class _Head[H: ActionHead](nn.Module):
    """A part of a network behind `_Encode`; its arguments are the graph's inputs in order."""

    action_mask: Tensor | None

    def __init__(self, policy: VLAPolicy, head: H):
        super().__init__()
        self.network, self.head = policy.network, head
        self.bound = policy.actor.action_bound
        dim = policy.processor.action_dim
        mask = policy.processor.present[-dim:] if policy.actor.shared else None
        self.register_buffer("action_mask", mask, persistent=False)

    def read(self, vector: Tensor, *prompt: Tensor) -> HeadInputs:
        """The outputs of `_Encode` as the head takes them."""
        count = vector.shape[0]
        # A head that does not attend gets no tokens, as in `VLA.features`.
        none = vector.new_zeros(count, 0, 1), vector.new_zeros(count, 0, dtype=torch.bool)
        tokens, mask = prompt or none
        action_mask = None if self.action_mask is None else self.action_mask.expand(count, -1)
        return HeadInputs(vector, tokens, mask, action_mask)

    def command(self, chunk: Tensor) -> Tensor:
        """The head's chunk in [-1, 1] in physical units, clipped to the contract's limits."""
        return self.network.limits(self.network.action.inverse(chunk * self.bound))


class _Act(_Head[ActionHead]):
    """The greedy chunk, physical [n, chunk_length, action.dim]."""

    def forward(self, *read: Tensor) -> Tensor:
        return self.command(self.head.act(self.read(*read)))


def _token_graphs(
    policy: VLAPolicy, head: AutoregressiveHead, read: Tensors, longer: dict[str, tuple[int, ...]]
) -> dict[str, Graph]:
    begun, whole = (torch.zeros(2, count, dtype=torch.int64) for count in (2, head.length))
    step = Graph(
        _Step(policy, head), {"tokens": begun, **read}, ("token",), {"tokens": (1,), **longer}
    )
    return {"step": step, "decode": Graph(_Decode(policy, head), {"tokens": whole}, ("actions",))}


class _Step(_Head[AutoregressiveHead]):
    """The greedy token int64 [n] after int64 [n, t]; negative where the chunk has ended."""

    def forward(self, tokens: Tensor, *read: Tensor) -> Tensor:
        return self.head.next_token(self.read(*read), tokens)


class _Decode(_Head[AutoregressiveHead]):
    """The chunk that all tokens int64 [n, length] stand for, physical."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.command(self.head.actions(tokens))


def _flow_graphs(
    policy: VLAPolicy, head: FlowHead, read: Tensors, longer: dict[str, tuple[int, ...]]
) -> dict[str, Chain]:
    vector = {"vector": read["vector"]}
    at = {"at": torch.zeros(2, *head.shape)}
    time = {"time": torch.tensor(0.5)}
    wanted = {"target": torch.zeros(2, policy.chunk_length, policy.spec.action.dim)}
    given = {"wanted": torch.zeros(2, *head.shape), "weight": torch.zeros(2, head.shape[0])}
    finish = Graph(_Finish(policy, head), at, ("actions",))
    step = Graph(
        _FlowStep(policy, head), {**at, **time, **read}, ("after",), longer, alike=("time",)
    )
    guided = Graph(
        _GuidedStep(policy, head),
        {**at, **time, **given, **read},
        ("after",),
        longer,
        alike=("time",),
        has_gradients=True,
    )
    begin = Graph(_Begin(policy, head), vector, ("at",))
    aimed = Graph(_BeginAimed(policy, head), {**wanted, **vector}, ("at", "wanted"))
    times = head.times(read["vector"])
    return {
        "act": Chain(begin, step, times, finish),
        "inpaint": Chain(aimed, guided, times, finish),
    }


class _Begin(_Head[FlowHead]):
    """Where the flow starts."""

    def forward(self, vector: Tensor) -> Tensor:
        return self.head.start(self.read(vector))


class _BeginAimed(_Head[FlowHead]):
    """Where the flow starts, and the physical target as the head takes it."""

    def forward(self, target: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.start(self.read(vector)), self.network.action(target) / self.bound


class _FlowStep(_Head[FlowHead]):
    """One step of the flow."""

    def forward(self, at: Tensor, time: Tensor, *read: Tensor) -> Tensor:
        return self.head.step(self.read(*read), at, time)


class _GuidedStep(_Head[FlowHead]):
    """One step of the flow towards a target."""

    def forward(self, *tensors: Tensor) -> Tensor:
        at, time, wanted, weight, *read = tensors
        return self.head.guided_step(self.read(*read), at, time, wanted, weight)


class _Finish(_Head[FlowHead]):
    """The flow's end as a physical chunk."""

    def forward(self, at: Tensor) -> Tensor:
        return self.command(at.clamp(-1, 1))
