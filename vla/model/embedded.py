"""The embedded backbone: a small SmolVLM made here, for a robot's images and instructions.

It is called part by part instead of through its own `forward`, which saves the head over the
vocabulary and the checks for missing images. Its weights are float32. It trains in
bfloat16 where the device multiplies such matrices natively, and decides in float32 unless asked
(`Backbone.bf16`), so that a robot and every evaluation compute the same.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerBase,
    SmolVLMConfig,
)

from vla.model.backbone import Backbone, Hidden, reduced_precision
from vla.model.conv_tower import ConvTower
from vla.processing.language_tower import LanguageTower
from vla.processing.model_inputs import ModelInputs, normalise_pixels
from vla.processing.tokenizer import IMAGE
from vla.settings import require_numbers

_NO_WORDS: dict[str, Any] = {
    "image_token_id": -1,
    # A table of one row, in which nothing is looked up.
    "vocab_size": 1,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
}
"""Settings of a model whose words come from a language tower."""


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
        grid: tokens a side of an image from a convolutional tower (`vla.model.conv_tower`), and one
            more of the whole image, in the place of patches and vision tower; 0 for those.
    """

    width: int = 128
    vision_layers: int = 3
    text_layers: int = 3
    heads: int = 4
    patch_size: int = 24
    shuffle: int = 1
    grid: int = 0

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("width", "vision_layers", "text_layers", "heads", "patch_size", "shuffle"),
        )
        # Rotary positions turn a head's numbers in pairs.
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} does not divide into an even number for each of "
                f"{self.heads} heads: give a multiple of {2 * self.heads}"
            )

    def image_tokens(self, image_size: int) -> int:
        """Tokens that one square image becomes.

        Raises:
            ValueError: the image does not divide into whole tokens.
        """
        if self.grid:
            return self.grid**2 + 1
        step = self.patch_size * self.shuffle
        if image_size % step:
            raise ValueError(f"images of {image_size} px do not divide into tokens of {step} px")
        return (image_size // step) ** 2


def embedded_backbone(
    config: EmbeddedConfig,
    language: PreTrainedTokenizerBase | LanguageTower,
    image_size: int,
    readouts: int = 1,
) -> EmbeddedBackbone:
    """A freshly initialised SmolVLM of the given sizes for these words and this image size."""
    attention = {"num_attention_heads": config.heads, "hidden_size": config.width}
    is_tower = isinstance(language, LanguageTower)
    words = dict(_NO_WORDS) if is_tower else _vocabulary(language)
    smolvlm = SmolVLMConfig.from_dict(
        {
            "image_token_id": words.pop("image_token_id"),
            "pad_token_id": words["pad_token_id"],
            # Of a language tower's hidden states; 0 where the model has words of its own.
            "language_width": language.width if is_tower else 0,
            "scale_factor": config.shuffle,
            # The vocabulary head of `vla.model.vqa` is the embedding table, so it adds no weights.
            "tie_word_embeddings": True,
            # The convolutional tower needs both to be rebuilt; other readers ignore them.
            "grid": config.grid,
            "image_size": image_size,
            "vision_config": {
                **attention,
                "intermediate_size": 4 * config.width,
                "num_hidden_layers": 0 if config.grid else config.vision_layers,
                "image_size": image_size,
                "patch_size": config.patch_size,
            },
            "text_config": {
                **attention,
                "model_type": "llama",
                "intermediate_size": 3 * config.width,
                "num_hidden_layers": config.text_layers,
                "num_key_value_heads": config.heads,
                "max_position_embeddings": 512,
                **words,
            },
        }
    )
    return EmbeddedBackbone(smolvlm, readouts)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


class EmbeddedBackbone(Backbone):
    """A SmolVLM without pretrained weights; all of it trains.

    Args:
        config: its sizes.
        readouts: learned positions after the prompt.
    """

    def __init__(self, config: SmolVLMConfig, readouts: int = 1):
        super().__init__()
        self.language_model = AutoModelForImageTextToText.from_config(config)
        self.width = int(config.get_text_config().hidden_size)
        self.tower: ConvTower | None = None
        if grid := getattr(config, "grid", 0):
            self.tower = ConvTower(getattr(config, "image_size"), grid, self.width)  # noqa: B009
            del self.language_model.model.vision_model, self.language_model.model.connector
        self.words: nn.Module | None = None
        if language_width := getattr(config, "language_width", 0):
            # Hidden states of one tower differ in scale by hundreds: normalised, then projected.
            self.words = nn.Sequential(
                nn.LayerNorm(language_width, elementwise_affine=False),
                nn.Linear(language_width, self.width),
            )
        self.readout = nn.Parameter(torch.randn(readouts, self.width) * 0.02)

    def forward(self, inputs: ModelInputs) -> Hidden:
        """Last hidden states, float32."""
        device = inputs.pixel_values.device
        reduced = reduced_precision(device) if self.training else nullcontext()
        # On a CPU the fused attention's backward pass takes five times as long for so few tokens.
        fused = device.type != "cpu" or not torch.is_grad_enabled()
        with reduced, nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            return self._hidden(inputs)

    def placed_tokens(self, image_tokens: int) -> int:
        """As in `Backbone`; one token of a convolutional tower is of the whole image."""
        return image_tokens if self.tower is None else image_tokens - 1

    def _hidden(self, inputs: ModelInputs) -> Hidden:
        model = self.language_model.model
        count, cameras = inputs.pixel_values.shape[:2]
        # [n, cameras, 3, size, size]
        pixels = normalise_pixels(inputs.pixel_values, self.language_model.dtype)
        # [n, cameras * t, width]: every image alone through the vision tower, then side by side.
        summary = None
        if self.tower is None:
            images = self._encode_images(pixels.flatten(0, 1)).unflatten(0, (count, cameras))
        else:
            images, summary = self.tower(pixels)
        embeddings, mask, positions = self._join(images.flatten(1, 2), inputs)
        readout = self.readout.to(embeddings.dtype).expand(count, -1, -1)
        readouts = readout.shape[1]
        tokens, device = embeddings.shape[1], embeddings.device
        usual = tokens if self.prompt_tokens is None else self.prompt_tokens
        behind = usual + torch.arange(readouts, device=device)
        # The readouts come last, so that under causal attention they see the whole prompt.
        hidden: Tensor = model.text_model(
            inputs_embeds=torch.cat([embeddings, readout], dim=1),
            attention_mask=F.pad(mask, (0, readouts), value=True),
            position_ids=torch.cat([torch.arange(tokens, device=device), behind])[None],
            use_cache=False,  # one pass, nothing is generated
        ).last_hidden_state.float()
        prompt = hidden[:, :-readouts]
        at_images = prompt.gather(1, positions).unflatten(1, (cameras, -1))
        if self.tower is not None:
            # The last token is of the whole image, so nothing can be pointed at with it.
            at_images = at_images[:, :, :-1]
        readout = hidden[:, -readouts:]
        if summary is not None:
            # The actor's readout, the last one, needs no attention to see the images.
            readout = torch.cat([readout[:, :-1], readout[:, -1:] + summary[:, None]], dim=1)
        return Hidden(at_images, readout, prompt, mask)

    def _join(self, images: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Images and words in one sequence.

        Args:
            images: [n, cameras * t, width].
            inputs: bring the words.

        Returns:
            Embeddings [n, tokens, width], mask bool [n, tokens], False at padding, and positions of
            the images int64 [n, cameras * t, width], in order.
        """
        count = images.shape[1]
        if self.words is not None:
            words = self.words(inputs.extra["words"])  # [n, words, width]
            embeddings = torch.cat([images.to(words.dtype), words], dim=1)
            positions = torch.arange(count, device=images.device)[:, None].expand(images.shape)
            return embeddings, F.pad(inputs.attention_mask, (count, 0), value=True), positions
        model = self.language_model
        embeddings = model.get_input_embeddings()(inputs.input_ids)  # [n, tokens, width]
        # Their number is known beforehand, so nothing waits for the device, and the whole can be
        # compiled or captured as a graph.
        is_image = inputs.input_ids == model.config.image_token_id
        # Earlier tokens rank higher, so no two are equal: a stable sort has no ONNX operator.
        rank = torch.arange(is_image.shape[1], 0, -1, device=is_image.device)
        positions = (is_image * rank).topk(count, dim=1).indices
        positions = positions[..., None].expand(-1, -1, self.width)
        # The tokens in those positions only reserve room: their own embeddings are replaced.
        embeddings = embeddings.scatter(1, positions, images.to(embeddings.dtype))
        return embeddings, inputs.attention_mask, positions

    def with_tower(self, projection: nn.Linear) -> EmbeddedBackbone:
        """The same weights, but words are a language tower's hidden states, projected by this.

        Nothing is left of the words that it had.
        """
        data = self.language_model.config.to_dict()
        text = {**data["text_config"], **_NO_WORDS}
        config = {
            **data,
            "image_token_id": text.pop("image_token_id"),
            "pad_token_id": None,
            "language_width": projection.in_features,
            "text_config": text,
        }
        made = EmbeddedBackbone(SmolVLMConfig.from_dict(config), len(self.readout))
        lost = ("language_model.lm_head", "language_model.model.text_model.embed_tokens", "words.")
        kept = {n: w for n, w in self.state_dict().items() if not n.startswith(lost)}
        made.load_state_dict(made.state_dict() | kept)
        assert isinstance(made.words, nn.Sequential)
        made.words[1] = projection
        made.prompt_tokens = self.prompt_tokens
        return made

    def _encode_images(self, pixels: Tensor) -> Tensor:
        """Square images [n, 3, size, size] as tokens [n, tokens, width].

        The model's own `get_image_features` first looks for missing images and patches.
        """
        model = self.language_model.model
        tower, table = model.vision_model, model.vision_model.embeddings
        patches = self._embed_patches(table.patch_embedding, pixels)
        hidden = tower.encoder(patches + table.position_embedding(self._positions(table)))
        return model.connector(tower.post_layernorm(hidden.last_hidden_state))

    def _embed_patches(self, embedding: nn.Conv2d, pixels: Tensor) -> Tensor:
        """Square images [n, 3, size, size] as tokens [n, patches, width], row by row."""
        if not (torch.is_grad_enabled() and embedding.weight.requires_grad):
            return embedding(pixels).flatten(2).transpose(1, 2)
        # A convolution whose stride is its kernel is one product a patch: the same but for
        # rounding, and its backward pass takes a tenth of the time on a CPU.
        side = embedding.kernel_size[0]
        # [n, patches, 3 * side * side]
        patches = F.unfold(pixels, side, stride=side).transpose(1, 2)
        return F.linear(patches, embedding.weight.flatten(1), embedding.bias)

    def _positions(self, table: Any) -> Tensor:
        # [patches], row by row. Bucketed as the model does it, whose rounding may give two patches
        # one position: the shipped weights were trained with that.
        side, device = table.num_patches_per_side, table.position_embedding.weight.device
        bounds = torch.arange(1 / side, 1.0, 1 / side, device=device)
        where = torch.arange(side, dtype=torch.float32, device=device) * (1.0 / side)
        line = torch.bucketize(where.clamp(max=1.0 - 1e-6), bounds, right=True)
        return (line[:, None] * side + line).flatten()

    def to_dict(self) -> dict[str, Any]:
        """The SmolVLM's configuration."""
        return {"kind": "embedded", **self.language_model.config.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], readouts: int) -> EmbeddedBackbone:
        """An untrained model of the architecture that `to_dict` described."""
        return cls(SmolVLMConfig.from_dict(data), readouts)
