"""Grounding: the questions that are asked, and a run that was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.grounding.grounder import Grounder, GroundingConfig, GroundingSampler
from policies.grounding.grounding_set import GroundingSet, Prompt
from policies.grounding.vqa_sampler import QuestionSampler
from policies.run_folder import RunFolder
from scripts.ground import grounding_set, prompts_of
from scripts.pretrain import GROUNDED
from sim.scenes import Scenes
from sim.tasks.tabletop import Tabletop
from sim.tasks.tabletop_scene import BLOCKS, ZONES
from vla.model.pointer import POINTS
from vla.policy import VLAPolicy, load_policy

PHRASES = ("gripper", "target", "red block", "blue zone")


@pytest.fixture
def policy() -> VLAPolicy:
    """The shipped model."""
    return load_policy(GROUNDED)


def make_set(policy: VLAPolicy, count: int = 20) -> GroundingSet:
    """Random pictures of a scene whose point `i` is at (1 + i / 10, 0.7, 0.5)."""
    rng = np.random.default_rng(0)
    spec = policy.spec
    camera = spec.cameras[0]
    points = np.tile([1.0, 0.7, 0.5], (count, len(PHRASES), 1))
    points[:, :, 0] += np.arange(len(PHRASES)) / 10
    pictures = rng.uniform(-0.9, 0.9, (count, len(PHRASES), len(spec.cameras), 2))
    shape = (count, len(spec.cameras), camera.height, camera.width, 3)
    return GroundingSet(
        name="Made",
        images=rng.integers(0, 256, shape, np.uint8),
        proprio=rng.normal(size=(count, spec.proprio.dim)).astype(np.float32),
        points=points.astype(np.float32),
        pictures=pictures.astype(np.float32),
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
    config = policy.model.config
    away = torch.tensor([[1.0, 0.7, 0.5], [1.2, 0.7, 0.5], [1.3, 0.7, 0.5]])
    expected = (away - torch.tensor(config.point_center_m)) / config.point_scale_m
    assert torch.allclose(asked.world, expected.expand(3, -1, -1), atol=1e-5)
    assert asked.pictures.shape == (3, len(POINTS), len(policy.spec.cameras), 2)


def test_what_was_never_trained_on_is_measured_apart(policy: VLAPolicy, tmp_path: Path) -> None:
    """Prompts kept apart are never drawn for training, and have errors of their own."""
    apart = Prompt("lift the red block", "red block", "red block")
    made = replace(make_set(policy), unseen={"unseen_pair": (apart,)})
    config = GroundingConfig(updates=0, heldout=0.5)
    errors = Grounder(policy, [made], config, RunFolder(tmp_path, config)).pointing_errors()
    assert errors["Made/target_median_cm"] != errors["Made/target_unseen_pair_median_cm"]
    sampler = GroundingSampler([made], policy.model, policy.processor, 0.5)
    world = sampler.heldout(0, made.unseen["unseen_pair"]).world
    assert torch.equal(world[:, POINTS.index("object")], world[:, POINTS.index("target")])


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


def test_a_cut_run_ends_with_the_same_weights(policy: VLAPolicy, tmp_path: Path) -> None:
    """Two updates and two more after a cut equal four."""

    def run(folder: str, updates: int) -> VLAPolicy:
        fresh = load_policy(GROUNDED)
        config = GroundingConfig(updates, batch=2, heldout=0.5, log_every=2, evaluate_every=2)
        grounder = Grounder(
            fresh, [make_set(fresh, 8)], config, RunFolder(tmp_path / folder, config)
        )
        # the same cosine, wherever the run is cut
        grounder._schedule.lr_lambdas[0] = lambda step: 1.0
        grounder.run()
        return load_policy(tmp_path / folder / "grounded")

    whole = run("whole", 4).model.state_dict()
    run("cut", 2)
    again = run("cut", 4).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    before = policy.model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in whole.items())


def test_questions_are_learned_beside_pointing(policy: VLAPolicy, tmp_path: Path) -> None:
    """The answer that is always true is given after some updates, in the held-out frames, too."""
    made = make_set(policy, 8)
    config = GroundingConfig(
        updates=40,
        batch=1,
        questions=4,
        question_weight=50.0,
        learning_rate=3e-3,
        heldout=0.5,
        warmup=1,
        evaluate_every=99,
    )
    Grounder(policy, [made], config, RunFolder(tmp_path, config)).run()
    sampler = QuestionSampler([made], policy.processor, 0.5)
    found = sampler.accuracy(policy.model.eval(), policy.device)
    assert found["Made/gripped_accuracy"] == 1.0
    assert found["Made/gripped_heldout_phrasing_accuracy"] == 1.0
