"""A new model for the data's own robots: any cameras, any proprioception, no points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import make
from two_robots import ARM, CART, WORDS, measure, observe, record

from policies.imitation.config import CloningConfig
from scripts.pretrain import PretrainConfig
from scripts.pretrain import main as pretrain
from vla.checkpoint.initialisation import default_head, scratch_policy
from vla.contract import RobotSpec
from vla.model.conv_tower import ConvTower
from vla.model.embedded import EmbeddedConfig
from vla.model.points import PointsConfig
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, load_policy
from vla.processing.embodiments import Embodiment
from vla.processing.language_tower import LanguageTower
from vla.processing.processor import ProcessorConfig

TINY = EmbeddedConfig(width=32, text_layers=1, heads=2, grid=2)
SMALL_IMAGES = ProcessorConfig(image_size_px=(48, 48))


def scratch(*specs: RobotSpec) -> VLAPolicy:
    """For these robots, with the head that it gets by default."""
    torch.manual_seed(0)
    robots = {spec.robot: Embodiment(spec, measure(spec)) for spec in specs}
    model = VLAConfig(3, head=default_head(PointsConfig()))
    return scratch_policy(robots, WORDS, TINY, model, SMALL_IMAGES)


def test_one_command_learns_from_demonstrations_alone(tmp_path: Path) -> None:
    """Of a robot that nothing was ever trained for; what it writes is a policy."""
    data = record(tmp_path / "data", ARM)
    config = PretrainConfig(
        None,
        data=(data,),
        start="scratch",
        embedded=TINY,
        conversions=SMALL_IMAGES,
        out=tmp_path / "run",
        training=CloningConfig(updates=2, batch=4, evaluate_every=2),
    )
    pretrain(config)
    policy = load_policy(tmp_path / "run" / "best")
    assert policy.model.pointer is None
    assert policy.actor.head.attends
    assert policy.act(observe(ARM)).shape == (3, 5, ARM.action.dim)


def test_a_language_tower_may_read_what_was_recorded(tmp_path: Path) -> None:
    """In all its forms; the checkpoint names it and acts."""
    data, tower = record(tmp_path / "data", ARM), make("text_tower", tmp_path)
    config = PretrainConfig(
        None,
        (data,),
        start="scratch",
        language=str(tower),
        reword=True,
        chunk_length=3,
        embedded=TINY,
        conversions=SMALL_IMAGES,
        out=tmp_path / "run",
        training=CloningConfig(updates=2, batch=4, evaluate_every=2),
    )
    assert pretrain(config) == 0
    policy = load_policy(tmp_path / "run" / "best")
    assert isinstance(policy.processor.language, LanguageTower)
    assert policy.act(observe(ARM, 2)).isfinite().all()


def test_a_checkpoint_brings_its_own_words() -> None:
    """Another tower would find no projection there; the message has the command that makes one."""
    with pytest.raises(ValueError, match="vla ground --start CHECKPOINT --language NAME"):
        PretrainConfig("FetchPush", language="all-MiniLM-L6-v2")


def test_settings_that_were_not_chosen_are_those_of_a_new_model() -> None:
    """What was chosen stays."""
    chosen = CloningConfig(learning_rate=2e-3).from_scratch()
    assert chosen.perception == "trained"
    assert (chosen.perception_learning_rate, chosen.image_shift) == (2e-3, 0.04)
    chosen = CloningConfig(perception_learning_rate=1e-5, image_shift=0.0).from_scratch()
    assert (chosen.perception_learning_rate, chosen.image_shift) == (1e-5, 0.0)


def test_several_robots_share_one_model_from_scratch() -> None:
    """With as many cameras as the largest has."""
    policy = scratch(CART, ARM)
    for spec in (CART, ARM):
        assert policy.embodied(spec).act(observe(spec)).shape == (3, 3, spec.action.dim)


def test_it_overfits_what_is_in_the_images() -> None:
    """Actions that only the images tell, and that differ between the steps of a chunk."""
    policy = scratch(ARM)
    observation = observe(ARM, count=6)
    observation.instructions = [WORDS[0]] * 6
    observation.proprio[:] = 0.5
    inputs = policy.processor.encode_observation(observation)
    actions = torch.rand(6, 3, ARM.action.dim, generator=torch.Generator().manual_seed(1)) - 0.5
    is_pad = torch.zeros(6, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=1e-3)
    for _ in range(500):
        loss = policy.actor.loss(policy.network.features(inputs), actions, is_pad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # What a policy reaches that is blind, and what one whose steps are all alike.
    blind = (actions - actions.median(0).values).abs().mean()
    alike = (actions - actions.median(1, keepdim=True).values).abs().mean()
    with torch.no_grad():
        decided = policy.actor.act(policy.network.features(inputs))
    assert (decided - actions).abs().mean() < 0.6 * min(blind, alike)


def test_every_token_of_the_tower_sees_its_own_square() -> None:
    """A pixel moves the token of its quarter and that of the whole image, of its camera alone."""
    torch.manual_seed(0)
    tower = ConvTower(96, 2, 16)
    pixels = torch.rand(1, 2, 3, 96, 96)
    changed = pixels.clone()
    changed[0, 1, :, 2, 2] += 1
    with torch.no_grad():
        (tokens, summary), (others, another) = tower(pixels), tower(changed)
    moved = (others - tokens).abs().amax(-1)[0] > 0  # [cameras, tokens]
    assert tokens.shape == (1, 2, 5, 16)
    assert not torch.equal(summary, another)
    assert moved.tolist() == [[False] * 5, [True, False, False, False, True]]


def test_sizes_that_do_not_fit_are_refused() -> None:
    """Before anything is trained."""
    with pytest.raises(ValueError, match="images of 24 px give 0 positions a side"):
        ConvTower(24, 2, 16)
    with pytest.raises(ValueError, match="17 cameras, and a convolutional tower tells 16 apart"):
        ConvTower(96, 2, 16)(torch.zeros(1, 17, 3, 96, 96))
    with pytest.raises(ValueError, match=r"width 36 .* 4 heads: give a multiple of 8"):
        EmbeddedConfig(width=36)
    with pytest.raises(ValueError, match=r"sees square images, image_size_px is .48, 64."):
        scratch_policy(
            {"arm": Embodiment(ARM, measure(ARM))},
            WORDS,
            TINY,
            VLAConfig(3),
            replace(SMALL_IMAGES, image_size_px=(48, 64)),
        )
