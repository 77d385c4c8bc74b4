"""The vision-language backbone: a transformers image-text model read out at a few extra positions.

The prompt is the pictures, the instruction and then `readout_tokens` learned embeddings; their last
hidden states are what the action head reads. Instructions pass through the language model and
pictures through its vision tower, whichever model of transformers it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SmolVLMConfig,
)

from vla.processor import ModelInputs, normalise_pixels
from vla.tokenizer import IMAGE


@dataclass(frozen=True)
class EmbeddedConfig:
    """Sizes of the small SmolVLM-shaped model that is made here (Marafioti et al. 2025).

    Attributes:
        width: hidden size of both towers.
        vision_layers: layers of the vision tower.
        text_layers: layers of the language model.
        heads: attention heads of both.
        patch_size: pixels a side of a patch.
        shuffle: patches a side that the connector packs into one token.
    """

    width: int = 128
    vision_layers: int = 3
    text_layers: int = 3
    heads: int = 4
    patch_size: int = 24
    shuffle: int = 1

    def image_tokens(self, image_size: int) -> int:
        """Tokens that one square picture becomes.

        Raises:
            ValueError: the picture does not divide into whole tokens.
        """
        step = self.patch_size * self.shuffle
        if image_size % step:
            raise ValueError(f"pictures of {image_size} px do not divide into tokens of {step} px")
        return (image_size // step) ** 2


def embedded_backbone(
    config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase, image_size: int
) -> PreTrainedModel:
    """A freshly initialised SmolVLM of the given sizes for this tokenizer and picture size."""
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    attention = {"num_attention_heads": config.heads, "hidden_size": config.width}
    smolvlm = SmolVLMConfig.from_dict(
        {
            "image_token_id": image_token,
            "pad_token_id": tokenizer.pad_token_id,
            "scale_factor": config.shuffle,
            "tie_word_embeddings": True,
            "vision_config": {
                **attention,
                "intermediate_size": 4 * config.width,
                "num_hidden_layers": config.vision_layers,
                "image_size": image_size,
                "patch_size": config.patch_size,
            },
            "text_config": {
                **attention,
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "intermediate_size": 3 * config.width,
                "num_hidden_layers": config.text_layers,
                "num_key_value_heads": config.heads,
                "max_position_embeddings": 512,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
        }
    )
    return AutoModelForImageTextToText.from_config(smolvlm)


def pretrained_backbone(name_or_folder: str) -> PreTrainedModel:
    """A pretrained image-text model, from a local folder or a hub id.

    Raises:
        FileNotFoundError: neither a folder nor reachable on the hub; says what is valid.
        ValueError: the model is not an image-text model.
    """
    try:
        return AutoModelForImageTextToText.from_pretrained(name_or_folder)
    except OSError as error:
        raise FileNotFoundError(
            f"no model {name_or_folder!r}: give a folder written by save_pretrained "
            f"({Path(name_or_folder).absolute()} is none), or the id of a hub model while the hub "
            "can be reached"
        ) from error


def backbone_from_dict(config: dict[str, Any]) -> PreTrainedModel:
    """An untrained model of the architecture that `backbone.config.to_dict()` described."""
    fields = dict(config)
    return AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(fields.pop("model_type"), **fields)
    )


@dataclass(frozen=True)
class Hidden:
    """Hidden states of n prompts, float32.

    Attributes:
        pictures: [n, cameras, tokens a picture, width], at the picture tokens.
        readout: [n, readout_tokens, width], at the readout positions.
        prompt: [n, tokens, width], at pictures and words.
        mask: bool [n, tokens], False at padding.
    """

    pictures: Tensor
    readout: Tensor
    prompt: Tensor
    mask: Tensor


class Backbone(nn.Module):
    """Hidden states of a vision-language model at its pictures and at learned readout positions.

    Args:
        language_model: a transformers image-text model.
        readout_tokens: how many positions are read.
    """

    def __init__(self, language_model: PreTrainedModel, readout_tokens: int):
        super().__init__()
        self.language_model = language_model
        self.width = int(language_model.config.get_text_config().hidden_size)
        self.readout = nn.Parameter(torch.randn(readout_tokens, self.width) * 0.02)

    def forward(self, inputs: ModelInputs) -> Hidden:
        """Last hidden states."""
        model = self.language_model.model
        pixels = normalise_pixels(inputs.pixel_values, self.language_model.dtype)
        count = len(inputs)
        embeddings = model.get_input_embeddings()(inputs.input_ids)
        is_image = inputs.input_ids == self.language_model.config.image_token_id
        pictures = model.get_image_features(pixels.contiguous(), return_dict=True).pooler_output
        # One prompt holds all pictures of its row in order, so the flattened rows line up.
        embeddings = embeddings.masked_scatter(
            is_image[..., None], pictures.reshape(-1, self.width).to(embeddings.dtype)
        )
        readout = self.readout.to(embeddings.dtype).expand(count, -1, -1)
        mask = torch.nn.functional.pad(inputs.attention_mask, (0, len(self.readout)), value=True)
        hidden = model.text_model(
            inputs_embeds=torch.cat([embeddings, readout], dim=1),
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state.float()
        prompt = hidden[:, : is_image.shape[1]]
        cameras = inputs.pixel_values.shape[1]
        return Hidden(
            pictures=prompt[is_image].unflatten(0, (count, cameras, -1)),
            readout=hidden[:, -len(self.readout) :],
            prompt=prompt,
            mask=inputs.attention_mask,
        )
