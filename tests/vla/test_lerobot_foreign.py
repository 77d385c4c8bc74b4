"""LeRobot's own policies as policies here: the same actions, or a refusal before anything moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import PIXELS, make_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.lerobot.act_acceleration import optimise_inference
from sim.tasks.fetch_arm import fetch_robot_spec
from vla.contract import CameraSpec, ContractMismatchError, ObservationBatch
from vla.lerobot_plugin.foreign import (
    Description,
    ForeignCheckpointError,
    ForeignPolicy,
    load_lerobot_policy,
)
from vla.lerobot_plugin.safe_files import UnsafeFileError

ROBOT = fetch_robot_spec(PIXELS)
KINDS = ("act", "diffusion", "smolvla", "pi0")


def observe(seed: int, rows: int = 2) -> ObservationBatch:
    """Random observations of all of the robot's cameras, also those that the policy ignores."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, PIXELS, PIXELS, 3)
    return ObservationBatch(
        images={
            camera.name: torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            for camera in ROBOT.cameras
        },
        proprio=torch.rand(rows, 5, generator=generator),
        instructions=["push the block to the red target"] * rows,
        time_s=torch.zeros(rows),
    )


def as_lerobot(observation: ObservationBatch) -> dict[str, Any]:
    """The same as `lerobot-eval` makes it."""
    images = {
        f"observation.images.{name}": image.permute(0, 3, 1, 2).float() / 255
        for name, image in observation.images.items()
        if name in ("front", "wrist")
    }
    return {
        **images,
        "observation.state": observation.proprio,
        "task": observation.instructions,
    }


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ACT checkpoint; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("foreign") / "act"
    with pytest.MonkeyPatch.context() as patch:
        make_checkpoint("act", folder, patch)
    return folder


@pytest.fixture
def copied(act: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(act, tmp_path / "act")


def assert_equal_loops(ours: ForeignPolicy, theirs: Any, before: Any, after: Any, steps: int):
    """So many control steps of two rows, as LeRobot's own loop decides them."""
    ours.reset([0, 1])
    theirs.reset()
    for step in range(steps):
        torch.manual_seed(step)
        with torch.inference_mode():
            expected = after(theirs.select_action(before(as_lerobot(observe(step)))))
        torch.manual_seed(step)
        actions = ours.act(observe(step))
        assert actions.shape == (2, 1, 4)
        torch.testing.assert_close(actions[:, 0], expected)


@pytest.mark.parametrize("optimise", [None, optimise_inference], ids=["plain", "optimised"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_acts_as_in_lerobot(
    kind: str,
    optimise: Callable[[Any, bool], None] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five control steps, beyond the first chunk: equal to LeRobot's own loop."""
    theirs, before, after = make_checkpoint(kind, tmp_path / kind, monkeypatch)
    ours = load_lerobot_policy(tmp_path / kind, ROBOT, optimise=optimise)
    assert [camera.name for camera in ours.spec.cameras] == ["front", "wrist"]
    assert_equal_loops(ours, theirs, before, after, steps=5)


@pytest.mark.parametrize("kind", KINDS)
def test_executing_fewer_steps_is_lerobots_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to LeRobot's loop of the same policy with so many action steps."""
    theirs, before, after = make_checkpoint(kind, tmp_path / kind, monkeypatch)
    ours = load_lerobot_policy(tmp_path / kind, ROBOT, execute_steps=1)
    theirs.config.n_action_steps = 1
    assert_equal_loops(ours, theirs, before, after, steps=3)


@pytest.mark.parametrize(("kind", "steps"), [("act", 0), ("act", 99), ("diffusion", 99)])
def test_more_steps_than_a_chunk_has_are_refused(
    kind: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the range, which diffusion's horizon does not say by itself."""
    config = make_checkpoint(kind, tmp_path / kind, monkeypatch)[0].config
    most = config.chunk_size if kind == "act" else config.horizon - config.n_obs_steps + 1
    with pytest.raises(ValueError, match=f"chunk must lie from 1 to {most}, got {steps}"):
        load_lerobot_policy(tmp_path / kind, ROBOT, execute_steps=steps)


def test_a_checkpoint_that_blends_its_chunks_executes_no_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides at every step already."""
    settings = {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}
    make_checkpoint("act", tmp_path / "act", monkeypatch, **settings)
    with pytest.raises(ValueError, match="blends all its chunks"):
        load_lerobot_policy(tmp_path / "act", ROBOT, execute_steps=1)


def test_in_bfloat16_the_actions_are_nearly_those(act: Path) -> None:
    """Another precision, not another policy."""
    full, reduced = (
        load_lerobot_policy(act, ROBOT, bf16=bf16, optimise=optimise_inference)
        for bf16 in (False, True)
    )
    for policy in (full, reduced):
        policy.reset([0, 1])
    for step in range(5):
        expected, found = (policy.act(observe(step)) for policy in (full, reduced))
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_a_chunk_is_played_without_looking(act: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observations that ACT would drop are not prepared: one of three is."""
    policy = load_lerobot_policy(act, ROBOT)
    prepared, prepare = [], policy.batch
    monkeypatch.setattr(policy, "batch", lambda seen: prepared.append(seen) or prepare(seen))
    policy.reset([0, 1])
    for step in range(6):
        policy.act(observe(step))
    assert len(prepared) == 2


def test_episodes_that_begin_apart_do_not_share_a_queue(act: Path) -> None:
    """Each acts as if it were alone; one that never began does nothing."""
    policy = load_lerobot_policy(act, ROBOT)
    policy.reset([0, 1, 2])
    alone = [policy.act(observe(step, rows=3)) for step in range(5)]

    policy = load_lerobot_policy(act, ROBOT)
    policy.reset([0])
    first = [policy.act(observe(step, rows=3)) for step in range(2)]
    policy.reset([1])
    both = [policy.act(observe(step, rows=3)) for step in range(2, 5)]
    assert all((actions[2] == 0).all() for actions in first + both)
    for actions, expected in zip(first + both, alone, strict=True):
        torch.testing.assert_close(actions[0], expected[0])
    # Row 1 began at step 2, so its chunk is that of the observation of step 2.
    fresh = load_lerobot_policy(act, ROBOT)
    fresh.reset([0, 1, 2])
    for step, actions in enumerate(both):
        torch.testing.assert_close(actions[1], fresh.act(observe(2 + step, rows=3))[1])


def weights(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """Rewrite model.safetensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def document(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Rewrite a JSON file."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return apply


def without_action_statistics(folder: Path) -> None:
    """As a training that never saw statistics leaves it."""
    (file,) = folder.glob("policy_postprocessor*.safetensors")
    save_file({"observation.state.mean": torch.zeros(5)}, file)


def unscaled(pipeline: dict[str, Any]) -> None:
    """The unnormaliser is told to do nothing."""
    for step in pipeline["steps"]:
        if step["registry_name"] == "unnormalizer_processor":
            step["config"]["norm_map"]["ACTION"] = "IDENTITY"


PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
HEAD = "model.action_head.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (weights(lambda w: w.__delitem__(HEAD)), r"missing \['model.action_head.weight'\] \(1\)"),
        (weights(lambda w: w.update(extra=torch.zeros(1))), r"surplus \['extra'\] \(1\)"),
        (weights(lambda w: w.update({HEAD: torch.zeros(7, 32)})), "another shape"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (without_action_statistics, r"lacks the statistics \['action.mean', 'action.std'\]"),
        (document(POST, unscaled), "does not scale 'action'"),
        (document(POST, lambda p: p.update(steps=[])), r"policy_postprocessor.json lacks"),
        (document("config.json", lambda c: c.update(type="groot")), "type 'groot'.*act, diffusion"),
        (document("config.json", lambda c: c.update(output_features={})), "no action"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    """LeRobot itself would play most of them."""
    damage(copied)
    with pytest.raises(ForeignCheckpointError, match=message):
        load_lerobot_policy(copied, ROBOT)


def test_a_missing_pipeline_is_refused(copied: Path) -> None:
    """A checkpoint of before LeRobot had them, for instance."""
    (copied / PRE).unlink()
    with pytest.raises(FileNotFoundError, match="policy_preprocessor"):
        load_lerobot_policy(copied, ROBOT)


@pytest.mark.parametrize("step", [{"class": "evil.Step"}, {"registry_name": "evil_processor"}])
@pytest.mark.parametrize("name", [PRE, POST])
def test_a_processor_file_executes_nothing(
    copied: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: dict[str, str]
) -> None:
    """Also where the module that it names lies on the path."""
    (copied / "evil.py").write_text(f"open({str(copied / 'done')!r}, 'w')")
    monkeypatch.syspath_prepend(str(copied))
    document(name, lambda p: p["steps"].append({**step, "config": {}}))(copied)
    with pytest.raises(UnsafeFileError, match=r"evil.*could execute code"):
        load_lerobot_policy(copied, ROBOT)
    assert not (copied / "done").exists()


def test_another_robot_is_refused_with_every_difference(act: Path) -> None:
    """Camera names, their size, state and action in one message."""
    cameras = (CameraSpec("front", PIXELS, PIXELS + 1), CameraSpec("top", PIXELS, PIXELS))
    other = replace(ROBOT, cameras=cameras, action=ROBOT.proprio, proprio=ROBOT.action)
    with pytest.raises(ContractMismatchError) as refusal:
        Description.read(act).fit(other)
    told = str(refusal.value)
    for line in (
        "observation.images.front: (32, 32) px, the robot has (32, 33) px",
        "observation.images.wrist: (32, 32) px, the robot has none",
        "observation.state: 5 numbers, the robot has 4",
        "action: 4 numbers, the robot takes 5",
        "observation.images.top",
    ):
        assert line in told
