"""Modules as ONNX files whose number of rows is symbolic."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla.deploy.graphs import Chain, Graph

OPSET = 20
_LARGEST_FILE = 2**31 - 2**20
"""A model beyond that keeps its weights in a second file: protobuf ends at 2 GB."""


class ExportError(RuntimeError):
    """A policy cannot be exported, or does not compute the same once it is."""


def write_graph(graph: Graph | Chain, file: Path) -> None:
    """Export for any number of rows into one file, with a second one for weights beyond 2 GB.

    Raises:
        ExportError: the exporter fixed an axis that differs between calls, or knows no operator
            for what the module does.
    """
    model = chain(graph) if isinstance(graph, Chain) else to_onnx(graph)
    onnx.save_model(
        model,
        file,
        save_as_external_data=model.ByteSize() > _LARGEST_FILE,
        location=f"{file.name}.data",
    )


def to_onnx(graph: Graph) -> ModelProto:
    """One module as a model; see `write_graph`."""
    rows = Dim("rows")
    axes = [
        {}
        if name in graph.alike
        else {0: rows, **dict.fromkeys(graph.dynamic.get(name, ()), Dim.DYNAMIC)}
        for name in graph.inputs
    ]
    module, examples = graph.module.eval(), (*graph.inputs.values(),)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            if graph.has_gradients:
                module = _trace_gradients(module, examples)
            # Not left to `torch.onnx.export`: it would fall back to fixed sizes without an error.
            program = torch.export.export(module, examples, dynamic_shapes=_arrange(module, axes))
            made = torch.onnx.export(
                program,
                (),
                input_names=[*graph.inputs],
                output_names=[*graph.outputs],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    # Torch raises all kinds here; whichever it is, this model cannot be exported.
    except Exception as error:
        what = type(graph.module).__name__.strip("_")
        raise ExportError(f"{what} cannot be exported: {error}") from error
    assert made is not None
    model = made.model_proto
    _name_rows(model, graph)
    return model


def chain(parts: Chain) -> ModelProto:
    """The steps one after another, with one copy of the weights, as one model.

    Exporting the unrolled loop as a whole takes the exporter ten times as long.
    """
    begin, step, finish = map(to_onnx, (parts.begin, parts.step, parts.finish))
    times = [
        numpy_helper.from_array(time.numpy(), f"time.{index}")
        for index, time in enumerate(parts.times)
    ]
    whole = _Joined(times)
    names = whole.append("begin", begin, {})
    for time in times:
        made = whole.append("step", step, {**names, "time": time.name})
        names["at"] = made["after"]
    names = whole.append("finish", finish, names)
    last, outputs = finish.graph.output[0], [NodeProto()]
    outputs[0].CopyFrom(helper.make_node("Identity", [names[last.name]], [last.name]))
    inside = {"at", "time", *parts.begin.outputs}
    inputs = {
        value.name: value
        for model in (begin, step)
        for value in model.graph.input
        if value.name not in inside
    }
    graph = helper.make_graph(
        [*whole.nodes, *outputs], "chain", [*inputs.values()], [last], [*whole.weights.values()]
    )
    return helper.make_model(graph, opset_imports=step.opset_import, ir_version=step.ir_version)


class _Joined:
    """Nodes of several models in a row, and their weights."""

    def __init__(self, weights: list[TensorProto]):
        self.nodes: list[NodeProto] = []
        self.weights = {weight.name: weight for weight in weights}
        self._parts = 0

    def append(self, label: str, model: ModelProto, names: dict[str, str]) -> dict[str, str]:
        """Add a model; weights of one label are shared.

        Args:
            label: of the model.
            model: without functions and subgraphs.
            names: its inputs → names here; others keep their own.

        Returns:
            Its outputs → names here.
        """
        fixed = {weight.name: f"{label}.{weight.name}" for weight in model.graph.initializer}
        for weight in model.graph.initializer:
            if (name := fixed[weight.name]) not in self.weights:
                self.weights[name] = TensorProto()
                self.weights[name].CopyFrom(weight)
                self.weights[name].name = name
        outside = {value.name: value.name for value in model.graph.input} | names | fixed | {"": ""}
        part, self._parts = self._parts, self._parts + 1

        def here(name: str) -> str:
            return outside.get(name, f"{part}.{name}")

        for node in model.graph.node:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{part}.{node.name}"
            copy.input[:] = [here(name) for name in node.input]
            copy.output[:] = [f"{part}.{name}" if name else "" for name in node.output]
            self.nodes.append(copy)
        return {value.name: f"{part}.{value.name}" for value in model.graph.output}


def _trace_gradients(module: nn.Module, examples: tuple[Tensor, ...]) -> nn.Module:
    """The operators of forward and backward pass, which an exporter takes for any others."""
    # Fused attention has a backward operator of its own, which ONNX does not know.
    table: Any = torch.export.default_decompositions()  # `make_fx` names another type of keys
    with sdpa_kernel(SDPBackend.MATH):
        return make_fx(
            module,
            decomposition_table=table,
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*examples)


def _arrange(module: nn.Module, axes: list[dict]) -> tuple:
    """Axes by argument: those of `*read` together, as the exporter wants them."""
    names = [*inspect.signature(module.forward).parameters.values()]
    if not names or names[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return tuple(axes)
    alone = len(names) - 1
    return (*axes[:alone], tuple(axes[alone:]))


def _name_rows(model: ModelProto, graph: Graph) -> None:
    """One name for all axes of rows.

    Raises:
        ExportError: an axis that differs between calls has a fixed size.
    """
    for value in (*model.graph.input, *model.graph.output):
        axes = () if value.name in graph.alike else {0, *graph.dynamic.get(value.name, ())}
        dims = value.type.tensor_type.shape.dim
        if fixed := [axis for axis in axes if not dims[axis].dim_param]:
            raise ExportError(f"the exporter fixed the sizes of axes {fixed} of {value.name}")
        if axes:
            dims[0].dim_param = "rows"
