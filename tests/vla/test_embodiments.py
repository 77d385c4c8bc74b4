"""Several robots in one model: padding, masks, choice by name or contract, and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import make
from two_robots import ARM, CART, measure, observe, tiny_policy

from vla.checkpoint.folder import CheckpointError, load_checkpoint
from vla.checkpoint.initialisation import GROUNDED, load_start, start_policy
from vla.contract import CameraSpec, ContractMismatchError
from vla.model.backbone import BackboneConfig
from vla.model.cloning_loss import add_noise
from vla.model.heads.registry import HEADS
from vla.model.vla import ModelDims, VLAConfig
from vla.policy import VLAPolicy, load_policy, vlm_policy
from vla.processing.embodiments import Embodiment, Embodiments, fit_sizes
from vla.processing.processor import ProcessorConfig


@pytest.fixture(scope="module")
def both() -> VLAPolicy:
    """One tiny model for both robots."""
    return tiny_policy(CART, ARM)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), name=st.sampled_from(["cart", "arm"]))
def test_decode_is_the_inverse_of_encode(both: VLAPolicy, data: st.DataObject, name: str) -> None:
    """For every robot, with zeros where it has no number."""
    processor = both.embodiments[name]
    dim = processor.spec.action.dim
    actions = data.draw(arrays(np.float32, (2, 3, dim), elements=st.floats(-1e3, 1e3, width=32)))
    encoded = processor.encode_actions(actions)
    assert encoded.shape == (2, 3, 3)
    assert not encoded[..., dim:].any()
    encoded[..., dim:] = 7.0  # whatever a head says there
    np.testing.assert_allclose(processor.action.decode(encoded), actions, atol=1e-3, rtol=1e-5)


def test_robots_look_alike_to_the_model(both: VLAPolicy) -> None:
    """Equal sizes; what a robot lacks is black, zero, and marked."""
    assert {ModelDims.of(p) for p in both.embodiments.processors.values()} == {both.model.dims}
    cart = both.embodiments["cart"].encode_observation(observe(CART))
    assert cart.pixel_values.shape == (3, 2, 3, 12, 12)
    assert not cart.pixel_values[:, 1].any()
    assert not both.embodiments["cart"].proprio(cart.proprio)[:, 1:].any()
    assert cart.present[0].int().tolist() == [1, 0, 1, 0, 1, 0, 0]
    assert both.embodiments["arm"].encode_observation(observe(ARM)).present.all()
    with pytest.raises(ContractMismatchError, match=r"contract says \[..., 1\] padded to 3"):
        both.processor.decode_actions(torch.zeros(2, 1))


def test_a_missing_camera_says_nothing(both: VLAPolicy) -> None:
    """What the pointer sees in a blank image does not reach the points."""
    pointer, generator = both.model.pointer, torch.Generator().manual_seed(0)
    assert pointer is not None
    queries, proprio = torch.randn(2, 3, 32, generator=generator), torch.zeros(2, 2)
    images = torch.randn(2, 2, 4, 32, generator=generator)
    other = images.clone()
    other[:, 1] += 1
    present = torch.tensor([[True, False], [True, True]])
    moved = (
        pointer(queries, images, proprio, present).world
        - pointer(queries, other, proprio, present).world
    )
    assert not moved[0].any()
    assert moved[1].any()


@pytest.mark.parametrize("name", [n for n in HEADS if n != "fast"])
def test_padding_neither_learns_nor_counts(name: str) -> None:
    """In loss and likelihood of the smaller robot, for values and gradients alike."""
    policy = tiny_policy(CART, ARM)
    model = policy.model
    model.replace_actor(torch.zeros(1, 3, 3), HEADS[name].config())
    actor = model.actor.eval()
    with torch.no_grad():
        features = policy.network.features(policy.processor.encode_observation(observe(CART)))
    is_pad = torch.zeros(3, 3, dtype=torch.bool)
    losses = []
    for padding in (0.0, 0.9):
        actions = torch.full((3, 3, 3), padding)
        actions[..., 0] = 0.3
        torch.manual_seed(0)
        losses.append(actor.loss(features, actions, is_pad))
    assert losses[0] == losses[1]
    losses[0].backward()
    rows = {"gaussian": "head.layers.6.bias", "l1": "head.out.bias", "flow": "head.out.bias"}
    if name in rows:
        gradient = actor.get_parameter(rows[name]).grad
        assert gradient is not None
        assert gradient.view(-1, 3)[:, 0].any()
        assert not gradient.view(-1, 3)[:, 1:].any()
    if name == "l1":
        return
    decision = actor.sample(features, torch.Generator().manual_seed(1))
    other = decision.clone()
    other.view(*other.shape[:-1], -1, 3)[..., 1:] += 1  # the padded numbers, in any head's layout
    if name == "token":
        assert (decision.view(3, 3, 3)[..., 1:] == 128).all()
    with torch.no_grad():
        one, two = (actor.likelihood(features, d) for d in (decision, other))
    assert torch.equal(one.log_prob(), two.log_prob())
    assert torch.equal(one.entropy(), two.entropy())
    assert not one.kl(two).any()
    for noise in actor.log_std_parameters():
        (gradient,) = torch.autograd.grad(
            actor.likelihood(features, decision).log_prob().sum(), noise, retain_graph=True
        )
        assert gradient[:, 0].any()
        assert not gradient[:, 1:].any()


def test_noise_leaves_padding_alone(both: VLAPolicy) -> None:
    """Proprioception that a robot does not have stays 0 in training too."""
    features = both.observe(observe(CART))
    noisy = add_noise(features, 1.0, torch.Generator().manual_seed(0))
    assert (noisy.points != features.points).all()
    assert (noisy.proprio != features.proprio).tolist() == [[True, False]] * 3
    assert torch.equal(noisy.localisation_std, features.localisation_std)


def test_choice_by_name_and_by_contract(both: VLAPolicy) -> None:
    """One fits, or the message says why none does and which there are."""
    robots = both.embodiments
    assert robots.choose("arm") == "arm"
    wide = replace(ARM, cameras=(*ARM.cameras, CameraSpec("side", 9, 9)))
    assert robots.choose(wide) == "arm"  # an environment may have more cameras and other limits
    assert robots.choose(replace(CART, action=replace(CART.action, high=(2.0,)))) == "cart"
    with pytest.raises(ValueError, match=r"no embodiment 'leg'; valid: cart, arm"):
        robots.choose("leg")
    with pytest.raises(ValueError, match=r"several robots, .*contract of one: cart, arm"):
        robots.choose(None)
    slow = replace(ARM, control_rate_hz=5.0, cameras=ARM.cameras[:1])
    with pytest.raises(
        ContractMismatchError,
        match=r"(?s)fits none.*cart: action.*arm: control_rate_hz: 30.0 != 5.0.*\['wrist'\] are",
    ):
        robots.choose(slow)
    twins = {name: Embodiment(ARM, measure(ARM)) for name in ("one", "two")}
    same = Embodiments.make(twins, both.processor.language, both.processor.config)
    with pytest.raises(
        ContractMismatchError, match=r"fits several embodiments, name one: one, two"
    ):
        same.choose(ARM)
    twins["two"] = replace(twins["two"], spec=replace(ARM, cameras=ARM.cameras[:1]))
    same = Embodiments.make(twins, both.processor.language, both.processor.config)
    assert same.choose(ARM) == "one"


def test_sizes(both: VLAPolicy) -> None:
    """One robot needs none, several the largest, and none may be too small."""
    plain = ProcessorConfig(image_size_px=(12, 12), image_tokens_per_camera=4)
    assert fit_sizes(plain, [ARM]) == plain
    shared = fit_sizes(plain, [CART, ARM])
    assert (shared.camera_slots, shared.proprio_dim, shared.action_dim) == (2, 2, 3)
    assert fit_sizes(shared, [CART]) == shared
    language = both.processor.language
    for field, message in (
        ("camera_slots", "2 cameras, 1 slots"),
        ("proprio_dim", "proprio has 2 numbers, 1 places"),
        ("action_dim", "action has 3 numbers, 1 places"),
    ):
        with pytest.raises(ValueError, match=message):
            Embodiments.make(
                {"arm": Embodiment(ARM, measure(ARM))}, language, replace(plain, **{field: 1})
            )
    with pytest.raises(ValueError, match="a name for each"):
        Embodiments.make({" ": Embodiment(ARM, measure(ARM))}, language, plain)


def test_a_checkpoint_brings_every_robot_back(both: VLAPolicy, tmp_path: Path) -> None:
    """The same action for each, found by name or contract; the card lists both."""
    folder = both.save(tmp_path / "both")
    expected = {spec.robot: both.embodied(spec).act(observe(spec)) for spec in (CART, ARM)}
    for wanted in ("cart", CART, "arm", ARM):
        policy = load_policy(folder, embodiment=wanted)
        assert policy.spec == both.embodied(wanted).spec
        act = policy.act(observe(policy.spec))
        assert torch.equal(act, expected[policy.spec.robot])
        assert act.shape == (3, 3, policy.spec.action.dim)
        assert (act >= torch.tensor(policy.spec.action.low)).all()
    with pytest.raises(ValueError, match="contract of one: cart, arm"):
        load_policy(folder)
    files = {path.name for path in folder.iterdir()}
    assert "embodiments.json" in files
    assert "contract.json" not in files
    card = (folder / "README.md").read_text()
    assert "policy for cart, arm" in card
    assert "| `arm`: action | a [deg], b [deg], c [deg] |" in card
    assert "| `cart`: control rate | 10.0 Hz |" in card
    lerobot = json.loads((folder / "config.json").read_text())
    assert lerobot["input_features"] == lerobot["output_features"] == {}
    again = load_policy(folder, embodiment="arm").save(tmp_path / "again")
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path


def test_what_the_manifest_does_not_know_decides_nothing(both: VLAPolicy, tmp_path: Path) -> None:
    """Neither another contract beside it, nor changed statistics."""
    folder = both.save(tmp_path / "both")
    (folder / "contract.json").write_text(json.dumps(ARM.to_dict()))
    with pytest.raises(CheckpointError, match="exactly one of"):
        load_checkpoint(folder)
    (folder / "contract.json").unlink()
    robots = json.loads((folder / "embodiments.json").read_text())
    robots["arm"]["statistics"]["action"]["mean"][0] += 1
    (folder / "embodiments.json").write_text(json.dumps(robots))
    with pytest.raises(CheckpointError, match=r"embodiments\.json.*SHA-256"):
        load_checkpoint(folder)


def test_one_robot_is_saved_as_ever(tmp_path: Path) -> None:
    """Unless it was given a name that its contract does not have."""
    alone = tiny_policy(ARM)
    assert not alone.model.dims.shared
    files = {path.name for path in alone.save(tmp_path / "alone").iterdir()}
    assert "contract.json" in files
    assert "embodiments.json" not in files
    assert load_policy(tmp_path / "alone").spec == ARM
    assert load_policy(tmp_path / "alone", embodiment="arm").spec == ARM
    named = Embodiments.make(
        {"left": Embodiment(ARM, measure(ARM))}, alone.processor.language, alone.processor.config
    )
    VLAPolicy(alone.model, named).save(tmp_path / "named")
    assert load_policy(tmp_path / "named", embodiment="left").spec == ARM


def test_a_known_robot_goes_on_pointing_as_it_did() -> None:
    """When a larger one joins, and the larger one's numbers can be learned."""
    start = load_start(GROUNDED)
    fetch = start.spec
    observation = observe(fetch)
    observation.instructions = ["push the block to the target"] * 3
    with torch.no_grad():
        before, _ = start.network.point(start.processor.encode_observation(observation))
    more = replace(
        fetch,
        robot="larger",
        proprio=replace(
            ARM.proprio, names=tuple("abcdefg"), units=("m",) * 7, low=(0.0,) * 7, high=(1.0,) * 7
        ),
        action=replace(
            ARM.action, names=tuple("abcdef"), units=("m",) * 6, low=(0.0,) * 6, high=(1.0,) * 6
        ),
    )
    robots = {spec.robot: Embodiment(spec, measure(spec)) for spec in (more, fetch)}
    chunks = {n: torch.zeros(2, 4, r.spec.action.dim) for n, r in robots.items()}
    head = HEADS["gaussian"].config()
    policy = start_policy(start, robots, chunks, head).embodied("fetch")
    assert (policy.model.dims.proprio, policy.model.dims.action) == (7, 6)
    with torch.no_grad():
        after, _ = policy.network.point(policy.processor.encode_observation(observation))
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after.world, before.world, rtol=1e-4, atol=1e-5)
    # Nothing teaches it to point for the larger one: no gain on what it says there.
    assert policy.model.config.points.names == ("gripper", "object", "target")
    assert policy.model.config.points.relative == ()
    policy.act(observation)
    later = start_policy(policy, {"fetch": robots["fetch"]}, {"fetch": chunks["fetch"]}, head)
    assert later.model.dims.shared  # so that the actor of before is kept
    assert later.processor.statistics == policy.processor.statistics


@pytest.mark.parametrize("name", ["smolvlm", "siglip"])
def test_a_pretrained_model_takes_several_robots(name: str, tmp_path: Path) -> None:
    """Its own processor makes the images and the prompts, blank ones included."""
    robots = {spec.robot: Embodiment(spec, measure(spec)) for spec in (CART, ARM)}
    config = ProcessorConfig(image_size_px=(28, 28), max_text_tokens=24)
    folder = str(make(name, tmp_path))
    policy = vlm_policy(folder, BackboneConfig(), robots, VLAConfig(2), config)
    saved = policy.save(tmp_path / "saved")
    for spec in (CART, ARM):
        act = policy.embodied(spec).act(observe(spec))
        assert act.shape == (3, 2, spec.action.dim)
        assert torch.equal(load_policy(saved, embodiment=spec).act(observe(spec)), act)
    with pytest.raises(ValueError, match=r"cameras differ in size.*cart/top.*arm/front"):
        vlm_policy(folder, BackboneConfig(), robots, VLAConfig(2), ProcessorConfig())
