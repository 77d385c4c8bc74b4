"""A module as an ONNX file whose number of rows is symbolic."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch.export import Dim

from vla.deploy.graphs import Graph

OPSET = 20


class ExportError(RuntimeError):
    """A policy cannot be exported, or does not compute the same once it is."""


def write_graph(graph: Graph, file: Path) -> None:
    """Export a module for any number of rows, on one file beside its weights if they are large.

    Raises:
        ExportError: the exporter fixed an axis that differs between calls.
    """
    rows = Dim("rows")
    axes = [
        {0: rows, **dict.fromkeys(graph.dynamic.get(name, ()), Dim.DYNAMIC)}
        for name in graph.inputs
    ]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        # Not left to `torch.onnx.export`: it would fall back to fixed sizes without an error.
        program = torch.export.export(
            graph.module.eval(), (*graph.inputs.values(),), dynamic_shapes=(tuple(axes),)
        )
        made = torch.onnx.export(
            program,
            (),
            input_names=[*graph.inputs],
            output_names=[*graph.outputs],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    made.save(file)
    _require_symbolic(file, graph)


def _require_symbolic(file: Path, graph: Graph) -> None:
    model = onnx.load(file, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        axes = {0, *graph.dynamic.get(value.name, ())}
        dims = value.type.tensor_type.shape.dim
        if fixed := [axis for axis in axes if not dims[axis].dim_param]:
            raise ExportError(f"{file.name} has fixed sizes in axes {fixed} of {value.name}")
