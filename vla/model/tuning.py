"""Prepare a pretrained part: freeze it, adapt it or train all of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from vla.model.backbone import BackboneConfig

_ADAPTER = "lora_"


def tune(model: PreTrainedModel, config: BackboneConfig) -> None:
    """Choose what trains, and whether activations are recomputed.

    Raises:
        ValueError: no layer has a name to adapt.
    """
    if config.gradient_checkpointing:
        # Reentrant checkpointing gives no gradients where no input of a layer requires one, as
        # after frozen embeddings.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.requires_grad_(config.tuning == "full")
    if config.tuning != "lora":
        return
    names = _linear_names(model.named_modules())
    if not names & set(config.lora_targets):
        raise ValueError(
            f"{type(model).__name__} has no layer {config.lora_targets} to adapt: give some of "
            f"{sorted(names)}"
        )
    # Imported here, because it takes seconds that no other model needs to wait.
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType]  any number scales
        target_modules=sorted(set(config.lora_targets) & names),
    )
    inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_ADAPTER in name)
        if _ADAPTER in name:
            # Small steps vanish in bfloat16.
            parameter.data = parameter.data.to(torch.float32)


def _linear_names(modules: Iterable[tuple[str, nn.Module]]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, module in modules if isinstance(module, nn.Linear)}
