"""Small checkpoints of LeRobot's own policies, written by LeRobot's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pi0 import modeling_pi0, processor_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.processor import TokenizerProcessorStep
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from vla.processing.tokenizer import train_tokenizer

PIXELS = 32
INPUTS = {
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, PIXELS, PIXELS)),
    "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, PIXELS, PIXELS)),
    "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
}
OUTPUTS = {"action": PolicyFeature(FeatureType.ACTION, (4,))}


def make_checkpoint(
    kind: str, folder: Path, patch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Any, Any, Any]:
    """Save an untrained policy; returns it with its pipelines, as LeRobot would play it.

    Args:
        kind: "act", "diffusion", "smolvla" or "pi0".
        folder: of the checkpoint; what it refers to goes beside it.
        patch: makes pi0 small, which no setting of LeRobot's does.
        settings: of the policy, in the place of those below.
    """
    torch.manual_seed(0)
    config = {"act": _act, "diffusion": _diffusion, "smolvla": _smolvla, "pi0": _pi0}[kind](
        folder.parent, patch
    )
    for name, value in settings.items():
        setattr(config, name, value)
    policy = get_policy_class(kind)(config).eval()
    before, after = make_pre_post_processors(config, dataset_stats=statistics())
    for part in (policy, before, after):
        part.save_pretrained(folder)
    return policy, before, after


def statistics() -> dict[str, dict[str, torch.Tensor]]:
    """Of every feature: not 0 and 1, so that what is not scaled shows."""
    sizes = {key: ft.shape[:1] for key, ft in (INPUTS | OUTPUTS).items()}
    return {
        key: {
            "mean": torch.full(size, 0.3),
            "std": torch.full(size, 0.2),
            "min": torch.full(size, -0.5),
            "max": torch.full(size, 0.7),
        }
        for key, size in sizes.items()
    }


def _common() -> dict[str, Any]:
    return {"input_features": dict(INPUTS), "output_features": dict(OUTPUTS), "device": "cpu"}


def _act(beside: Path, patch: pytest.MonkeyPatch) -> ACTConfig:
    return ACTConfig(
        **_common(),
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
        chunk_size=3,
        n_action_steps=3,
    )


def _diffusion(beside: Path, patch: pytest.MonkeyPatch) -> DiffusionConfig:
    return DiffusionConfig(
        **_common(),
        pretrained_backbone_weights=None,
        use_group_norm=True,
        n_obs_steps=2,
        horizon=8,
        n_action_steps=3,
        down_dims=(16, 32),
        n_groups=4,
        diffusion_step_embed_dim=16,
        num_inference_steps=2,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """With the tokens that SmolVLM's processor asks for by name."""
    tokenizer = train_tokenizer(["push the block to the red target"], vocab_size=512)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=tokenizer.pad_token,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )


def _smolvla(beside: Path, patch: pytest.MonkeyPatch) -> SmolVLAConfig:
    tokenizer = _tokenizer()
    attention = {"hidden_size": 32, "num_attention_heads": 2}
    vlm = SmolVLMConfig.from_dict(
        {
            "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
            "pad_token_id": tokenizer.pad_token_id,
            "scale_factor": 2,
            "vision_config": {
                **attention,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "image_size": PIXELS,
                "patch_size": 8,
            },
            "text_config": {
                **attention,
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
            },
        }
    )
    folder = beside / "smolvlm"
    vlm.save_pretrained(folder)
    SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), chat_template=""
    ).save_pretrained(folder)
    return SmolVLAConfig(
        **_common(),
        vlm_model_name=str(folder),
        resize_imgs_with_padding=(PIXELS, PIXELS),
        num_vlm_layers=2,
        expert_width_multiplier=0.5,
        chunk_size=3,
        n_action_steps=3,
        num_steps=2,
    )


def _pi0(beside: Path, patch: pytest.MonkeyPatch) -> PI0Config:
    def small_gemma(variant: str) -> modeling_pi0.GemmaConfig:
        width = {"gemma_2b": 32, "gemma_300m": 16}[variant]
        return modeling_pi0.GemmaConfig(width, 1, 32, 2, 1, 16)

    full = modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma

    def small_paligemma(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 32, 1, 2
        vision.intermediate_size = vision.projection_dim = 32
        return full(config=config)

    patch.setattr(modeling_pi0, full.__name__, small_paligemma)
    patch.setattr(modeling_pi0, "get_gemma_config", small_gemma)
    folder = beside / "paligemma"
    _tokenizer().save_pretrained(folder)

    def local_tokenizer(tokenizer_name: str, **settings: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(tokenizer_name=str(folder), **settings)

    patch.setattr(processor_pi0, "TokenizerProcessorStep", local_tokenizer)
    return PI0Config(
        **_common(),
        image_resolution=(28, 28),
        chunk_size=3,
        n_action_steps=3,
        num_inference_steps=2,
    )
