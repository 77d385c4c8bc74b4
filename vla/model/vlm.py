"""Any image-text model of transformers as a backbone.

Its own `forward` runs unchanged, with its own merging of images, positions and masks. A few token
ids are appended to the prompt, and where the model looks up their embeddings it finds the learned
readouts instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vla.cut_layers import cut_layers
from vla.model.backbone import Backbone, BackboneConfig, Hidden
from vla.model.tuning import tune
from vla.processing.model_inputs import ModelInputs

# Token types of what follows the prompt. In PaliGemma the prompt has bidirectional attention (0),
# the answer causal attention (1). Everywhere else 0 is a word.
_ANSWER_TYPES = {"paligemma": {"token_type_ids": 1}}


def answer_types(architecture: str) -> dict[str, int]:
    """Inputs of this architecture that hold a type for every token, and the type of an answer."""
    return _ANSWER_TYPES.get(architecture, {})


class VLMBackbone(Backbone):
    """Hidden states of an image-text model's language model.

    Args:
        model: as from `from_pretrained`; its head over the vocabulary is dropped.
        config: how it is used.
        image_tokens: tokens that one image becomes.
        readouts: learned positions after the prompt.

    Raises:
        ValueError: the model has no image token or not the layers that the configuration asks for.
    """

    def __init__(
        self, model: PreTrainedModel, config: BackboneConfig, image_tokens: int, readouts: int = 1
    ):
        super().__init__()
        self.config, self.image_tokens = config, image_tokens
        text = model.config.get_text_config()
        self.image_token_id = getattr(model.config, "image_token_id", None)
        if self.image_token_id is None:
            raise ValueError(f"{model.config.model_type!r} keeps no image tokens in its prompts")
        # As it was before `cut_layers`, which is applied again when this is rebuilt.
        self._saved = model.config.to_dict()
        self.width = int(text.hidden_size)
        base: Any = model.base_model
        cut_layers(base.get_decoder(), int(text.num_hidden_layers), config.layer)
        tune(base, config)
        self.language_model = base
        self._answer_types = answer_types(model.config.model_type)
        table = base.get_input_embeddings()
        # As large as the embeddings that the model is used to, scaled as it scales them.
        with torch.no_grad():
            size = table(torch.arange(min(512, table.num_embeddings))).float().std()
        self.readout = nn.Parameter(torch.randn(readouts, self.width) * size)

    def forward(self, inputs: ModelInputs) -> Hidden:
        """Hidden states of the chosen layer."""
        tensors, readouts = inputs.for_model(), len(self.readout)
        words = tensors["input_ids"].shape
        filler = int(self.image_token_id == 0)
        endings = {"input_ids": filler, "attention_mask": 1, **self._answer_types}
        for name, tensor in tensors.items():
            if tensor.shape == words and name not in inputs.flat:
                tensors[name] = F.pad(tensor, (0, readouts), value=endings.get(name, 0))
        tensors["pixel_values"] = tensors["pixel_values"].to(self.language_model.dtype)
        with self._readouts_embedded():
            output = self.language_model(**tensors, use_cache=False, return_dict=True)
        hidden = output.last_hidden_state
        prompt = hidden[:, :-readouts]
        images = prompt[inputs.input_ids == self.image_token_id].float()
        images = images.unflatten(0, (len(inputs), -1, self.image_tokens))
        return Hidden(images, hidden[:, -readouts:].float(), prompt, inputs.attention_mask)

    @contextmanager
    def _readouts_embedded(self) -> Iterator[None]:
        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if torch.is_autocast_enabled(output.device.type):
                # A lookup ignores autocast, and some models put the vision tower's numbers, which
                # obey it, among these without a cast.
                output = output.to(torch.get_autocast_dtype(output.device.type))
            readout = self.readout.to(output.dtype).expand(len(output), -1, -1)
            return torch.cat([output[:, : -len(self.readout)], readout], dim=1)

        hook = self.language_model.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()

    def to_dict(self) -> dict[str, Any]:
        """The model's configuration and how it is used."""
        return {
            "kind": "vlm",
            "options": asdict(self.config),
            "image_tokens": self.image_tokens,
            "model": self._saved,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], readouts: int) -> VLMBackbone:
        """An untrained model of the architecture that `to_dict` described."""
        config, fields = BackboneConfig.from_dict(data["options"]), dict(data["model"])
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(fields.pop("model_type"), **fields),
            dtype=getattr(torch, config.dtype),
        )
        return cls(model, config, data["image_tokens"], readouts)
