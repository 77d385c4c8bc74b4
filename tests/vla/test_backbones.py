"""Every architecture goes from a folder of its own library to an action and back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from example_robot import SPEC, make_observation, make_statistics
from torch import Tensor, nn
from two_robots import POINTS

from vla.contract import ContractMismatchError, ObservationBatch
from vla.model.backbone import BackboneConfig, Hidden
from vla.model.features import Features
from vla.model.registry import backbone_from_dict
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, load_policy, vlm_policy
from vla.processing.embodiments import Embodiment
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor, ProcessorConfig, collate

IMAGE_TEXT = ("smolvlm", "idefics3", "paligemma", "qwen2_5_vl")
EVERY = (*IMAGE_TEXT, "siglip")
INSTRUCTIONS = ("push the red block to the blue zone", "lift")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved checkpoint of each architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_models.make(name, folder) for name in tiny_models.MAKERS}


def policy_of(name: Path, processor: dict[str, Any] | None = None, **options: Any) -> VLAPolicy:
    """A policy on this model; its readouts and what is built on it always start the same."""
    torch.manual_seed(0)
    config = ProcessorConfig(**{"image_size_px": (56, 56), **(processor or {})})
    statistics = make_statistics()
    robots = {SPEC.robot: Embodiment(SPEC, statistics)}
    model = VLAConfig(points=POINTS)
    return vlm_policy(str(name), BackboneConfig(**options), robots, model, config)


def observe(*instructions: str) -> ObservationBatch:
    """One observation for each instruction, with an image of its own."""
    return collate([make_observation(i, text) for i, text in enumerate(instructions)], SPEC)


def hidden_of(policy: VLAPolicy, observation: ObservationBatch) -> Hidden:
    """What the backbone reads."""
    with torch.no_grad():
        return policy.model.eval().backbone(policy.processor.encode_observation(observation))


def learn(policy: VLAPolicy, observation: ObservationBatch) -> Tensor:
    """Gradients of the mean square of all features; returns those features as one tensor."""
    policy.model.train()
    features = policy.network.features(policy.processor.encode_observation(observation))
    joined = torch.cat([column.flatten(1) for column in columns(features)], dim=1)
    joined.square().mean().backward()
    return joined


def columns(features: Features) -> tuple[Tensor, ...]:
    """What perception computes."""
    return features.readout, features.points, features.localisation_std, features.prompt


def pretrained_part(policy: VLAPolicy) -> dict[str, nn.Parameter]:
    """Parameters of the pretrained model, not of what is built on it."""
    parts = ("language_model.", "vision.", "text.")
    return {n: p for n, p in policy.model.backbone.named_parameters() if n.startswith(parts)}


@pytest.mark.parametrize("name", EVERY)
def test_a_checkpoint_brings_back_the_same_action(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """With adapters and fewer layers, from the checkpoint's files alone."""
    private = tmp_path / "gone"
    shutil.copytree(models[name], private)
    policy = policy_of(private, tuning="lora", lora_targets=("q_proj", "query"), layer=-2)
    for key, parameter in policy.model.backbone.named_parameters():
        if "lora_B" in key:  # they start at 0, where they change nothing
            nn.init.normal_(parameter.data)
    observation = observe(*INSTRUCTIONS)
    expected = policy.act(observation)
    policy.save(tmp_path / "saved", command="vla pretrain --vlm it")
    shutil.rmtree(private)
    again = load_policy(tmp_path / "saved")
    assert torch.equal(again.act(observation), expected)
    assert again.model.to_dict()["backbone"] == policy.model.to_dict()["backbone"]
    files = {path.name for path in (tmp_path / "saved").rglob("*")}
    assert not [f for f in files if f.endswith((".py", ".bin", ".pkl", ".pt"))]
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "lora" in card
    assert "`vla pretrain --vlm it`" in card
    assert "licence of their authors" in card


@pytest.mark.parametrize("name", EVERY)
def test_hidden_states_are_where_they_should_be(name: str, models: dict[str, Path]) -> None:
    """Shapes, types, padding, and a row is the same alone as in a batch."""
    policy = policy_of(models[name])
    both = hidden_of(policy, observe(*INSTRUCTIONS))
    dims, width = policy.model.dims, policy.model.backbone.width
    assert dims.image_tokens == {"paligemma": 16, "siglip": 16}.get(name, 4)
    assert both.images.shape == (2, 2, dims.image_tokens, width)
    assert both.readout.shape == (2, len(POINTS) + 1, width)
    assert both.prompt.shape == (*both.mask.shape, width)
    assert both.mask.dtype == torch.bool
    assert {t.dtype for t in (both.images, both.readout, both.prompt)} == {torch.float32}
    images = 2 * dims.image_tokens
    assert (both.mask.sum(1) > images).all()
    if name != "siglip":  # whose padding counts as words
        assert both.mask.sum(1)[0] > both.mask.sum(1)[1]
    alone = hidden_of(policy, observe(*INSTRUCTIONS[:1]))
    assert torch.allclose(alone.readout[0], both.readout[0], atol=1e-5)
    assert torch.allclose(alone.images[0], both.images[0], atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_image_and_words_reach_every_readout(name: str, models: dict[str, Path]) -> None:
    """Another image changes its own camera's tokens and all readouts, other words too."""
    policy = policy_of(models[name])
    observation = observe(INSTRUCTIONS[0])
    before = hidden_of(policy, observation)
    images = dict(observation.images)
    images["front"] = 255 - images["front"]
    seen = hidden_of(policy, replace(observation, images=images))
    assert ((seen.images[:, 0] - before.images[:, 0]).abs().amax(-1) > 1e-4).all()
    assert ((seen.readout - before.readout).abs().amax(-1) > 1e-5).all()
    said = hidden_of(policy, replace(observation, instructions=[INSTRUCTIONS[1]]))
    assert ((said.readout - before.readout).abs().amax(-1) > 1e-5).all()
    # In the image-text models words come after images, except that PaliGemma looks both ways.
    assert torch.allclose(said.images, before.images, atol=1e-6) == (
        name not in ("paligemma", "siglip")
    )


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_the_prompt_is_read_as_the_model_alone_reads_it(name: str, models: dict[str, Path]) -> None:
    """Readouts and padding change nothing of what the library's own model says of a prompt."""
    policy = policy_of(models[name])
    backbone = policy.model.backbone
    hidden = hidden_of(policy, observe(INSTRUCTIONS[1]))
    prompts = policy.processor.prompts
    inputs = policy.processor.encode_observation(observe(INSTRUCTIONS[1]))
    made = prompts._tokens(INSTRUCTIONS[1])  # pyright: ignore[reportAttributeAccessIssue]
    pixels = {k: v for k, v in inputs.for_model().items() if k not in made}
    with torch.no_grad():
        language_model: Any = backbone.get_submodule("language_model")
        alone = language_model(**made, **pixels).last_hidden_state
    assert torch.allclose(hidden.prompt[hidden.mask], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_gradients_reach_what_the_tuning_leaves_free(
    name: str, tuning: str, models: dict[str, Path]
) -> None:
    """And always the readouts and the pointer."""
    policy = policy_of(models[name], tuning=tuning)
    learn(policy, observe(*INSTRUCTIONS))
    moved = {n for n, p in pretrained_part(policy).items() if p.grad is not None}
    if tuning == "frozen":
        assert not moved
    elif tuning == "lora":
        assert moved
        assert all("lora_" in n for n in moved)
        assert moved == {n for n in pretrained_part(policy) if "lora_" in n}
    else:
        unread = ("pooler", ".head.")
        still = {n for n in set(pretrained_part(policy)) - moved if not any(u in n for u in unread)}
        assert not still
    for parameter in (
        policy.model.backbone.get_parameter("readout"),
        policy.model.get_parameter("pointer.query.weight"),
    ):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    free = {id(p) for p in policy.model.perception_parameters()}
    held = {id(p) for p in pretrained_part(policy).values() if id(p) not in free}
    assert bool(held) == (tuning != "full")


@pytest.mark.parametrize("name", EVERY)
def test_gradient_checkpointing_gives_the_same_gradients(
    name: str, models: dict[str, Path]
) -> None:
    """It recomputes what it did not keep."""
    gradients = []
    for checkpointing in (False, True):
        policy = policy_of(models[name], tuning="full", gradient_checkpointing=checkpointing)
        learn(policy, observe(*INSTRUCTIONS))
        named = policy.model.named_parameters()
        gradients.append({n: p.grad for n, p in named if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        assert torch.allclose(gradients[1][key], expected, atol=1e-6), key


@pytest.mark.parametrize("name", EVERY)
def test_mixed_precision_trains(name: str, models: dict[str, Path]) -> None:
    """Close to float32, with gradients in float32."""
    policy = policy_of(models[name], tuning="full")
    observation = observe(*INSTRUCTIONS)
    expected = hidden_of(policy, observation).readout
    with torch.autocast("cpu", torch.bfloat16):
        mixed = hidden_of(policy, observation).readout
        learn(policy, observation)
    assert mixed.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(mixed, expected, dim=-1).min() > 0.99
    assert all(p.grad.isfinite().all() for p in policy.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", EVERY)
def test_a_layer_is_read_and_those_above_are_dropped(name: str, models: dict[str, Path]) -> None:
    """Counted from either end."""
    last, second, also = (policy_of(models[name], layer=layer) for layer in (-1, 2, -2))
    observation = observe(INSTRUCTIONS[0])
    read = [hidden_of(policy, observation).readout for policy in (last, second, also)]
    assert torch.equal(read[1], read[2])
    assert not torch.allclose(read[0], read[1], atol=1e-4)
    assert len(pretrained_part(second)) < len(pretrained_part(last))
    with pytest.raises(ValueError, match="no layer 4: give 1 to 3, or -1 to -3"):
        policy_of(models[name], layer=4)


def test_the_layer_read_is_the_models_own(models: dict[str, Path]) -> None:
    """After two layers, the final normalisation of the model's own hidden state."""
    whole, cut = (policy_of(models["smolvlm"], layer=layer) for layer in (-1, 2))
    kept: list[Tensor] = []
    decoder: Any = whole.model.backbone.get_submodule("language_model").get_submodule("text_model")
    decoder.layers[1].register_forward_hook(lambda module, args, output: kept.append(output))
    hidden_of(whole, observe(INSTRUCTIONS[0]))
    with torch.no_grad():
        expected = decoder.norm(kept[0])[:, -len(POINTS) - 1 :]
    assert torch.allclose(hidden_of(cut, observe(INSTRUCTIONS[0])).readout, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["smolvlm", "paligemma", "siglip"])
def test_bfloat16_halves_the_pretrained_weights_alone(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """What trains beside them stays float32, and the checkpoint keeps both."""
    policy = policy_of(models[name], tuning="lora", dtype="bfloat16")
    for key, parameter in policy.model.named_parameters():
        pretrained = key.removeprefix("backbone.") in pretrained_part(policy)
        halved = pretrained and "lora_" not in key
        assert parameter.dtype == (torch.bfloat16 if halved else torch.float32), key
    observation = observe(*INSTRUCTIONS)
    assert hidden_of(policy, observation).readout.dtype == torch.float32
    learn(policy, observation)
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert torch.equal(again.act(observation), policy.act(observation))


def test_two_folders_make_a_pair(models: dict[str, Path], tmp_path: Path) -> None:
    """A vision tower of one kind, a text encoder of another."""
    policy = policy_of(models["vision_tower"], text_tower=str(models["text_tower"]))
    observation = observe(*INSTRUCTIONS)
    hidden = hidden_of(policy, observation)
    assert hidden.mask.sum(1)[0] > hidden.mask.sum(1)[1]
    policy.save(tmp_path / "saved")
    assert torch.equal(load_policy(tmp_path / "saved").act(observation), policy.act(observation))


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_selected_and_joined(name: str, models: dict[str, Path]) -> None:
    """Also where the model wants the images of all rows in one list."""
    policy = policy_of(models[name])
    both = policy.processor.encode_observation(observe(*INSTRUCTIONS))
    again = ModelInputs.concatenate([both.select([0]), both.select([1])])
    assert len(again) == 2
    first, second = again.for_model(), both.to("cpu").for_model()
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key])
    policy.model.eval()
    swapped, straight = (policy.network.features(i) for i in (both.select([1, 0]), both))
    for one, other in zip(columns(swapped), columns(straight), strict=True):
        assert torch.allclose(one.flip(0), other, atol=1e-5)


def test_an_unknown_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what would be one; the hub is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", str(tmp_path / "nothing")):
        with pytest.raises(FileNotFoundError, match=r"a folder written by save_pretrained.*hub"):
            policy_of(Path(name))


def test_other_architectures_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """By name, with those that are valid; weights that do not fit too."""
    with pytest.raises(ValueError, match=r"is a 'bert': give .*siglip.*'paligemma'.*'smolvlm'"):
        policy_of(models["text_tower"])
    with pytest.raises(ValueError, match="is a 'siglip_vision_model': give"):
        policy_of(models["vision_tower"])
    mixed = tmp_path / "mixed"
    shutil.copytree(models["smolvlm"], mixed)
    shutil.copy(models["paligemma"] / "model.safetensors", mixed)
    with pytest.raises(ValueError, match=r"weights of another architecture .*\(smolvlm\)"):
        policy_of(mixed)
    config = json.loads((models["smolvlm"] / "config.json").read_text())
    config["text_config"]["hidden_size"] = 48
    (mixed / "config.json").write_text(json.dumps(config))
    shutil.copy(models["smolvlm"] / "model.safetensors", mixed)
    with pytest.raises(ValueError, match="of another shape"):
        policy_of(mixed)


def test_pickled_weights_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """A pickle can run code."""
    folder = tmp_path / "pickled"
    shutil.copytree(models["smolvlm"], folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        policy_of(folder)


@pytest.mark.parametrize("name", EVERY)
def test_long_and_forged_instructions_are_refused(name: str, models: dict[str, Path]) -> None:
    """An instruction neither overflows nor becomes an image."""
    policy = policy_of(models[name], {"max_text_tokens": 24})
    with pytest.raises(ValueError, match=r"tokens .*reads 24 .max_text_tokens.; shorten it"):
        policy.act(observe("xyz " * 30))
    if name != "siglip":
        token = getattr(policy.processor.language, "image_token")  # noqa: B009  no typed attribute
        with pytest.raises(ValueError, match=r"reads .* as more than words"):
            policy.act(observe(f"look at {token}"))


def test_a_prompt_longer_than_the_context_is_refused(models: dict[str, Path]) -> None:
    """Before anything is loaded or trained."""
    with pytest.raises(ValueError, match=r"reads 256 tokens, but 2 images, .* need"):
        policy_of(models["smolvlm"], {"max_text_tokens": 250})


def test_other_cameras_are_refused(models: dict[str, Path]) -> None:
    """In the observation, and in a processor for another robot."""
    policy = policy_of(models["qwen2_5_vl"])
    observation = observe(INSTRUCTIONS[0])
    images = {"front": observation.images["front"], "ceiling": observation.images["wrist"]}
    with pytest.raises(
        ContractMismatchError, match=r"'ceiling'.*contract has \['front', 'wrist'\]"
    ):
        policy.act(replace(observation, images=images))
    old = policy.processor
    one_eyed = replace(SPEC, cameras=SPEC.cameras[:1])
    processor = Processor(one_eyed, old.statistics, old.language, old.config)
    with pytest.raises(ValueError, match=r"model takes .*cameras=2.*gives .*cameras=1"):
        VLAPolicy(policy.model, processor)


def test_bad_options_are_refused(models: dict[str, Path]) -> None:
    """Each by name with what is valid."""
    with pytest.raises(ValueError, match="'half' is not one of"):
        BackboneConfig(dtype="half")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="multiple of 64"):
        BackboneConfig(fusion_width=100)
    with pytest.raises(ValueError, match=r"no layer \('w_q',\).*'q_proj'"):
        policy_of(models["smolvlm"], tuning="lora", lora_targets=("w_q",))
    with pytest.raises(ValueError, match=r"no square grid"):
        policy_of(models["qwen2_5_vl"], {"image_size_px": (56, 84)})
    with pytest.raises(ValueError, match="padding='longest'"):
        policy_of(models["smolvlm"], {"padding": "longest"})
    with pytest.raises(ValueError, match=r"kind of backbone 'x': \['dual', 'embedded', 'vlm'\]"):
        backbone_from_dict({"kind": "x"}, 1)


def test_damaged_weights_do_not_load(models: dict[str, Path], tmp_path: Path) -> None:
    """Strictly: all of them, and no other."""
    policy = policy_of(models["smolvlm"])
    state = policy.model.state_dict()
    state.pop("backbone.readout")
    policy.model.state_dict = lambda: state  # pyright: ignore[reportAttributeAccessIssue]
    policy.save(tmp_path / "saved")
    with pytest.raises(RuntimeError, match=r"backbone\.readout"):
        load_policy(tmp_path / "saved")
