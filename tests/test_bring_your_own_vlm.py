"""`vla pretrain --vlm` and `vla ground --vlm`: a foreign model learns in place."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tiny_models
import torch
from demo_folder import write_folder
from torch import Tensor

from policies.grounding.grounder import Grounder, GroundingConfig
from policies.grounding.grounding_set import GroundingSet, Prompt
from policies.imitation.config import CloningConfig
from policies.run_folder import RunFolder
from scripts import ground, pretrain
from sim.tasks.registry import make_task
from vla.checkpoint.initialisation import default_head
from vla.contract import ContractMismatchError
from vla.model.backbone import BackboneConfig
from vla.model.points import PointsConfig
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, load_policy, vlm_policy
from vla.processing.embodiments import Embodiment
from vla.processing.processor import ProcessorConfig


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SmolVLM in a folder."""
    return tiny_models.make("smolvlm", tmp_path_factory.mktemp("models"))


def moved(before: dict[str, Tensor], policy: VLAPolicy) -> set[str]:
    """Names of the weights that are not what they were."""
    after = policy.model.state_dict()
    return {name for name, old in before.items() if not torch.equal(old, after[name])}


def test_a_foreign_model_learns_to_point(smolvlm: Path, tmp_path: Path) -> None:
    """With adapters: they, readouts and pointer move; the pretrained weights and actor stay."""
    spec = make_task("FetchReach", 96).spec
    rng = np.random.default_rng(0)
    scenes = GroundingSet(
        name="FetchReach",
        images=rng.integers(0, 256, (8, len(spec.cameras), 96, 96, 3), np.uint8),
        proprio=rng.normal(size=(8, spec.proprio.dim)).astype(np.float32),
        points=rng.normal(1.0, 0.1, (8, 2, 3)).astype(np.float32),
        image_points=rng.uniform(-0.9, 0.9, (8, 2, len(spec.cameras), 2)).astype(np.float32),
        phrases=("gripper", "target"),
        prompts=(Prompt("move to the target", "target", "target"),),
        unseen={},
        kinds=(),
        ask=lambda row, kind, phrasing, rng: ("", ""),
    )
    config = ground.GroundConfig(
        tasks=("FetchReach",), vlm=str(smolvlm), backbone=BackboneConfig(tuning="lora")
    )
    policy = ground.build(config, [scenes])
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    training = GroundingConfig(updates=2, batch=2, questions=0, heldout=0.5, evaluate_every=2)
    folder = RunFolder(tmp_path / "run", config, "vla ground --vlm it")
    saved = Grounder(policy, [scenes], training, folder).run()
    changed = moved(before, load_policy(saved))
    assert {"backbone.readout", "pointer.query.weight"} <= changed
    inside = {name for name in changed if name.startswith("backbone.language_model.")}
    assert inside
    assert all("lora_" in name for name in inside)
    assert not any(name.startswith("actor.") for name in changed)
    assert "`vla ground --vlm it`" in (saved / "README.md").read_text()


@pytest.mark.render
def test_one_command_clones_into_a_foreign_model(smolvlm: Path, tmp_path: Path) -> None:
    """It trains perception and actor, tries the policy, and leaves the frozen model as it was."""
    write_folder(tmp_path / "data", [4, 5], image_size=96)
    config = pretrain.PretrainConfig(
        "FetchReach",
        data=(tmp_path / "data",),
        vlm=str(smolvlm),
        conversions=ProcessorConfig(max_text_tokens=40),
        out=tmp_path / "run",
        num_envs=1,
        selection_episodes=1,
        training=CloningConfig(updates=2, batch=2, evaluate_every=2),
    )
    pretrain.main(config)
    policy = load_policy(tmp_path / "run" / "best")
    statistics = policy.processor.statistics
    assert statistics is not None
    robots = {"fetch": Embodiment(policy.spec, statistics)}
    model = VLAConfig(head=default_head(PointsConfig()))
    fresh = vlm_policy(str(smolvlm), config.backbone, robots, model, config.conversions)
    changed = moved(fresh.model.state_dict(), policy)
    assert {"backbone.readout", "actor.readout_projection.1.weight"} <= changed
    assert not any(name.startswith("backbone.language_model.") for name in changed)


def test_demonstrations_with_other_cameras_are_refused(tmp_path: Path) -> None:
    """The shipped model names the cameras that it has learned to see."""
    old = load_policy(pretrain.GROUNDED).spec

    class OneEyed:
        spec = type(old)(**vars(old) | {"cameras": old.cameras[:1]})

    class Data:
        robots: ClassVar = {"fetch": OneEyed()}

    with pytest.raises(
        ContractMismatchError, match=r"fetch have the cameras \[.*learned to see \["
    ):
        pretrain._start(pretrain.PretrainConfig(), Data(), None)  # pyright: ignore[reportArgumentType]
