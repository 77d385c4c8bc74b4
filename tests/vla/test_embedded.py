"""The embedded backbone takes shortcuts through transformers' SmolVLM, which change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vla.checkpoint.initialisation import GROUNDED
from vla.contract import ObservationBatch, RobotSpec
from vla.model.embedded import EmbeddedBackbone, EmbeddedConfig, embedded_backbone
from vla.policy import load_policy
from vla.processing.model_inputs import ModelInputs, normalise_pixels
from vla.processing.tokenizer import train_tokenizer


def make(size: int, patch: int, shuffle: int) -> EmbeddedBackbone:
    """A small one."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["push the block"], vocab_size=400)
    sizes = EmbeddedConfig(32, 1, 1, 2, patch, shuffle)
    return embedded_backbone(sizes, tokenizer, size).eval()


def _observation(spec: RobotSpec, rows: int) -> ObservationBatch:
    """Grey images of a robot at rest."""
    images = {
        c.name: torch.full((rows, c.height, c.width, 3), 90, dtype=torch.uint8)
        for c in spec.cameras
    }
    proprio, words = torch.zeros(rows, spec.proprio.dim), "push the block to the red target"
    return ObservationBatch(images, proprio, [words] * rows, torch.zeros(rows))


# In the last one transformers' rounding puts some patches into the place of their neighbours.
@pytest.mark.parametrize(("size", "patch", "shuffle"), [(96, 24, 1), (96, 16, 2), (147, 3, 7)])
def test_it_sees_as_transformers_does(size: int, patch: int, shuffle: int) -> None:
    """Features of images are those of `get_image_features`."""
    backbone = make(size, patch, shuffle)
    pixels = torch.rand(2, 3, 3, size, size)
    model = backbone.language_model.model
    expected = model.get_image_features(pixels, return_dict=True).pooler_output
    seen = backbone._encode_images(pixels.flatten(0, 1))
    torch.testing.assert_close(seen, expected)
    # Patches are embedded in another way while they learn: the gradient is the same.
    weight = model.vision_model.embeddings.patch_embedding.weight
    (ours,) = torch.autograd.grad(seen.square().sum(), weight)
    (theirs,) = torch.autograd.grad(expected.square().sum(), weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(backbone._encode_images(pixels.flatten(0, 1)), expected)


def test_images_stand_wherever_the_prompt_keeps_places() -> None:
    """Before, between and after words, row by row, as in transformers' own forward pass."""
    backbone = make(96, 48, 1)
    image = backbone.language_model.config.image_token_id
    ids = torch.full((2, 12), 100)
    ids[0, 2:10] = ids[1, :4] = ids[1, 8:] = image  # two images of four tokens
    pixels = torch.randint(256, (2, 2, 3, 96, 96), dtype=torch.uint8)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        hidden = backbone(ModelInputs(pixels, ids, mask, torch.zeros(2, 1), mask[:, :4]))
        expected = backbone.language_model.model(
            input_ids=ids, attention_mask=mask.long(), pixel_values=normalise_pixels(pixels)
        ).last_hidden_state
    torch.testing.assert_close(hidden.prompt, expected, rtol=1e-4, atol=1e-5)
    images = expected[ids == image].unflatten(0, (2, 2, 4))
    torch.testing.assert_close(hidden.images, images, rtol=1e-4, atol=1e-5)
    assert hidden.readout.shape == (2, 1, 32)


def test_decisions_are_in_float32_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor that multiplies bfloat16, on which training and `bf16` make use of it."""
    dtypes = []

    def record(module: Any, args: Any, output: torch.Tensor) -> None:
        dtypes.append(output.dtype)

    monkeypatch.setattr("vla.model.backbone.multiplies_bfloat16", lambda device: True)
    for bf16 in (False, True):
        policy = load_policy(GROUNDED, bf16=bf16)
        text = policy.model.backbone.language_model.model.text_model
        text.layers[0].mlp.up_proj.register_forward_hook(record)
        policy.act(_observation(policy.spec, 1))
    policy.model.backbone.bf16 = False
    policy.model.train()
    inputs = policy.processor.encode_observation(_observation(policy.spec, 1))
    policy.model.backbone(inputs)
    assert dtypes == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_a_compiled_policy_acts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the compiler's front end; what it generates then is torch's own affair."""
    plain, compiled = load_policy(GROUNDED), load_policy(GROUNDED)
    seen = _observation(plain.spec, 2)
    real = torch.compile

    def front(function: Any, options: dict[str, bool]) -> Any:
        assert options == {"cpp_wrapper": True}
        return real(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", front)
    compiled.compile()
    torch.testing.assert_close(compiled.act(seen), plain.act(seen))
