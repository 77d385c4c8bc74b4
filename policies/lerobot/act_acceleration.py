"""The same ACT with less work, in training and in inference.

Nobody reads the attention weights that LeRobot's network averages over heads, nor, of the
variational encoder's last layer, any token but the first. For inference, what it computes again
at every decision, or camera by camera, is computed once: frozen batch norms go into the
convolutions before them, all cameras pass through the vision tower together, and the decoder's
first self-attention, which sees no observation, is kept; on a CPU the large weights are kept in the
layout in which they are multiplied. Apart from rounding, and from which numbers dropout draws, all
results are the same.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lerobot.policies.act.modeling_act import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from policies.lerobot.onednn_prepacked import can_pack, pack


def optimise_training(policy: Any) -> None:
    """Change how a LeRobot ACT policy computes, in place; its weights remain what they were."""
    _skip_attention_averages(policy.model)
    if policy.config.use_vae:
        last = policy.model.vae_encoder.layers[-1]
        # Patched on the instance and no module of its own: weights keep their names in checkpoints.
        last.forward = _FirstToken(last)


def optimise_inference(policy: Any, bf16: bool = False) -> None:
    """Change a LeRobot ACT policy in place; its weights cannot be saved or trained afterwards.

    Policies of other kinds stay as they are.

    Args:
        policy: in evaluation mode, on its device.
        bf16: keep the weights of matrix products in bfloat16; it then needs autocast around it.
    """
    if policy.config.type != "act":
        return
    model = policy.model
    _skip_attention_averages(model)
    if policy.config.image_features:
        _fold_batch_norms(model.backbone)
        model.backbone.to(memory_format=torch.channels_last)
        model.forward = _BatchedCameras(model)
    # ACT feeds zeros and learned position embeddings to its decoder, so this attention sees
    # no observation.
    attention = model.decoder.layers[0].self_attn
    attention.forward = _CachedByBatchSize(attention.forward)
    if bf16:
        for module in policy.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                module.bfloat16()
    # Last: what is packed are the folded and cast weights.
    if can_pack(policy.config.device, bf16):
        pack(model)


def _skip_attention_averages(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            attention: Any = module
            # Callers take the output alone; without weights torch uses its fused attention kernel.
            attention.forward = partial(attention.forward, need_weights=False)


def _fold_batch_norms(module: nn.Module) -> None:
    """Put every frozen batch norm into the convolution that stands before it."""
    children: list[tuple[str, Any]] = list(module.named_children())
    # Torchvision's ResNets register each norm right after the convolution that feeds it.
    for (_, conv), (name, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
            # scale = gamma / sqrt(var + eps), w * scale and (b - mean) * scale + beta: exact but
            # for rounding, as the statistics are frozen.
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            # Not removed: the ResNet's own forward still calls it.
            setattr(module, name, nn.Identity())
    for _, child in children:
        _fold_batch_norms(child)


class _FirstToken:
    """A layer of ACT's encoder for its first token alone, which attends to all."""

    def __init__(self, layer: Any):
        self._layer, self._forward = layer, layer.forward
        self._attend = layer.self_attn.forward
        layer.self_attn.forward = self._attend_to_all
        # Set by `__call__` for the attention inside the same pass.
        self._keys = self._values = torch.empty(0)

    def __call__(self, x: Tensor, pos_embed: Tensor, key_padding_mask: Tensor) -> Tensor:
        # All tokens [tokens, n, width], as the layer itself would attend to them.
        self._values = self._layer.norm1(x) if self._layer.pre_norm else x
        self._keys = self._values + pos_embed
        # The mask stays whole: it hides keys, not queries.
        return self._forward(x[:1], pos_embed[:1], key_padding_mask)

    def _attend_to_all(self, query: Tensor, _key: Tensor, value: Tensor, **mask: Any) -> Any:
        return self._attend(query, self._keys, self._values, **mask)


class _BatchedCameras:
    """ACT's forward pass, to which the vision tower's features are given instead of images."""

    def __init__(self, model: Any):
        self._forward, self._see = model.forward, model.backbone.forward
        # ACT's own loop over cameras then gets features back for the features it passes.
        model.backbone.forward = lambda features: {"feature_map": features}

    def __call__(self, batch: dict[str, Any]) -> Any:
        images = batch["observation.images"]
        if len({image.shape for image in images}) == 1:
            # [cameras * n, 3, h, w] in one pass, and [n, channels, h, w] a camera again.
            features = self._see(torch.cat(images))["feature_map"].chunk(len(images))
        else:
            # Cameras of different sizes cannot share a batch.
            features = [self._see(image)["feature_map"] for image in images]
        return self._forward(batch | {"observation.images": features})


class _CachedByBatchSize:
    """A function whose arguments depend on the size of the batch alone, kept for the last size."""

    def __init__(self, compute: Any):
        self._compute = compute
        self._size, self._result = -1, ()

    def __call__(self, query: Tensor, *args: Any, **options: Any) -> Any:
        # [queries, n, width]
        if query.shape[1] != self._size:
            self._size, self._result = query.shape[1], self._compute(query, *args, **options)
        return self._result
