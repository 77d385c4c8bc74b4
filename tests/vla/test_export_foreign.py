"""LeRobot's policies and pretrained backbones as exported folders: they decide as in torch.

The parts are compared without exporting anything; whole exports of each kind are `slow` but for
ACT's, and the export itself compares every decision and refuses a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from example_robot import SPEC, make_statistics
from foreign_checkpoints import PIXELS, make_checkpoint
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from vla_runtime.contract import ContractMismatchError
from vla_runtime.exported.folder import ExportedFolderError
from vla_runtime.exported.lerobot import (
    ExportedLeRobotPolicy,
    LeRobotState,
    denoise,
    ensemble,
)
from vla_runtime.exported.policy import Arrays
from vla_runtime.exported.prompts import Prompts
from vla_runtime.loading import load_policy

from scripts.export_lerobot import export_lerobot
from sim.tasks.fetch_arm import fetch_robot_spec
from vla.deploy.export import export_policy, prompt_settings
from vla.deploy.foreign_backbones import exportable
from vla.deploy.image_processing import ImageProcessing
from vla.deploy.image_resize import ResizeBytes
from vla.deploy.lerobot_denoising import diffusion_denoising, flow_denoising
from vla.deploy.lerobot_export import (
    LeRobotReference,
    export_lerobot_policy,
    lerobot_settings,
    torch_noise,
)
from vla.deploy.onnx_graphs import ExportError
from vla.deploy.parity import (
    ParityError,
    compare_decisions,
    compare_prompts,
    random_observations,
)
from vla.deploy.prompt_settings import tokenizer_json
from vla.deploy.reference import Reference
from vla.lerobot_plugin.foreign import ForeignPolicy, load_lerobot_policy
from vla.model.backbone import BackboneConfig
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, vlm_policy
from vla.processing.embodiments import Embodiment
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import ProcessorConfig, collate
from vla.processing.prompts import ForeignPrompts

ROBOT = fetch_robot_spec(PIXELS)
EXPORTED = ("smolvlm", "idefics3", "paligemma", "siglip")
WORDS = ("push the red block to the blue zone", "Lift 3 blocks!", "")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VLAPolicy]:
    """A policy on each architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: policy_on(tiny_models.make(name, folder)) for name in (*EXPORTED, "qwen2_5_vl")}


def policy_on(folder: Path) -> VLAPolicy:
    """An untrained policy on a pretrained model."""
    torch.manual_seed(0)
    robots = {SPEC.robot: Embodiment(SPEC, make_statistics())}
    config = ProcessorConfig(image_size_px=(56, 56))
    policy = vlm_policy(str(folder), BackboneConfig(), robots, VLAConfig(), config)
    policy.model.eval()
    return policy


def load(kind: str, folder: Path, **settings: Any) -> ForeignPolicy:
    """A small LeRobot policy, with settings of its config.json changed."""
    with pytest.MonkeyPatch.context() as patch:
        make_checkpoint(kind, folder / kind, patch)
        file = folder / kind / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return load_lerobot_policy(folder / kind, ROBOT)


def compared(foreign: ForeignPolicy) -> Callable[[ExportedLeRobotPolicy], dict[str, Any]]:
    """Compares open loop, and over an episode that is longer than a chunk."""
    reference = LeRobotReference(foreign)
    low, high = [-1.0] * foreign.spec.proprio.dim, [1.0] * foreign.spec.proprio.dim
    seen = random_observations(foreign.spec, low, high, 3)

    def check(exported: ExportedLeRobotPolicy) -> dict[str, Any]:
        states = reference.initial_state(), exported.initial_state()
        for step in range(7):
            ours, mine = reference.decide(seen[step % 3], states[0])
            theirs, other = exported.decide(seen[step % 3], states[1])
            np.testing.assert_allclose(theirs.actions, ours.actions, atol=1e-4)
            states = mine, other
        return {"open_loop": compare_decisions(reference, exported, seen)}

    return check


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> tuple[ForeignPolicy, Path]:
    """An ACT policy, and the folder to which it was exported."""
    folder = tmp_path_factory.mktemp("act")
    foreign = load("act", folder)
    export_lerobot_policy(foreign, folder / "out", {"weights": "x"}, compared(foreign))
    return foreign, folder / "out"


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
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.array(picture.resize(after[::-1], Image.Resampling[kernel.upper()]))
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
        with pytest.raises(ValueError, match=r"tokens .*shorten it"):
            refusing("xyz " * 40)
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
        ({"do_center_crop": True}, "crops"),
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
    assert found["instructions"] == len(WORDS)
    loaded = load_policy(str(tmp_path / "out"))
    chunk, _ = loaded.decide(seen[0], loaded.initial_state())
    assert chunk.actions.shape == (policy.chunk_length, SPEC.action.dim)


# LeRobot's policies: what is around their networks


def test_an_ensemble_averages_as_lerobot_does() -> None:
    """Over two chunks' length; the first decision is the prediction itself."""
    theirs, state = ACTTemporalEnsembler(0.1, 4), LeRobotState(0)
    for chunk in torch.rand(8, 4, 2):
        expected = theirs.update(chunk[None])
        found, state = ensemble(0.1, chunk.numpy(), state)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_samplers_draw_as_those_of_diffusers(kind: Any, clip: bool, prediction: str) -> None:
    """With a network that is a line, and the same noise."""
    scheduler = kind(
        num_train_timesteps=50, prediction_type=prediction, clip_sample=clip, clip_sample_range=0.7
    )
    loop = diffusion_denoising(scheduler, 5, (6, 2))
    noise = torch_noise(3, 1, (1 + 5 * loop.fresh_noise, 1, 6, 2))
    sample = torch.from_numpy(noise[0])
    torch.manual_seed(3 * 1_000_003 + 1)
    torch.randn(1, 6, 2)  # the first sample's
    for time in scheduler.timesteps:
        sample = scheduler.step(line(sample), time, sample).prev_sample
    found = denoise(loop, sampler(0.7 if clip else np.inf), {}, noise)
    np.testing.assert_allclose(found, sample[0].numpy(), atol=1e-5)


def line(sample: Any) -> Any:
    """Stands for a network."""
    return 0.8 * sample + 0.1


def sampler(clip: float) -> Callable[[Arrays], Arrays]:
    """One denoising step of `line`, as the graph computes it."""

    def step(given: Arrays) -> Arrays:
        sample = given["sample"]
        a, b, c, d, e, f = given["coefficients"][0]
        clean = np.clip(a * sample + b * line(sample), -clip, clip)
        moved = c * clean + d * sample + e * line(sample) + f * given["noise"]
        return {"next.sample": moved, "actions": moved}

    return step


def test_a_flow_is_integrated_from_noise_to_actions() -> None:
    """Euler steps of the field 0.8 x + 0.1, from time 1 to 0."""
    noise = np.ones((1, 1, 2, 3), np.float32)
    loop = flow_denoising(4, (2, 3))
    assert loop.times == (1.0, 0.75, 0.5, 0.25)
    expected = 1.0
    for _ in range(4):
        expected -= (0.8 * expected + 0.1) / 4
    np.testing.assert_allclose(denoise(loop, sampler(np.inf), {}, noise), expected, rtol=1e-6)


def test_samplers_without_a_table_are_refused() -> None:
    """By name, with those that have one."""
    with pytest.raises(ExportError, match=r"'v_prediction'.*DDIMScheduler.*'epsilon'"):
        diffusion_denoising(DDIMScheduler(prediction_type="v_prediction"), 5, (6, 2))
    with pytest.raises(ExportError, match="thresholding"):
        diffusion_denoising(DDPMScheduler(thresholding=True), 5, (6, 2))


# LeRobot's policies: whole exports


def test_an_exported_policy_decides_without_torch(act: tuple[ForeignPolicy, Path]) -> None:
    """A chunk of LeRobot's length within the limits; other observations are refused."""
    foreign, folder = act
    policy = load_policy(str(folder))
    assert isinstance(policy, ExportedLeRobotPolicy)
    assert policy.spec == foreign.spec
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    chunk, state = policy.decide(seen, policy.initial_state())
    assert chunk.actions.shape == (3, 4)
    assert (np.abs(chunk.actions) <= 1).all()
    again, _ = policy.decide(seen, state)
    np.testing.assert_array_equal(again.actions, chunk.actions)
    with pytest.raises(ContractMismatchError, match=r"proprio is not finite in"):
        policy.decide(replace(seen, proprio=np.full(5, np.nan, np.float32)), state)
    with pytest.raises(TypeError, match="memory of another policy: int"):
        policy.decide(seen, 0)
    card = (folder / "README.md").read_text()
    assert "lerobot act" in card


def test_a_difference_is_refused(act: tuple[ForeignPolicy, Path]) -> None:
    """One that is larger than allowed, with its size and dimension."""
    foreign, folder = act
    other = LeRobotReference(foreign)
    exported = ExportedLeRobotPolicy(folder)
    seen = random_observations(foreign.spec, [0.0] * 5, [1.0] * 5, 1)
    with torch.no_grad():
        foreign.policy.model.action_head.bias[1] += 0.01
    try:
        with pytest.raises(ParityError, match=r"'dy' 0\.00\d+ .* apart .*0\.0001 are allowed"):
            compare_decisions(other, exported, seen)
    finally:
        with torch.no_grad():
            foreign.policy.model.action_head.bias[1] -= 0.01


def test_a_damaged_folder_is_refused(act: tuple[ForeignPolicy, Path]) -> None:
    """Whatever kind of policy is in it."""
    file = act[1] / "policy.json"
    text = file.read_text()
    try:
        file.write_text(text.replace('"action_steps": 3', '"action_steps": 2'))
        with pytest.raises(ExportedFolderError, match=r"policy\.json does not have"):
            load_policy(str(act[1]))
    finally:
        file.write_text(text)


def test_observations_and_actions_wait_in_queues(act: tuple[ForeignPolicy, Path]) -> None:
    """A policy that reads two observations sees every control step, and computes every third."""
    policy = ExportedLeRobotPolicy(act[1], seed=0)
    policy.chunk_length = 1
    policy._settings = replace(policy._settings, observation_steps=2)
    read: list[np.ndarray] = []

    def encode(rows: Arrays) -> Arrays:
        read.append(rows["proprio"][:, 0])
        return {"actions": rows["proprio"][None, :1, :1] + np.float32([[0, 0, 0, 0]]).repeat(3, 0)}

    policy._graphs = {"encode": encode}  # pyright: ignore[reportAttributeAccessIssue]
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    state, commanded = policy.initial_state(), []
    for step in range(5):
        proprio = np.full(5, step / 10, np.float32)
        chunk, state = policy.decide(replace(seen, proprio=proprio), state)
        commanded.append(chunk.actions[0, 0])
    # The first observation fills the history; later the latest two are read, the older one first.
    np.testing.assert_allclose(read, [[0, 0], [0.2, 0.3]], atol=1e-6)
    np.testing.assert_allclose(commanded, [0, 0, 0, 0.2, 0.2], atol=1e-6)


def test_a_checkpoint_without_a_contract_is_refused(
    act: tuple[ForeignPolicy, Path], tmp_path: Path
) -> None:
    """With what would give one, before anything is written."""
    with pytest.raises(ValueError, match=r"no units, limits or rate: name .*--data.*--task"):
        export_lerobot(act[1].parent / "act", tmp_path / "out", None, None, 1, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_export_is_shadowed_in_the_simulator(
    act: tuple[ForeignPolicy, Path], tmp_path: Path
) -> None:
    """The contract is the task's, and every decision of an episode is compared."""
    found = export_lerobot(act[1].parent / "act", tmp_path / "out", "FetchPush", None, 2, 1)
    assert found["closed_loop"]["episodes"] == 1
    assert found["closed_loop"]["decisions"] > 10


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("smolvla", {"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha"),
        ("smolvla", {"rtc_config": {"enabled": True}}, "rtc_config"),
    ],
)
def test_settings_that_no_graph_has_are_refused(
    kind: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """By name."""
    with pytest.raises(ExportError, match=message):
        lerobot_settings(load(kind, tmp_path, **settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("act", {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}),
        ("diffusion", {}),
        ("diffusion", {"noise_scheduler_type": "DDIM", "n_obs_steps": 1}),
        ("smolvla", {}),
        ("pi0", {}),
    ],
    ids=["act-ensemble", "diffusion", "diffusion-ddim", "smolvla", "pi0"],
)
def test_every_kind_is_exported(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """It decides as LeRobot's `select_action`, with the same noise."""
    foreign = load(kind, tmp_path, **settings)
    found = export_lerobot_policy(foreign, tmp_path / "out", {"weights": "x"}, compared(foreign))
    assert found["open_loop"]["decisions"] == 6
    # Without a seed every episode has noise of its own.
    policy = load_policy(str(tmp_path / "out"))
    (seen,) = random_observations(policy.spec, [0.0] * 5, [1.0] * 5, 1)
    first, second = (policy.decide(seen, policy.initial_state())[0].actions for _ in range(2))
    assert np.array_equal(first, second) == (kind == "act")
