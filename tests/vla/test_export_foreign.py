"""Policies on pretrained backbones as exported folders: they decide as in torch.

Parts are compared without exporting anything; whole exports are `slow`, and each compares its own
decisions and is refused where they differ.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from example_robot import SPEC, make_statistics
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import CLIPImageProcessor
from vla_runtime.exported.prompts import Prompts
from vla_runtime.loading import load_policy

from vla.deploy.export import export_policy, prompt_settings
from vla.deploy.foreign_backbones import exportable
from vla.deploy.image_processing import ImageProcessing
from vla.deploy.image_resize import ResizeBytes, resize_weights
from vla.deploy.onnx_graphs import ExportError
from vla.deploy.parity import compare_decisions, compare_prompts, random_observations
from vla.deploy.prompt_settings import find_settings, tokenizer_json
from vla.deploy.reference import Reference
from vla.model.backbone import BackboneConfig
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, vlm_policy
from vla.processing.embodiments import Embodiment
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import ProcessorConfig, collate
from vla.processing.prompts import ForeignPrompts

EXPORTED = ("smolvlm", "idefics3", "paligemma", "siglip")
WORDS = ("push the red block to the blue zone", "Lift 3 blocks!", "")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VLAPolicy]:
    """A policy on each architecture."""
    folder = tmp_path_factory.mktemp("models")
    policies = {name: policy_on(tiny_models.make(name, folder)) for name in EXPORTED}
    return policies | {"qwen2_5_vl": policy_on(tiny_models.make("qwen2_5_vl", folder), (56, 56))}


def policy_on(folder: Path, size_px: tuple[int, int] | None = None) -> VLAPolicy:
    """An untrained policy on a pretrained model; its processor is given images of this size."""
    torch.manual_seed(0)
    robots = {SPEC.robot: Embodiment(SPEC, make_statistics())}
    config = ProcessorConfig(image_size_px=size_px)
    policy = vlm_policy(str(folder), BackboneConfig(), robots, VLAConfig(), config)
    policy.model.eval()
    return policy


# images


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("before", [(56, 56), (31, 50)])
@pytest.mark.parametrize("after", [(28, 28), (56, 40), (64, 96), (31, 96)])
def test_images_are_resized_to_the_same_bytes(
    before: tuple[int, int], after: tuple[int, int], kernel: str
) -> None:
    """Smaller, larger and along one axis; not one level differs from Pillow or torchvision."""
    images = torch.randint(256, (2, 3, *before), dtype=torch.uint8)
    images[0] = images[0] // 128 * 255  # at such edges kernels with negative parts overshoot
    for image in images:
        before_resize = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.array(
            before_resize.resize((after[1], after[0]), Image.Resampling[kernel.upper()])
        )
        found = ResizeBytes(before, after, kernel, "pillow")(image)
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)
    if kernel != "lanczos":  # which torchvision does not have
        whole = resize(images, [*after], InterpolationMode(kernel), antialias=True)
        found = ResizeBytes(before, after, kernel, "torchvision")(images)
        assert torch.equal(found, whole.float())


@pytest.mark.parametrize("name", EXPORTED)
def test_images_become_what_the_processor_makes(name: str, backbones: dict[str, VLAPolicy]) -> None:
    """Its own resizes and its own normalisation."""
    processor = backbones[name].processor
    images = torch.randint(256, (2, 2, 3, 56, 56), dtype=torch.uint8)
    expected = processor.prompts.images(images)[0]["pixel_values"]
    made = ImageProcessing(processor.language, (56, 56))(images.flatten(0, 1))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(made.unflatten(0, (2, 2)), expected, rtol=0, atol=1e-6)


def test_weights_of_a_resize_are_those_of_the_kernel() -> None:
    """To half the size a line of weights is a triangle; every row sums to 1, at the edges too."""
    weights = resize_weights(8, 4, "bilinear")
    np.testing.assert_allclose(weights[1], [0, 0.125, 0.375, 0.375, 0.125, 0, 0, 0])
    for kernel in ("bilinear", "bicubic", "lanczos"):
        for after in (3, 8, 21):
            np.testing.assert_allclose(resize_weights(8, after, kernel).sum(1), 1)


def test_an_image_that_keeps_its_size_keeps_its_bytes() -> None:
    """No pass, and no rounding."""
    images = torch.randint(256, (1, 3, 5, 7), dtype=torch.uint8)
    assert torch.equal(ResizeBytes((5, 7), (5, 7), "bicubic", "pillow")(images), images.float())


@pytest.mark.parametrize("size_px", [(30, 56), (56, 31)])
def test_oblong_images_are_processed_alike(
    size_px: tuple[int, int], backbones: dict[str, VLAPolicy]
) -> None:
    """SmolVLM enlarges in proportion before it squares."""
    language: Any = backbones["smolvlm"].processor.language
    images = torch.randint(256, (3, 3, *size_px), dtype=torch.uint8)
    expected = language.image_processor(images=[[*images]], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ImageProcessing(language, size_px)(images), expected)


@pytest.mark.parametrize("size_px", [(40, 40), (40, 61), (61, 40)])
def test_images_are_cropped_alike(size_px: tuple[int, int]) -> None:
    """CLIP keeps the middle of an image whose shorter side it has resized."""
    crop = {"height": 28, "width": 28}
    theirs = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop)
    images = torch.randint(256, (3, 3, *size_px), dtype=torch.uint8)
    expected = theirs(images=[*images], return_tensors="pt")["pixel_values"]
    processor: Any = SimpleNamespace(image_processor=theirs)
    torch.testing.assert_close(ImageProcessing(processor, size_px)(images), expected)


# backbones


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exportable_backbone_decides_as_before(
    name: str, backbones: dict[str, VLAPolicy]
) -> None:
    """From bytes; with instructions of different lengths in one batch."""
    policy = backbones[name]
    seen = random_observations(SPEC, SPEC.proprio.low, SPEC.proprio.high, 3)
    batch, processor, state = collate(seen, SPEC), policy.processor, policy.initial_state(3)
    expected, _ = policy.forward(batch, state)
    texts = processor.prompts.texts(batch.instructions)
    inputs = ModelInputs(
        processor.stack_images([batch.images[camera.name] for camera in SPEC.cameras]),
        texts["input_ids"],
        texts["attention_mask"],
        batch.proprio,
        processor.present.expand(3, -1),
    )
    with torch.no_grad():
        found, _ = exportable(policy).network(inputs, state.evidence)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EXPORTED)
def test_prompts_are_made_without_transformers(
    name: str, backbones: dict[str, VLAPolicy], tmp_path: Path
) -> None:
    """The same tokens and masks, and the same refusals."""
    prompts = backbones[name].processor.prompts
    assert isinstance(prompts, ForeignPrompts)
    settings = prompt_settings(backbones[name])
    assert settings.length == prompts.length
    assert settings.max_text_tokens == settings.length - len(settings.prefix)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer_json(prompts.tokenizer), encoding="utf-8")
    alone = Prompts(file, settings)
    for words in WORDS:
        ids, mask = alone.rows(words)
        expected = prompts.texts([words])
        np.testing.assert_array_equal(ids, expected["input_ids"].numpy())
        np.testing.assert_array_equal(mask, expected["attention_mask"].numpy())
    for refusing in (alone.rows, lambda words: prompts.texts([words])):
        with pytest.raises(ValueError, match=r"reads \['<pad>'\] as more than words"):
            refusing("push <pad>")
    if prompts.max_text_tokens < 64:
        for refusing in (alone.rows, lambda words: prompts.texts([words])):
            with pytest.raises(ValueError, match=r"tokens .*shorten it"):
                refusing("xyz " * 40)
    else:  # cut behind the same word
        ids, _ = alone.rows("xyz " * 40)
        np.testing.assert_array_equal(ids, prompts.texts(["xyz " * 40])["input_ids"].numpy())
    if prompts.image_token_id is not None:
        assert settings.prefix.count(prompts.image_token_id) == 2 * prompts.image_tokens_per_camera
        assert settings.padding_side == "left"


def test_what_cannot_be_exported_is_refused(
    backbones: dict[str, VLAPolicy], tmp_path: Path
) -> None:
    """With the reason and what can be, before anything is written."""
    with pytest.raises(ExportError, match=r"'qwen2_5_vl'.*'paligemma'.*two towers"):
        export_policy(backbones["qwen2_5_vl"], tmp_path / "out", {}, lambda exported: {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_image_splitting": True}, "into tiles"),
        ({"do_normalize": False}, "does not normalise"),
        (
            {"do_center_crop": True, "crop_size": {"height": 9, "width": 99}},
            r"crops .* to \(9, 99\)",
        ),
        ({"max_image_size": None, "size": {"longest_edge": 9, "shortest_edge": 9}}, "resizes to"),
        ({"resample": 0}, "nearest.*bicubic"),
    ],
)
def test_other_image_processors_are_refused(
    backbones: dict[str, VLAPolicy],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    """Those that do more than resize and normalise."""
    language: Any = backbones["smolvlm"].processor.language
    for name, value in change.items():
        monkeypatch.setattr(language.image_processor, name, value, raising=False)
    with pytest.raises(ExportError, match=message):
        ImageProcessing(language, (56, 56))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_a_policy_on_a_pretrained_model_is_exported(
    name: str, backbones: dict[str, VLAPolicy], tmp_path: Path
) -> None:
    """Its folder decides as the policy in torch, from the same words."""
    policy = backbones[name]
    reference = Reference(policy)
    seen = random_observations(SPEC, SPEC.proprio.low, SPEC.proprio.high, 4)

    def check(exported: Any) -> dict[str, Any]:
        found = compare_decisions(reference, exported, seen)
        return {"open_loop": found, "instructions": compare_prompts(policy, exported, WORDS)}

    found = export_policy(policy, tmp_path / "out", {"checkpoint": "x"}, check)
    assert found["instructions"] > len(WORDS)  # odd ones are compared, too
    loaded = load_policy(str(tmp_path / "out"))
    chunk, _ = loaded.decide(seen[0], loaded.initial_state())
    assert chunk.actions.shape == (policy.chunk_length, SPEC.action.dim)


# prompts


def toy_tokenizer() -> str:
    """Words at spaces; the end token is 9."""
    words = {"push": 0, "lift": 1, "it": 2, "now": 3, "</s>": 9, "?": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer.to_str()


def test_settings_are_found_by_comparison() -> None:
    """What stands around the words as tokens, and text that is joined to them."""
    alone = Tokenizer.from_str(toy_tokenizer())

    def encode(text: str) -> list[int]:
        return [7, 7, *alone.encode(f"{text} now").ids, 9]

    around = (("", ""), ("", " now"))
    found = find_settings(toy_tokenizer(), encode, around, pad=5, length=12, padding_side="left")
    assert (found.prefix, found.suffix) in [((7, 7), (9,)), ((7, 7), (3, 9))]
    assert (found.length, found.max_text_tokens, found.pad) == (12, 10, 5)


def test_prompts_that_only_the_processor_makes_are_refused() -> None:
    """Such as words in another order."""
    alone = Tokenizer.from_str(toy_tokenizer())
    with pytest.raises(ExportError, match="does not give the tokens"):
        find_settings(
            toy_tokenizer(), lambda text: alone.encode(text).ids[::-1], (("", ""),), 5, 40, "right"
        )


def test_a_tokenizer_in_python_is_refused() -> None:
    """By the name of its class."""
    with pytest.raises(ExportError, match="int is no fast tokenizer"):
        tokenizer_json(3)
