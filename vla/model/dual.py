"""A vision tower and a text encoder as a backbone, such as SigLIP or CLIP.

The towers run separately, so a small transformer that is trained here joins them: it attends
over the image tokens of all cameras, the words and the readouts, each projected to one width.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from vla.cut_layers import cut_layers
from vla.model.backbone import Backbone, BackboneConfig, Hidden
from vla.model.tuning import tune
from vla.processing.model_inputs import ModelInputs

_HEAD_WIDTH = 64  # width of one attention head in the joining transformer

# The towers that no Auto class of transformers knows.
_TOWERS: dict[str, Any] = {
    config.model_type: tower
    for config, tower in (
        (SiglipTextConfig, SiglipTextModel),
        (Siglip2TextConfig, Siglip2TextModel),
        (CLIPTextConfig, CLIPTextModel),
    )
}


def tower_class(config: PreTrainedConfig) -> Any:
    """Which class a tower of this configuration has."""
    return _TOWERS.get(config.model_type) or MODEL_MAPPING[type(config)]


def _untrained(config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    fields = dict(config)
    kind = fields.pop("model_type")
    if kind in _TOWERS:
        return _TOWERS[kind](_TOWERS[kind].config_class(**fields)).to(dtype)
    made = AutoConfig.for_model(kind, **fields)
    return tower_class(made)(made).to(dtype)


class DualBackbone(Backbone):
    """Hidden states of the transformer that joins two towers.

    Args:
        vision: gives hidden states of patches, special tokens before them.
        text: gives hidden states of words.
        config: how they are used.
        cameras: images an observation.
        image_tokens: patches an image.
        readouts: learned positions after images and words.

    Raises:
        ValueError: a tower has not the layers that the configuration asks for.
    """

    def __init__(
        self,
        vision: PreTrainedModel,
        text: PreTrainedModel,
        config: BackboneConfig,
        cameras: int,
        image_tokens: int,
        readouts: int = 1,
    ):
        super().__init__()
        self.config, self.cameras, self.image_tokens = config, cameras, image_tokens
        # As they were before `cut_layers`, which is applied again when this is rebuilt.
        self._saved = {"vision": vision.config.to_dict(), "text": text.config.to_dict()}
        for tower in (vision, text):
            cut_layers(tower, int(tower.config.num_hidden_layers), config.layer)
            tune(tower, config)
        self.vision, self.text = vision, text
        self.width = width = config.fusion_width
        # The towers may differ in width: both are projected to that of the joining transformer.
        self.see = nn.Linear(int(vision.config.hidden_size), width)
        self.read = nn.Linear(int(text.config.hidden_size), width)
        # The vision tower sees every image alone, so nothing else says which camera a patch is
        # from.
        self.camera = nn.Parameter(torch.randn(cameras, 1, width) * 0.02)
        self.readout = nn.Parameter(torch.randn(readouts, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, width // _HEAD_WIDTH, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        # Nested tensors do not work with norm_first: asking for them only causes a warning.
        self.fusion = nn.TransformerEncoder(
            layer, config.fusion_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )

    def forward(self, inputs: ModelInputs) -> Hidden:
        """Hidden states after the last layer of the joining transformer."""
        # `shape` and not `len`, which would fix the number of rows in an exported graph.
        tensors, count = inputs.for_model(), inputs.proprio.shape[0]
        pixels = tensors["pixel_values"].to(self.vision.dtype)
        # [n * cameras, patches, width of the tower]; special tokens come first, the slice drops
        # them.
        patches = self.vision(pixel_values=pixels).last_hidden_state[:, -self.image_tokens :]
        words = self.text(
            input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]
        ).last_hidden_state
        # Both towers may be bfloat16, the joining transformer is float32.
        seen = self.see(patches.float()).unflatten(0, (count, self.cameras)) + self.camera
        readout, readouts = self.readout.expand(count, -1, -1), len(self.readout)
        # [n, cameras * patches + words + readouts, width]
        joined = torch.cat([seen.flatten(1, 2), self.read(words.float()), readout], dim=1)
        # Image tokens are never padding; PyTorch wants the mask inverted, True where ignored.
        mask = F.pad(inputs.attention_mask, (seen[0, ..., 0].numel(), 0), value=True)
        hidden: Tensor = self.fusion(
            joined, src_key_padding_mask=~F.pad(mask, (0, readouts), value=True)
        ).float()
        prompt = hidden[:, :-readouts]
        images = prompt[:, : seen[0, ..., 0].numel()].unflatten(1, (self.cameras, -1))
        return Hidden(images, hidden[:, -readouts:], prompt, mask)

    def to_dict(self) -> dict[str, Any]:
        """The towers' configurations and how they are used."""
        return {
            "kind": "dual",
            "options": asdict(self.config),
            "cameras": self.cameras,
            "image_tokens": self.image_tokens,
            **self._saved,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], readouts: int) -> DualBackbone:
        """An untrained model of the architecture that `to_dict` described."""
        config = BackboneConfig.from_dict(data["options"])
        vision, text = (
            _untrained(data[n], getattr(torch, config.dtype)) for n in ("vision", "text")
        )
        return cls(vision, text, config, data["cameras"], data["image_tokens"], readouts)
