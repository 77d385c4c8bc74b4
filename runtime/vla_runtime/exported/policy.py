"""An exported policy: numpy in, numpy out, ONNX Runtime in between, and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vla_runtime.contract import ActionChunk, ContractMismatchError, Observation, RobotSpec
from vla_runtime.exported.folder import PolicyDescription, read_exported
from vla_runtime.exported.prompts import Prompts, WordStates

Arrays = Mapping[str, np.ndarray]
Provider = str | tuple[str, dict[str, str]]
"""Name of an execution provider of ONNX Runtime, or name and options."""


@dataclass(frozen=True)
class ExportedState:
    """A policy's memory; a value that goes into a decision and comes out of it.

    Attributes:
        tensors: by name, with one row.
        instruction: of the last decision; None where an episode begins.
    """

    tensors: Arrays
    instruction: str | None = None


class ExportedPolicy:
    """The policy in a folder that `vla export` wrote; an `InpaintingPolicy`.

    Args:
        folder: every file of it is compared with its hash first.
        threads: within one operator. One is fastest for small models beside a control loop: more
            wait for each other when the processor is busy.
        providers: of ONNX Runtime, in order of preference; all of them have to be there.

    Attributes:
        spec: the robot's contract.
        description: how the graphs become a policy.
        chunk_length: control steps a chunk.
        can_inpaint: whether `inpaint` works.

    Raises:
        ExportedFolderError: the folder is missing, damaged, or of another format.
        ValueError: a provider is not there.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 1,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
    ):
        parts = Parts.load(Path(folder), threads, providers)
        self.spec, self.description = parts.spec, parts.description
        self.chunk_length = self.description.chunk_length
        self.can_inpaint = "inpaint" in parts.graphs
        self._parts, self._graphs = parts, parts.graphs

    def initial_state(self) -> ExportedState:
        """The memory where an episode begins."""
        return ExportedState(
            {
                name: np.zeros((1, *tensor.shape), dtype=tensor.dtype)
                for name, tensor in self.description.state.items()
            }
        )

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, ExportedState]:
        """See `RobotPolicy.decide`.

        Raises:
            ContractMismatchError: the observation does not follow the contract, or the policy's
                commands are not finite.
            ValueError: the instruction cannot be read, see `Prompts.rows`.
        """
        encoded, state = self._encode(observation, state)
        if "act" in self._graphs:
            actions = self._graphs["act"](encoded)["actions"]
        else:
            actions = self._graphs["decode"]({"tokens": self._generate(encoded)})["actions"]
        return self._chunk(actions), state

    def inpaint(
        self, observation: Observation, state: object, target: np.ndarray, weight: np.ndarray
    ) -> tuple[ActionChunk, ExportedState]:
        """See `InpaintingPolicy.inpaint`.

        Raises:
            TypeError: the head cannot complete a chunk.
            ContractMismatchError: as `decide`, or target or weight are not as they should be.
        """
        if not self.can_inpaint:
            raise TypeError(f"the head {self.description.head!r} cannot complete a chunk")
        ActionChunk(target).validate(self.spec)
        shapes = (self.chunk_length, self.spec.action.dim), (self.chunk_length,)
        if (target.shape, weight.shape) != shapes or not (weight >= 0).all() or (weight > 1).any():
            raise ContractMismatchError(
                f"target {target.shape} and weight {weight.shape} have to be of shapes {shapes}, "
                "weights from 0 to 1"
            )
        encoded, state = self._encode(observation, state)
        kept = np.clip(target, self.spec.action.low, self.spec.action.high)
        wanted = {"target": kept[None], "weight": weight[None]}
        rows = {name: value.astype(np.float32) for name, value in wanted.items()}
        actions = self._graphs["inpaint"]({**encoded, **rows})["actions"]
        # What runs while the chunk is computed stays exactly as it was.
        actions = np.where((weight == 1)[:, None], rows["target"], actions)
        return self._chunk(actions), state

    def prompt(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 [1, tokens] and mask bool [1, tokens] of an instruction.

        Raises:
            ValueError: it cannot be read, see `Prompts.rows`.
            TypeError: the policy reads no words.
        """
        if self._parts.prompts is None:
            raise TypeError("this policy reads no instructions")
        return self._parts.prompts.rows(instruction)

    def tokens(self, observation: Observation, state: object) -> np.ndarray:
        """The action tokens int64 [tokens] of a decision, for heads that decide in tokens."""
        return self._generate(self._encode(observation, state)[0])[0]

    def _encode(self, observation: Observation, state: object) -> tuple[Arrays, ExportedState]:
        """What the head reads, and the memory with this observation."""
        if not isinstance(state, ExportedState):
            raise TypeError(f"the memory of another policy: {type(state).__name__}")
        observation.validate(self.spec)
        # Another instruction may name another object: what is remembered was not about it.
        if observation.instruction != state.instruction:
            state = ExportedState(self.initial_state().tensors, observation.instruction)
        inputs = self._parts.inputs(observation, observation.instruction)
        inputs |= {f"state.{name}": tensor for name, tensor in state.tensors.items()}
        encoded = self._graphs["encode"](inputs)
        memory = {name: encoded[f"next.{name}"] for name in state.tensors}
        return encoded, ExportedState(memory, observation.instruction)

    def _generate(self, encoded: Arrays) -> np.ndarray:
        """Tokens int64 [1, tokens], each chosen after those before it; -1 after the end."""
        tokens = np.full((1, self.description.tokens), -1, dtype=np.int64)
        for index in range(self.description.tokens):
            before = {"tokens": tokens[:, :index]}
            tokens[:, index] = self._graphs["step"]({**encoded, **before})["token"]
            if tokens[0, index] < 0:
                break
        return tokens

    def _chunk(self, actions: np.ndarray) -> ActionChunk:
        chunk = ActionChunk(actions[0])
        # The graph has clipped already; this refuses NaN, which passes through clipping.
        chunk.validate(self.spec)
        return chunk


@dataclass(frozen=True)
class Parts:
    """What the policies of this package are made of.

    Attributes:
        spec: the robot's contract.
        description: how the graphs become a policy.
        graphs: by name.
        prompts: words to tokens; None for a policy that reads none.
        words: tokens to hidden states; None for a policy without a language tower.
    """

    spec: RobotSpec
    description: PolicyDescription
    graphs: Mapping[str, Graph]
    prompts: Prompts | None
    words: WordStates | None = None

    @classmethod
    def load(cls, folder: Path, threads: int, providers: Sequence[Provider]) -> Parts:
        """Read an exported folder; args as `ExportedPolicy`.

        Raises:
            ExportedFolderError: the folder is missing, damaged, or of another format.
        """
        spec, description = read_exported(folder)
        graphs = {
            name: Graph(folder / f"{name}.onnx", threads, providers) for name in description.graphs
        }
        prompt = description.prompt
        prompts = prompt and Prompts(folder / "tokenizer" / "tokenizer.json", prompt)
        words = WordStates(graphs["words"], prompts) if prompts and "words" in graphs else None
        return cls(spec, description, graphs, prompts, words)

    def inputs(self, observation: Observation, words: str) -> dict[str, np.ndarray]:
        """What `encode` takes of an observation, each with one row, beside a memory.

        Args:
            observation: it follows the contract.
            words: of its instruction.

        Raises:
            ValueError: the words cannot be read, see `Prompts.rows`.
        """
        inputs = {f"image.{name}": image[None] for name, image in observation.images.items()}
        inputs["proprio"] = observation.proprio[None].astype(np.float32, copy=False)
        if self.prompts is not None:
            ids, mask = self.prompts.rows(words)
            inputs |= {"input_ids": ids, "attention_mask": mask}
        if self.words is not None:
            inputs["words"] = self.words.rows(words)
        return inputs


class Graph:
    """One ONNX graph; arrays by name in and out.

    Args:
        file: where it lies.
        threads: within one operator.
        providers: of ONNX Runtime, in order of preference; all of them have to be there.

    Raises:
        ValueError: a provider is not there.
    """

    def __init__(self, file: Path, threads: int, providers: Sequence[Provider]):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Waiting threads would take the processor from the control loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(file, options, providers=[*providers])
        # ONNX Runtime would compute on the CPU instead, with no more than a warning.
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        if missing := set(names) - set(self._session.get_providers()):
            raise ValueError(
                f"ONNX Runtime cannot use {', '.join(sorted(missing))} here; installed with it: "
                f"{', '.join(ort.get_available_providers())}. For a GPU install onnxruntime-gpu in "
                "the place of onnxruntime, and the libraries that it names"
            )
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The outputs for these inputs; arrays that the graph does not take are left out."""
        results = self._session.run(None, {name: arrays[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))
