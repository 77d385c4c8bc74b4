"""Checkpoints through torch as a robot's policy, alone and in the control loop."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import PIXELS, make_checkpoint
from two_robots import ARM, CART, observe, tiny_policy
from vla_runtime.contract import MotionLimits, Observation, Reading, RobotPolicy, RobotSpec
from vla_runtime.run import run_robot
from vla_runtime.run_config import RunConfig
from vla_runtime.safety.gate import SafetyConfig
from vla_runtime.server import service
from vla_runtime.server.config import ServeConfig

from sim.tasks.fetch_arm import fetch_robot_spec
from vla.contract import ContractMismatchError
from vla.deploy.torch_policy import load

FETCH = fetch_robot_spec(PIXELS)
TWO_CAMERAS = replace(FETCH, cameras=(FETCH.cameras[0], FETCH.cameras[2]))  # front and wrist


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy of two robots."""
    return tiny_policy(CART, ARM).save(tmp_path_factory.mktemp("run") / "best")


def first(spec: RobotSpec) -> Observation:
    """One robot's observation."""
    batch = observe(spec, 1)
    images = {name: image[0].numpy() for name, image in batch.images.items()}
    return Observation(images, batch.proprio[0].numpy(), batch.instructions[0])


@pytest.mark.parametrize("spec", [CART, ARM], ids=["cart", "arm"])
def test_the_robot_chooses_the_embodiment(checkpoint: Path, spec: RobotSpec) -> None:
    """And the chunk is that of the batched policy."""
    policy = load(checkpoint, spec)
    assert policy is not None
    assert isinstance(policy, RobotPolicy)
    assert policy.spec == spec
    chunk, _ = policy.decide(first(spec), policy.initial_state())
    batched = tiny_policy(CART, ARM).embodied(spec.robot)
    expected, _ = batched.forward(observe(spec, 1), batched.initial_state(1))
    np.testing.assert_array_equal(chunk.actions, expected[0].numpy())


def test_a_run_stands_for_its_best_checkpoint(checkpoint: Path) -> None:
    """As for `vla evaluate`."""
    policy = load(checkpoint.parent, CART)
    assert policy is not None
    assert policy.chunk_length == 3


def test_which_robot_has_to_be_known(checkpoint: Path) -> None:
    """A server does not know it: the message lists those that there are."""
    with pytest.raises(ValueError, match="cart"):
        load(checkpoint, None)
    with pytest.raises(ContractMismatchError):
        load(checkpoint, replace(CART, robot="another", control_rate_hz=3.0))


def test_other_folders_are_left_to_other_loaders(tmp_path: Path) -> None:
    """None, and no error."""
    assert load(tmp_path, CART) is None


def test_a_lerobot_policy_takes_its_units_from_the_robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunk is what `select_action` gives step by step, clipped to the robot's limits."""
    theirs, before, after = make_checkpoint("act", tmp_path / "act", monkeypatch)
    with pytest.raises(
        ValueError, match=r"no units, limits or rate: serve it with those of .*--contract"
    ):
        load(tmp_path / "act", None)
    policy = load(tmp_path / "act", TWO_CAMERAS)
    assert policy is not None
    assert policy.spec == TWO_CAMERAS
    observation = first(TWO_CAMERAS)
    chunk, _ = policy.decide(observation, policy.initial_state())
    assert len(chunk.actions) == policy.chunk_length == theirs.config.n_action_steps
    batch = {
        f"observation.images.{name}": torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        for name, image in observation.images.items()
    } | {"observation.state": torch.from_numpy(observation.proprio)[None]}
    with torch.inference_mode():
        steps = [after(theirs.select_action(before(dict(batch))))[0] for _ in chunk.actions]
    expected = np.clip(torch.stack(steps).numpy(), FETCH.action.low, FETCH.action.high)
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-6)


def test_a_server_is_told_the_robot(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a LeRobot policy, which does not know it, and of one of several robots."""
    make_checkpoint("act", tmp_path / "act", monkeypatch)
    for source, spec in ((tmp_path / "act", FETCH), (checkpoint, ARM)):
        (file := tmp_path / "contract.json").write_text(json.dumps(spec.to_dict()))
        policy = service._load(ServeConfig(str(source), contract=file))
        seen = TWO_CAMERAS if spec is FETCH else spec
        assert policy.spec == seen
        chunk, _ = policy.decide(first(seen), policy.initial_state())
        assert chunk.actions.shape == (policy.chunk_length, spec.action.dim)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"contract.json is no contract: KeyError\('robot'\)"):
        service._load(ServeConfig(str(checkpoint), contract=file))


class Cart:
    """The cart, which stands where it is told to."""

    halted = "it stands"

    def __init__(self) -> None:
        self.spec = replace(CART, motion=MotionLimits(("position",), (1.0,), (10.0,)))
        self.position = np.zeros(1)

    def connect(self) -> None:
        """Nothing to open."""

    def read(self) -> Reading:
        """A black image."""
        images = {"top": np.zeros((2, 2, 3), np.uint8)}
        position = self.position.copy()
        return Reading(images, position.astype(np.float32), position, time.monotonic())

    def write(self, command: np.ndarray) -> None:
        """Go there."""
        self.position = command.copy()

    def halt(self) -> None:
        """It stands."""

    def disconnect(self) -> None:
        """Nothing to close."""


def load_checkpoint(source: str, robot: RobotSpec) -> RobotPolicy:
    """For the inference process."""
    policy = load(Path(source), robot)
    assert policy is not None
    return policy


def test_a_checkpoint_drives_a_robot(checkpoint: Path, tmp_path: Path) -> None:
    """Through the loop, with torch in the inference process alone."""
    cart = Cart()
    config = RunConfig(
        "cart",
        str(checkpoint),
        "lift the red block",
        execution="receding:2",
        seconds=1.5,
        priority=0,
        out=tmp_path,
        safety=SafetyConfig(heartbeat_s=5.0, max_observation_age_s=5.0),
    )
    report = run_robot(cart, config, load_checkpoint)
    assert report.succeeded, report.ended
    assert report.details["decision_ms"]["count"] > 1
    assert cart.position[0] != 0
