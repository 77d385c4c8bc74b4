"""A served policy in LeRobot: its own commands, and what is refused before anything moves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_commands import roll_out
from policy_server import SPEC, TOKEN, CountingPolicy, observe, serving

from sim.tasks.registry import make_task
from vla.contract import ContractMismatchError
from vla.lerobot_plugin.configuration_vla_remote import LeRobotVLARemoteConfig
from vla.lerobot_plugin.modeling_vla_remote import LeRobotVLARemotePolicy


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_TOKEN", raising=False)


def batch(rows: int = 1) -> dict[str, Any]:
    """What LeRobot's preprocessor hands on: floats in 0..1, channels first."""
    observation = observe()
    images = {
        SPEC.features.camera(name): torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        for name, image in observation.images.items()
    }
    fields = images | {"observation.state": torch.from_numpy(observation.proprio)[None]}
    repeated = {key: value.expand(rows, *value.shape[1:]) for key, value in fields.items()}
    return repeated | {"task": ["lift the block"] * rows}


def test_commands_come_one_by_one_and_reset_begins_an_episode() -> None:
    """The server is asked when a chunk is used up, and sees what the robot saw."""
    seen: list[Any] = []
    with serving(CountingPolicy(decided=seen.append)) as address:
        policy = get_policy_class("vla_remote").from_pretrained(
            None, config=LeRobotVLARemoteConfig(server=address, device="cpu"), revision=None
        )
        assert isinstance(policy, LeRobotVLARemotePolicy)
        commands = torch.cat([policy.select_action(batch()) for _ in range(5)])
        assert commands[:, 2].tolist() == [0, 0, 0, 0, 1]
        policy.reset()
        assert policy.select_action(batch())[0, 2] == 0
    assert len(seen) == 3
    assert (seen[0].images["front"] == observe().images["front"]).all()
    assert (seen[0].proprio == observe().proprio).all()
    assert seen[0].instruction == "lift the block"


def test_features_are_the_contracts() -> None:
    """LeRobot compares cameras with the robot's before anything moves; nothing is scaled."""
    with serving() as address:
        config = LeRobotVLARemoteConfig(server=address, device="cpu")
        LeRobotVLARemotePolicy(config)
    kinds = {name: feature.type for name, feature in (config.input_features or {}).items()}
    assert kinds == {
        "observation.state": FeatureType.STATE,
        "observation.images.front": FeatureType.VISUAL,
        "observation/wrist_image": FeatureType.VISUAL,
    }
    before, after = make_pre_post_processors(config)
    assert (before(batch())["observation.state"] == batch()["observation.state"]).all()
    assert after(torch.full((1, 3), 7.0)).tolist() == [[7.0] * 3]


def test_several_robots_need_several_connections() -> None:
    """A batch of two is refused and not half used."""
    with serving() as address:
        policy = LeRobotVLARemotePolicy(LeRobotVLARemoteConfig(server=address, device="cpu"))
        with pytest.raises(ContractMismatchError, match="one robot, got 2"):
            policy.select_action(batch(2))


def test_a_token_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the server and of the policy."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with serving(token_file=file) as address:
        config = LeRobotVLARemoteConfig(server=address, token_file=file, device="cpu")
        LeRobotVLARemotePolicy(config)
        with pytest.raises(ConnectionError, match="refuses the token"):
            LeRobotVLARemotePolicy(LeRobotVLARemoteConfig(server=address, device="cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": "tcp://a:1"}, "has to be ws://HOST:PORT, got 'tcp://a:1'"),
        ({}, "got ''"),
        ({"server": "ws://a", "timeout_s": 0.0}, "timeout_s has to be positive"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    """Named with the flag."""
    with pytest.raises(ValueError, match=re.escape(message)):
        LeRobotVLARemoteConfig(**settings, device="cpu")


def test_it_is_not_trained_here() -> None:
    """Training says so instead of training nothing."""
    with serving() as address:
        config = LeRobotVLARemoteConfig(server=address, device="cpu")
        policy = LeRobotVLARemotePolicy(config)
        for ask in (policy.get_optim_params, config.get_optimizer_preset, lambda: policy({})):
            with pytest.raises(ValueError, match="trained where its checkpoint is"):
                ask()
        with pytest.raises(ValueError, match=r"--policy\.server"):
            LeRobotVLARemotePolicy.from_pretrained("somewhere")


@pytest.mark.render
def test_lerobot_rollout_drives_a_robot_with_a_served_policy() -> None:
    """LeRobot's own command, our simulated robot, and a policy in another process's memory."""
    decisions: list[str] = []
    policy = CountingPolicy(
        make_task("FetchReach").spec, decided=lambda seen: decisions.append(seen.instruction)
    )
    with serving(policy) as address:
        steps = roll_out("--policy.type=vla_remote", f"--policy.server={address}")
    assert 0 < steps <= 26
    # The last command of a chunk may be that of the end.
    assert steps / 4 <= len(decisions) <= steps / 4 + 2
    assert set(decisions) == {"reach the goal"}
