"""Small checkpoints of the architectures, made with the library's real classes and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

WORDS = ("push the red block to the blue zone", "lift the green block", "move to the red ball")
WIDTH, LAYERS = 32, 3
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
_CHAT = (
    "{% for m in messages %}User:{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "IMAGE_PLACEHOLDER{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}Assistant:"
)


def make_tokenizer(*special: str, **options: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE with these special tokens after padding, start and end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(special),
        **options,
    )


def _idefics_like(folder: Path, config: Any, model: Any, make_images: Any, wrap: Any) -> None:
    special = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
    tokenizer = make_tokenizer(*special)
    sizes = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": 0,
        "scale_factor": 2,
        "vision_config": _VISION,
        "text_config": {"model_type": "llama", "vocab_size": len(tokenizer), **_TEXT},
    }
    model(config.from_dict(sizes)).save_pretrained(folder)
    image_processor = make_images(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    chat = _CHAT.replace("IMAGE_PLACEHOLDER", "<image>")
    wrap(image_processor, tokenizer, 4, chat).save_pretrained(folder)


def smolvlm(folder: Path) -> None:
    """SmolVLM: 4 tokens an image."""

    def wrap(image_processor: Any, tokenizer: Any, tokens: int, chat: str) -> SmolVLMProcessor:
        video = SmolVLMVideoProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        )
        return SmolVLMProcessor(
            image_processor, tokenizer, video, image_seq_len=tokens, chat_template=chat
        )

    model = SmolVLMForConditionalGeneration
    _idefics_like(folder, SmolVLMConfig, model, SmolVLMImageProcessor, wrap)


def idefics3(folder: Path) -> None:
    """Idefics 3: 4 tokens an image."""

    def wrap(image_processor: Any, tokenizer: Any, tokens: int, chat: str) -> Idefics3Processor:
        return Idefics3Processor(
            image_processor, tokenizer, image_seq_len=tokens, chat_template=chat
        )

    model = Idefics3ForConditionalGeneration
    _idefics_like(folder, Idefics3Config, model, Idefics3ImageProcessor, wrap)


def paligemma(folder: Path) -> None:
    """PaliGemma: 16 tokens an image."""
    image_processor = SiglipImageProcessor(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor, make_tokenizer("<image>"))
    vision = {
        "model_type": "siglip_vision_model",
        "projection_dim": WIDTH,
        "vision_use_head": False,
    }
    config = PaliGemmaConfig.from_dict(
        {
            "image_token_index": processor.image_token_id,
            "projection_dim": WIDTH,
            "hidden_size": WIDTH,
            "vision_config": {**_VISION, **vision},
            "text_config": {
                "model_type": "gemma",
                "vocab_size": len(processor.tokenizer),
                "head_dim": 16,
                **_TEXT,
            },
        }
    )
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def qwen2_5_vl(folder: Path) -> None:
    """Qwen 2.5 VL: a token for 28 x 28 pixels."""
    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = make_tokenizer(*special)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(special))
    config = Qwen2_5_VLConfig.from_dict(
        {
            "image_token_id": image,
            "video_token_id": video,
            "vision_start_token_id": start,
            "vision_end_token_id": end,
            "text_config": {
                "vocab_size": len(tokenizer),
                **_TEXT,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 3, 3],
                },
            },
            "vision_config": {
                "depth": LAYERS,
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "fullatt_block_indexes": [1],
            },
        }
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    chat = _CHAT.replace("IMAGE_PLACEHOLDER", "<|vision_start|><|image_pad|><|vision_end|>")
    limits = {"min_pixels": 28 * 28, "max_pixels": 112 * 112}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**limits),
        tokenizer,
        Qwen2VLVideoProcessor(**limits),
        chat_template=chat,
    ).save_pretrained(folder)


def siglip(folder: Path) -> None:
    """SigLIP: 16 patches an image, words of 24 tokens with the padding visible."""
    tokenizer = make_tokenizer(model_max_length=24, model_input_names=["input_ids"])
    text = {**_TEXT, "max_position_embeddings": 24, "vocab_size": len(tokenizer)}
    config = SiglipConfig.from_dict(
        {"text_config": {**text, "projection_size": WIDTH}, "vision_config": _VISION}
    )
    SiglipModel(config).save_pretrained(folder)
    image_processor = SiglipImageProcessor(size={"height": 28, "width": 28})
    SiglipProcessor(image_processor, tokenizer).save_pretrained(folder)


def vision_tower(folder: Path) -> None:
    """A SigLIP vision tower without words."""
    SiglipVisionModel(SiglipVisionConfig(**_VISION)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)


def text_tower(folder: Path) -> None:
    """A BERT without images."""
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (smolvlm, idefics3, paligemma, qwen2_5_vl, siglip, vision_tower, text_tower)
}


def make(name: str, folder: Path) -> Path:
    """The checkpoint of this name, below `folder`."""
    torch.manual_seed(0)
    MAKERS[name](folder / name)
    return folder / name
