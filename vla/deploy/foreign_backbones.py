"""Pretrained backbones in the form in which they are exported.

Two towers run unchanged. Image-text models of transformers decide in their `forward` by the values
of their inputs (which images are padding, where image tokens lie), which no exported graph can. So
their parts are joined here without such questions, which the processor has answered: every image is
there, and its tokens are as many as always. The parity check shows that nothing else changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ProcessorMixin

from vla.deploy.image_processing import ImageProcessing
from vla.deploy.onnx_graphs import ExportError
from vla.model.backbone import Backbone, Hidden
from vla.model.dual import DualBackbone
from vla.model.vlm import VLMBackbone, answer_types
from vla.policy import VLAPolicy
from vla.processing.model_inputs import ModelInputs
from vla.processing.prompts import ForeignPrompts


def exportable(policy: VLAPolicy) -> VLAPolicy:
    """The same policy, whose backbone takes bytes; weights are shared.

    Raises:
        ExportError: its backbone or its image processor cannot be exported; says why.
    """
    prompts, backbone = policy.processor.prompts, policy.model.backbone
    if not isinstance(prompts, ForeignPrompts):
        return policy
    if isinstance(backbone, DualBackbone):
        twin: Backbone = _Dual(backbone, policy)
    else:
        assert isinstance(backbone, VLMBackbone)
        twin = _ImageText(backbone, policy)
    return VLAPolicy(_with(policy.model, backbone=twin), policy.processor)


class _Dual(Backbone):
    """Two towers behind their image processing."""

    def __init__(self, backbone: DualBackbone, policy: VLAPolicy):
        super().__init__()
        self.backbone, self.width = backbone, backbone.width
        self.images = _image_processing(policy)

    def forward(self, inputs: ModelInputs) -> Hidden:
        """Of uint8 [n, cameras, 3, h, w]."""
        # [n * cameras, 3, h, w], as the vision tower wants its images.
        pixels = self.images(inputs.pixel_values.flatten(0, 1)).unflatten(
            0, inputs.pixel_values.shape[:2]
        )
        return self.backbone(replace(inputs, pixel_values=pixels, flat=("pixel_values",)))

    def to_dict(self) -> dict[str, Any]:
        """As the backbone itself."""
        return self.backbone.to_dict()


class _ImageText(Backbone):
    """An image-text model whose images are merged into the words at the places of their tokens."""

    def __init__(self, backbone: VLMBackbone, policy: VLAPolicy):
        super().__init__()
        model: Any = backbone.language_model
        kind = model.config.model_type
        if kind not in _IMAGE_FEATURES:
            raise ExportError(
                f"a policy on {kind!r} cannot be exported: its forward decides by the values of "
                f"its inputs, which is replaced for {sorted(_IMAGE_FEATURES)} alone; two towers "
                "can be exported, too"
            )
        self.model, self.readout = model, backbone.readout
        self.width, self.image_tokens = backbone.width, backbone.image_tokens
        self.images = _image_processing(policy)
        size = policy.processor.image_size_px
        with torch.no_grad():
            example = self.images(torch.zeros(1, 3, *size))
            self.features = _IMAGE_FEATURES[kind](model, example)
        self._image_token_id = backbone.image_token_id
        self._types = answer_types(kind)

    def forward(self, inputs: ModelInputs) -> Hidden:
        """Of uint8 [n, cameras, 3, h, w]."""
        count, cameras = inputs.pixel_values.shape[:2]
        seen = self.features(self.images(inputs.pixel_values.flatten(0, 1)))  # [n * cameras, t, w]
        seen = seen.reshape(count, cameras * self.image_tokens, self.width)
        is_image = inputs.input_ids == self._image_token_id
        # Earlier tokens rank higher, so no two are equal: a stable sort has no ONNX operator.
        rank = torch.arange(is_image.shape[1], 0, -1, device=is_image.device)
        places = (is_image * rank).topk(seen.shape[1], dim=1).indices  # [n, cameras * t]
        places = places[..., None].expand(-1, -1, self.width)
        # Image tokens may lie beyond the table; what is looked up there is replaced.
        words = self.model.get_input_embeddings()(inputs.input_ids.masked_fill(is_image, 0))
        words = words.scatter(1, places, seen.to(words.dtype))
        readout, readouts = self.readout.to(words.dtype).expand(count, -1, -1), len(self.readout)
        ids, mask = inputs.input_ids, inputs.attention_mask
        hidden = self.model(
            inputs_embeds=torch.cat([words, readout], dim=1),
            attention_mask=F.pad(mask.long(), (0, readouts), value=1),
            # Types of the prompt are 0, those of what follows it are the answer's.
            **{n: F.pad(ids * 0, (0, readouts), value=v) for n, v in self._types.items()},
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        prompt = hidden[:, :-readouts]
        images = prompt.gather(1, places).float().unflatten(1, (cameras, self.image_tokens))
        return Hidden(images, hidden[:, -readouts:].float(), prompt, mask)

    def to_dict(self) -> dict[str, Any]:
        """Never saved."""
        raise NotImplementedError


class _PositionedPatches(nn.Module):
    """Patches of SmolVLM's and Idefics 3's vision tower, for images without padding."""

    positions: Tensor

    def __init__(self, embeddings: Any, example: Tensor):
        super().__init__()
        self.patches = embeddings.patch_embedding
        given: list[Tensor] = []
        hook = embeddings.position_embedding.register_forward_hook(
            lambda module, args, output: given.append(output)
        )
        side = [size // embeddings.patch_size for size in example.shape[-2:]]
        embeddings(example, torch.ones(1, *side, dtype=torch.bool))
        hook.remove()
        # All images have one size, so their patches have the same positions: [1, patches, width].
        self.register_buffer("positions", given[0], persistent=False)

    def forward(self, pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
        """[m, patches, width] of float32 [m, 3, h, w]."""
        return self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions


class _IdeficsImages(nn.Module):
    """Image features of SmolVLM and Idefics 3, every image being one."""

    def __init__(self, model: Any, example: Tensor):
        super().__init__()
        vision = model.vision_model
        patches = _PositionedPatches(vision.embeddings, example)
        self.vision, self.connector = _with(vision, embeddings=patches), model.connector

    def forward(self, pixels: Tensor) -> Tensor:
        """[m, image_tokens, width] of float32 [m, 3, h, w]."""
        return self.connector(self.vision(pixel_values=pixels).last_hidden_state)


class _PaliGemmaImages(nn.Module):
    def __init__(self, model: Any, example: Tensor):
        super().__init__()
        self.vision, self.projector = model.vision_tower, model.multi_modal_projector

    def forward(self, pixels: Tensor) -> Tensor:
        """[m, image_tokens, width] of float32 [m, 3, h, w]."""
        return self.projector(self.vision(pixels).last_hidden_state)


# Architecture -> its image features, for an example of pixel values.
_IMAGE_FEATURES: dict[str, Callable[[Any, Tensor], nn.Module]] = {
    "smolvlm": _IdeficsImages,
    "idefics3": _IdeficsImages,
    "paligemma": _PaliGemmaImages,
}


def _image_processing(policy: VLAPolicy) -> ImageProcessing:
    language = policy.processor.language
    assert isinstance(language, ProcessorMixin)
    return ImageProcessing(language, policy.processor.image_size_px)


def _with[M: nn.Module](module: M, **children: nn.Module) -> M:
    """The same module with other children; everything else is shared."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **children}
    return twin
