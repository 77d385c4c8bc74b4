"""`vla export`: a checkpoint as a folder that a robot runs without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_runtime.exported.folder import (
    PolicyDescription,
    PromptSettings,
    StateTensor,
    new_exported_folder,
    write_description,
    write_manifest,
)
from vla_runtime.exported.policy import ExportedPolicy

from vla.contract import RobotSpec
from vla.deploy.card import exported_card
from vla.deploy.foreign_backbones import exportable
from vla.deploy.graphs import Chain, Graph, graphs_of
from vla.deploy.onnx_graphs import ExportError, write_graph
from vla.deploy.prompt_settings import foreign_settings, tokenizer_json, tower_settings
from vla.model.heads.autoregressive import AutoregressiveHead
from vla.model.heads.registry import head_name
from vla.policy import VLAPolicy
from vla.processing.prompts import LONGEST_TEXT, EmbeddedPrompts
from vla.processing.tower_prompts import TowerPrompts

Check = Callable[[ExportedPolicy], dict[str, Any]]
"""Compares an export with what it was made from; the result goes into policy.json."""


def export_policy(
    policy: VLAPolicy, out: Path, source: dict[str, Any], check: Check
) -> dict[str, Any]:
    """Write a policy as graphs, and give it its name only if it decides as before.

    Args:
        policy: it computes in float32 on the CPU from now on.
        out: a new folder.
        source: what is exported, for policy.json.
        check: raises where the export is not as it should be.

    Returns:
        What `check` found.

    Raises:
        ExportError: it cannot be exported, or does not compute the same.
        FileExistsError: there is something of that name.
    """
    settings = prompt_settings(policy)
    # bfloat16 would round in another way on every processor.
    policy.model.float().cpu()
    policy.model.backbone.bf16 = False
    graphs = graphs_of(exportable(policy))
    return write_exported(
        out,
        policy.spec,
        _describe(policy, graphs, settings, source),
        graphs,
        _tokenizer(policy),
        lambda folder: check(ExportedPolicy(folder)),
    )


def write_exported(
    out: Path,
    spec: RobotSpec,
    description: PolicyDescription,
    graphs: Mapping[str, Graph | Chain],
    tokenizer: str | None,
    check: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """Write the folder, and give it its name only if `check` passes.

    Args:
        out: a new folder.
        spec: the robot's contract.
        description: without what `check` will find.
        graphs: to export.
        tokenizer: text of tokenizer.json; None for a policy that reads no words.
        check: is given the written folder under a hidden name.

    Returns:
        What `check` found.
    """
    with new_exported_folder(out) as partial:
        for name, graph in graphs.items():
            begun = time.perf_counter()
            write_graph(graph, partial / f"{name}.onnx")
            print(f"exported {name} in {time.perf_counter() - begun:.0f} s", flush=True)
        if tokenizer is not None:
            (partial / "tokenizer").mkdir()
            (partial / "tokenizer" / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        write_description(partial, spec, description)
        # It is loaded here as it will be on the robot, hashes and all.
        write_manifest(partial)
        parity = check(partial)
        description = replace(description, parity=parity)
        write_description(partial, spec, description)
        card = exported_card(spec, description)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return parity


def prompt_settings(policy: VLAPolicy) -> PromptSettings:
    """How an instruction becomes tokens, for a robot without transformers.

    Raises:
        ExportError: this policy's prompts cannot be made there.
    """
    prompts = policy.processor.prompts
    if isinstance(prompts, TowerPrompts):
        return tower_settings(prompts)
    if not isinstance(prompts, EmbeddedPrompts):
        return foreign_settings(prompts)
    if prompts.padding != "fixed":
        raise ExportError("prompts with padding='longest' have no fixed length: not exported")
    return PromptSettings(
        prefix=tuple(prompts.image_prompt.tolist()),
        suffix=(prompts.eos_token_id,),
        pad=prompts.pad_token_id,
        length=prompts.length,
        max_text_tokens=LONGEST_TEXT,
    )


def _describe(
    policy: VLAPolicy,
    graphs: Mapping[str, Graph | Chain],
    settings: PromptSettings,
    source: dict[str, Any],
) -> PolicyDescription:
    encode = graphs["encode"]
    assert isinstance(encode, Graph)
    memory = {
        name.removeprefix("state."): StateTensor(tuple(tensor.shape[1:]))
        for name, tensor in encode.inputs.items()
        if name.startswith("state.")
    }
    head = policy.actor.head
    return PolicyDescription(
        head=head_name(policy.model.config.head),
        chunk_length=policy.chunk_length,
        graphs=tuple(graphs),
        tokens=head.length if isinstance(head, AutoregressiveHead) else 0,
        prompt=settings,
        state=memory,
        source=source,
    )


def _tokenizer(policy: VLAPolicy) -> str:
    language: Any = policy.processor.language
    return tokenizer_json(getattr(language, "tokenizer", language))
