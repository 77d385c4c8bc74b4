"""An exported policy of a few numbers, made by hand, so that its decisions are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from vla_runtime.contract import CameraSpec, Observation, RobotSpec, VectorSpec
from vla_runtime.exported.folder import (
    PolicyDescription,
    PromptSettings,
    StateTensor,
    new_exported_folder,
    write_description,
)

LENGTH = 3
SPEC = RobotSpec(
    robot="toy",
    action=VectorSpec(("x",), ("m",), (-5.0,), (5.0,)),
    proprio=VectorSpec(("x",), ("m",), (-1.0,), (1.0,)),
    cameras=(CameraSpec("top", 2, 2),),
    control_rate_hz=10.0,
)
PROMPT = PromptSettings(prefix=(4, 4), suffix=(2,), pad=0, length=6, max_text_tokens=4)
_TYPES = {"u": TensorProto.UINT8, "i": TensorProto.INT64, "b": TensorProto.BOOL}


def observe(x: float = 0.5, instruction: str = "go left") -> Observation:
    """The robot at `x`, before a black camera."""
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    return Observation({"top": image}, np.array([x], dtype=np.float32), instruction)


def write_toy(folder: Path, tokens: bool = False) -> Path:
    """Commands proprioception + decisions since the episode began, + 0, 1, 2 for the steps.

    Args:
        folder: a new one.
        tokens: as a sequence of tokens instead, which ends when the next would be 3: tokens 1, 2,
            and the chunk is what they add up to.
    """
    heads = (
        {"step": _step(), "decode": _decode()} if tokens else {"act": _act(), "inpaint": _paint()}
    )
    with new_exported_folder(folder) as partial:
        for name, model in {"encode": _encode(), **heads}.items():
            onnx.save_model(model, partial / f"{name}.onnx")
        (partial / "tokenizer").mkdir()
        _tokenizer().save(str(partial / "tokenizer" / "tokenizer.json"))
        description = PolicyDescription(
            head="token" if tokens else "flow",
            chunk_length=LENGTH,
            graphs=("encode", *heads),
            tokens=4 if tokens else 0,
            prompt=PROMPT,
            state={"seen": StateTensor((1,))},
        )
        write_description(partial, SPEC, description)
    return folder


def _tokenizer() -> Tokenizer:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "go", "left", "right"]
    model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<image>"])
    return tokenizer


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[tuple[str, str, list[int]]],
    outputs: Sequence[tuple[str, str, list[int]]],
    **constants: np.ndarray,
) -> onnx.ModelProto:
    """Inputs and outputs are name, kind of numpy ("f" is float32) and shape behind the rows."""

    def values(described: Sequence[tuple[str, str, list[int]]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, _TYPES.get(kind, TensorProto.FLOAT), ["n", *shape])
            for name, kind, shape in described
        ]

    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", values(inputs), values(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _encode() -> onnx.ModelProto:
    one = np.ones(1, dtype=np.float32)
    nodes = [
        helper.make_node("Add", ["state.seen", "one"], ["next.seen"]),
        helper.make_node("Add", ["proprio", "state.seen"], ["vector"]),
    ]
    inputs = [
        ("image.top", "u", [2, 2, 3]),
        ("input_ids", "i", [PROMPT.length]),
        ("attention_mask", "b", [PROMPT.length]),
        ("proprio", "f", [1]),
        ("state.seen", "f", [1]),
    ]
    return _model(nodes, inputs, [("vector", "f", [1]), ("next.seen", "f", [1])], one=one)


def _act() -> onnx.ModelProto:
    steps = np.arange(LENGTH, dtype=np.float32)[None, :, None]
    nodes = [
        helper.make_node("Unsqueeze", ["vector", "axis"], ["column"]),
        helper.make_node("Add", ["column", "steps"], ["actions"]),
    ]
    outputs = [("actions", "f", [LENGTH, 1])]
    return _model(nodes, [("vector", "f", [1])], outputs, steps=steps, axis=np.array([1]))


def _paint() -> onnx.ModelProto:
    half = np.array(0.5, dtype=np.float32)
    inputs = [("target", "f", [LENGTH, 1]), ("weight", "f", [LENGTH]), ("vector", "f", [1])]
    nodes = [helper.make_node("Mul", ["target", "half"], ["actions"])]
    return _model(nodes, inputs, [("actions", "f", [LENGTH, 1])], half=half)


def _step() -> onnx.ModelProto:
    # One more than the tokens so far, and -1 once there are two.
    nodes = [
        helper.make_node("Shape", ["tokens"], ["count"], start=1, end=2),
        helper.make_node("Add", ["count", "one"], ["more"]),
        helper.make_node("Less", ["count", "two"], ["goes_on"]),
        helper.make_node("Where", ["goes_on", "more", "end"], ["token"]),
    ]
    constants = {"one": np.array([1]), "two": np.array([2]), "end": np.array([-1])}
    inputs = [("tokens", "i", ["t"]), ("vector", "f", [1])]  # type: ignore[list-item]
    return _model(nodes, inputs, [("token", "i", [])], **constants)


def _decode() -> onnx.ModelProto:
    steps = np.zeros((1, LENGTH, 1), dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axis"], ["sum"], keepdims=1),
        helper.make_node("Unsqueeze", ["sum", "axis"], ["column"]),
        helper.make_node("Add", ["column", "steps"], ["actions"]),
    ]
    outputs = [("actions", "f", [LENGTH, 1])]
    return _model(nodes, [("tokens", "i", [4])], outputs, steps=steps, axis=np.array([1]))
