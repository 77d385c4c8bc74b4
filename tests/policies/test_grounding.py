"""Grounding: the questions that are asked, and a run that was cut."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learners import files

from policies.checkpoints import DivergedError, ResumeError
from policies.grounding import vqa_sampler
from policies.grounding.grounder import Grounder, GroundingConfig, GroundingSampler
from policies.grounding.grounding_set import GroundingSet, Prompt
from policies.grounding.vqa_sampler import VqaSampler
from policies.run_folder import RunFolder
from scripts.ground import POINTS, GroundConfig, build, grounding_set, prompts_of
from sim.scenes import Scenes
from sim.tasks.tabletop import Tabletop
from sim.tasks.tabletop_scene import BLOCKS, ZONES
from vla.checkpoint.initialisation import GROUNDED
from vla.model.embedded import EmbeddedConfig
from vla.model.points import PointsConfig, PointSpec
from vla.policy import VLAPolicy, load_policy

PHRASES = ("gripper", "target", "red block", "blue zone")


@pytest.fixture(scope="module")
def shipped() -> VLAPolicy:
    """The shipped model, which no test here changes."""
    return load_policy(GROUNDED)


@pytest.fixture(scope="module")
def untrained(shipped: VLAPolicy) -> VLAPolicy:
    """A model as `vla ground` makes it, of a few thousand weights."""
    torch.manual_seed(0)
    sizes = EmbeddedConfig(width=32, vision_layers=1, text_layers=1, heads=2, patch_size=12)
    config = GroundConfig(tasks=("FetchReach",), image_size=24, embedded=sizes)
    return build(config, [make_set(shipped)])


@pytest.fixture
def policy(untrained: VLAPolicy) -> VLAPolicy:
    """A copy that may be trained."""
    return copy.deepcopy(untrained)


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked at each measurement, most of the time otherwise."""
    monkeypatch.setattr(vqa_sampler, "_MEASURED", 8)


def make_set(policy: VLAPolicy, count: int = 20) -> GroundingSet:
    """Random images of a scene whose point `i` is at (1 + i / 10, 0.7, 0.5)."""
    rng = np.random.default_rng(0)
    spec = policy.spec
    camera = spec.cameras[0]
    points = np.tile([1.0, 0.7, 0.5], (count, len(PHRASES), 1))
    points[:, :, 0] += np.arange(len(PHRASES)) / 10
    image_points = rng.uniform(-0.9, 0.9, (count, len(PHRASES), len(spec.cameras), 2))
    shape = (count, len(spec.cameras), camera.height, camera.width, 3)
    return GroundingSet(
        name="Made",
        images=rng.integers(0, 256, shape, np.uint8),
        proprio=rng.normal(size=(count, spec.proprio.dim)).astype(np.float32),
        points=points.astype(np.float32),
        image_points=image_points.astype(np.float32),
        phrases=PHRASES,
        prompts=(Prompt("push the red block to the blue zone", "red block", "blue zone"),),
        unseen={},
        kinds=("gripped",),
        ask=lambda row, kind, phrasing, rng: (f"what is {kind}", "nothing"),
    )


def test_each_prompt_is_answered_with_its_own_points(policy: VLAPolicy) -> None:
    """Hand, then what is to be moved, then where to; in the model's units."""
    made = make_set(policy)
    sampler = GroundingSampler([made], policy.model, policy.processor, 0.1)
    asked = sampler.train(np.random.default_rng(0), 3)
    away = torch.tensor([[1.0, 0.7, 0.5], [1.2, 0.7, 0.5], [1.3, 0.7, 0.5]])
    expected = (away - torch.tensor(POINTS.center_m)) / POINTS.scale_m
    assert torch.allclose(asked.world, expected.expand(3, -1, -1), atol=1e-5)
    assert asked.image_points.shape == (3, len(POINTS), len(policy.spec.cameras), 2)


def test_points_that_scenes_cannot_teach_are_refused(policy: VLAPolicy) -> None:
    """Another frame, also where only one of several sets has it; a name that nothing has."""
    made, config = make_set(policy), policy.model.config
    moved = replace(made, name="Moved", frame="base")
    with pytest.raises(ValueError, match=r"Moved has positions in the frame 'base'.*'world'"):
        GroundingSampler([made, moved], policy.model, policy.processor, 0.1)
    specs = tuple(replace(spec, frame="base") for spec in POINTS.specs)
    policy.model.config = replace(config, points=replace(POINTS, specs=specs))
    GroundingSampler([moved], policy.model, policy.processor, 0.1)
    cup = PointsConfig((PointSpec("cup"), PointSpec("object")))
    policy.model.config = replace(config, points=cup)
    with pytest.raises(ValueError, match=r"Made has no positions of the model's points \['cup'\]"):
        GroundingSampler([made], policy.model, policy.processor, 0.1)


def test_what_was_never_trained_on_is_measured_apart(policy: VLAPolicy, tmp_path: Path) -> None:
    """Prompts kept apart are never drawn for training, and have errors of their own."""
    apart = Prompt("lift the red block", "red block", "red block")
    made = replace(make_set(policy), unseen={"unseen_pair": (apart,)})
    config = GroundingConfig(updates=0, heldout=0.5)
    errors = Grounder(policy, [made], config, RunFolder(tmp_path, config)).pointing_errors()
    assert errors["Made/target_median_cm"] != errors["Made/target_unseen_pair_median_cm"]
    sampler = GroundingSampler([made], policy.model, policy.processor, 0.5)
    world = sampler.heldout(0, made.unseen["unseen_pair"]).world
    index = POINTS.names.index
    assert torch.equal(world[:, index("object")], world[:, index("target")])


def test_pairs_of_the_tabletop_are_kept_apart() -> None:
    """They are told in no training prompt, and each half of them is."""
    phrases = ("gripper", "target", "object", *BLOCKS, *ZONES)
    points = np.zeros((1, len(phrases), 3), np.float32)
    empty = np.zeros((1, 0), np.float32)
    scenes = Scenes("Tabletop", empty, empty, points, empty, phrases)
    assert "unseen_pair" not in grounding_set(scenes).unseen
    grounding = grounding_set(scenes, keep_pairs_apart=True)
    pairs = {frozenset((prompt.object, prompt.target)) for prompt in grounding.prompts}
    apart = {frozenset((p.object, p.target)) for p in grounding.unseen["unseen_pair"]}
    assert apart == set(map(frozenset, Tabletop.unseen_pairs))
    assert not apart & pairs
    assert {word for pair in apart for word in pair} <= {word for pair in pairs for word in pair}


def test_tabletop_asks_for_the_named_block_and_zone() -> None:
    """A push points at its zone, a lift at its lift goal, in words that name both."""
    for prompt in prompts_of("Tabletop", "heldout"):
        assert prompt.object in prompt.text
        assert prompt.target in (prompt.object, f"lift goal of the {prompt.object}") or (
            prompt.target in prompt.text
        )


class KilledError(Exception):
    """What ends a process at an unlucky moment."""


def make_grounder(untrained: VLAPolicy, folder: Path, **changes: object) -> Grounder:
    """A run of four small updates from the same weights."""
    fresh = copy.deepcopy(untrained)
    config = GroundingConfig(4, batch=2, heldout=0.5, log_every=2, evaluate_every=2)
    config = replace(config, **changes)
    return Grounder(fresh, [make_set(fresh, 8)], config, RunFolder(folder, config))


def test_an_interrupted_run_ends_with_the_same_weights(
    untrained: VLAPolicy, tmp_path: Path
) -> None:
    """Two updates, killed, and two more equal four; frames are counted once."""

    def kill(update: int, values: dict[str, float]) -> None:
        raise KilledError

    make_grounder(untrained, tmp_path / "whole").run()
    with pytest.raises(KilledError):
        make_grounder(untrained, tmp_path / "cut").run(kill)
    make_grounder(untrained, tmp_path / "cut").run()
    loaded = [load_policy(tmp_path / name / "grounded") for name in ("whole", "cut")]
    whole, again = (one.model.state_dict() for one in loaded)
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    before = untrained.model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in whole.items())
    assert [one.ledger.amounts["grounding_frames"] for one in loaded] == [8, 8]


def test_checkpoints_come_when_asked_however_often_is_logged(
    untrained: VLAPolicy, tmp_path: Path
) -> None:
    """Every third update with a log of every second: they came at common multiples alone."""
    logged: list[tuple[int, bool]] = []

    def show(update: int, values: dict[str, float]) -> None:
        logged.append((update, any("cm" in name for name in values)))

    make_grounder(untrained, tmp_path, updates=4, evaluate_every=3).run(show)
    assert logged == [(2, False), (3, True), (4, True)]


def test_another_run_is_refused_and_nothing_is_written(
    untrained: VLAPolicy, tmp_path: Path
) -> None:
    """Other settings in its folder; a longer run is none."""
    make_grounder(untrained, tmp_path, updates=2).run()
    before = files(tmp_path)
    with pytest.raises(ResumeError, match=r"training.learning_rate: 0.001 in the run, 0.01 now"):
        make_grounder(untrained, tmp_path, updates=2, learning_rate=0.01).run()
    assert files(tmp_path) == before
    longer = make_grounder(untrained, tmp_path, updates=3)
    longer.run()
    assert longer.update == 3


def test_a_rate_that_throws_the_weights_out_stops_the_run(
    untrained: VLAPolicy, tmp_path: Path
) -> None:
    """With the step and the last good checkpoint, and without a grounded one."""
    make_grounder(untrained, tmp_path, updates=2).run()
    grounder = make_grounder(untrained, tmp_path, updates=4)
    resumed = grounder.checkpoints.resume

    def broken(*settings: Any) -> dict[str, Any] | None:
        state = resumed(*settings)
        with torch.no_grad():
            next(iter(grounder._trained)).fill_(float("nan"))
        return state

    grounder.checkpoints.resume = broken
    with pytest.raises(DivergedError, match=r"at step 3: the loss is nan.*step_000002"):
        grounder.run()


@pytest.mark.parametrize(
    ("frames", "heldout", "kept"), [(8, 0.05, 7), (8, 0.5, 4), (2, 0.01, 1), (8, 0.0, 8)]
)
def test_at_least_one_frame_is_measured_with(
    frames: int, heldout: float, kept: int, policy: VLAPolicy
) -> None:
    """Where any share is held out; a single frame cannot be both."""
    made = make_set(policy, frames)
    assert made.kept(heldout) == kept
    with pytest.raises(ValueError, match="Made has 1 frames"):
        make_set(policy, 1).kept(0.05)


def test_questions_are_learned_beside_pointing(policy: VLAPolicy, tmp_path: Path) -> None:
    """The answer that is always true is given after some updates, in the held-out frames, too."""
    made = make_set(policy, 8)
    config = GroundingConfig(
        updates=40,
        batch=1,
        questions=4,
        question_weight=50.0,
        learning_rate=1e-2,
        heldout=0.5,
        warmup=1,
        evaluate_every=99,
    )
    Grounder(policy, [made], config, RunFolder(tmp_path, config)).run()
    sampler = VqaSampler([made], policy.processor, 0.5)
    found = sampler.accuracy(policy.model.eval(), policy.device)
    assert found["Made/gripped_accuracy"] == 1.0
    assert found["Made/gripped_heldout_phrasing_accuracy"] == 1.0
