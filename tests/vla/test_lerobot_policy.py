"""Our policy inside LeRobot, without its commands: what is written, read back and refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_folder import write_folder
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from torch.utils.data import DataLoader

from sim.lerobot_plugin.config_env import VlaSimEnv
from vla.checkpoint.folder import CheckpointError
from vla.contract import ContractMismatchError
from vla.data.recorded_actions import read_chunks
from vla.lerobot_plugin import modeling_vla
from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig
from vla.lerobot_plugin.modeling_vla import DivergedError, LeRobotVLAPolicy
from vla.lerobot_plugin.observations import observation_of
from vla.lerobot_plugin.safe_files import UnsafeFileError
from vla.model.cloning_loss import cloning_loss
from vla.policy import VLAPolicy, load_policy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up episodes."""
    root = tmp_path_factory.mktemp("data") / "FetchReach"
    write_folder(root, [5, 4], image_size=96)
    return root


def metadata(root: Path) -> LeRobotDatasetMetadata:
    """As LeRobot reads it."""
    return LeRobotDatasetMetadata(f"local/{root.name}", root=root)


def new_policy(root: Path, **settings: object) -> LeRobotVLAPolicy:
    """What `lerobot-train` builds."""
    config = LeRobotVLAConfig(device="cpu", **settings)  # pyright: ignore[reportArgumentType]
    policy = make_policy(config, ds_meta=metadata(root))
    assert isinstance(policy, LeRobotVLAPolicy)
    return policy


@pytest.fixture(scope="module")
def ours(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as our own trainings save it."""
    policy = new_policy(data, chunk_length=3).policy
    return VLAPolicy(policy.model, policy.processor).save(tmp_path_factory.mktemp("runs") / "best")


def test_a_checkpoint_of_ours_is_one_that_lerobot_loads(ours: Path) -> None:
    """Configuration, pipelines and policy; the same chunk as without LeRobot."""
    config = PreTrainedConfig.from_pretrained(ours)
    assert isinstance(config, LeRobotVLAConfig)
    assert (config.chunk_length, config.head) == (3, "gaussian")
    config.pretrained_path, config.device = ours, "cpu"
    policy = make_policy(config, env_cfg=VlaSimEnv(task="FetchReach"))
    before, after = make_pre_post_processors(config, str(ours))
    images = {
        f"observation.images.{name}": torch.rand(2, 3, 96, 96)
        for name in ("front", "side", "wrist")
    }
    seen = {
        **images,
        "observation.state": torch.rand(2, 5),
        "task": ["reach the red sphere", "touch the red ball"],
    }
    batch = before(dict(seen))
    direct = load_policy(ours)
    expected = direct.act(observation_of(seen, direct.spec))
    played = torch.stack([after(policy.select_action(batch)) for _ in range(3)], dim=1)
    torch.testing.assert_close(played, expected)
    policy.reset()
    torch.testing.assert_close(after(policy.select_action(batch)), expected[:, 0])


def test_training_moves_the_actor_alone_unless_asked(data: Path) -> None:
    """A step on a batch of LeRobot's loader, with and without the vision-language model."""
    for perception in (None, "trained"):
        policy = new_policy(data, perception=perception)
        before = {name: weight.clone() for name, weight in policy.named_parameters()}
        policy.train()
        optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        loss, _ = policy.forward(training_batch(policy, data))
        loss.backward()
        optimizer.step()
        moved = {n.split(".")[1] for n, w in policy.named_parameters() if not w.equal(before[n])}
        assert ("backbone" in moved) is (perception == "trained")
        assert "actor" in moved


def test_a_training_that_diverges_stops(data: Path) -> None:
    """LeRobot itself goes on with a loss of NaN, to the end and exit 0."""
    policy = new_policy(data)
    batch = training_batch(policy, data)
    assert policy.forward(batch)[0].isfinite()
    with torch.no_grad():
        next(policy.model.actor.parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match=r"the loss is nan.*smaller --policy.learning_rate"):
        policy.forward(batch)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["learning_rate", "perception_learning_rate", "weight_decay", "feature_noise"]
)
def test_a_number_out_of_range_is_refused(name: str, value: float) -> None:
    """A negative rate would ascend."""
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got"):
        LeRobotVLAConfig(device="cpu", **changes)


def test_it_trains_by_the_loss_of_our_own_training(data: Path) -> None:
    """Noise and dropout while training and none in evaluation; the target is a static point."""
    policy = new_policy(data, feature_noise=0.5, proprio_dropout=0.5).eval()
    points = policy.model.config.points
    assert [points.names[index] for index in points.static] == ["target"]
    batch = training_batch(policy, data)
    ours = policy.policy
    observation = observation_of(batch, ours.spec)
    features = ours.network.features(ours.processor.encode_observation(observation))
    actions = ours.processor.encode_actions(batch["action"])
    torch.manual_seed(3)
    is_pad = batch["action_is_pad"]
    expected = cloning_loss(policy.model.actor, features, actions, is_pad, 0.5, None, 0.5)
    torch.manual_seed(3)
    noisy, _ = policy.train().forward(batch)
    torch.testing.assert_close(noisy, expected)
    clean, _ = policy.eval().forward(batch)
    torch.testing.assert_close(
        clean, cloning_loss(policy.model.actor, features, actions, is_pad, 0.0)
    )
    assert not torch.allclose(noisy, clean)
    assert new_policy(data, perception="trained").model.config.points.static == ()


def test_paraphrases_are_drawn_while_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample gets one of the phrasings; in evaluation it keeps what was recorded."""
    recorded = str(metadata(data).tasks.index[0])
    path = tmp_path / "words.json"
    path.write_text(json.dumps({recorded: ["go there", "move over there"]}))
    policy = new_policy(data, paraphrases=path)
    batch = training_batch(policy, data)
    batch["task"] = [recorded] * len(batch["task"])
    read: list[str] = []
    encode = policy.policy.processor.encode_observation
    monkeypatch.setattr(
        policy.policy.processor,
        "encode_observation",
        lambda observation: read.extend(observation.instructions) or encode(observation),
    )
    for _ in range(8):
        policy.train().forward(batch)
    assert set(read) == {recorded, "go there", "move over there"}
    read.clear()
    policy.eval().forward(batch)
    assert set(read) == {recorded}


def training_batch(policy: LeRobotVLAPolicy, data: Path) -> dict[str, Any]:
    """Of LeRobot's loader, with chunks."""
    indices = policy.config.action_delta_indices
    dataset = LeRobotDataset(
        "local/x", root=data, delta_timestamps={"action": [i / 25 for i in indices]}
    )
    return next(iter(DataLoader(dataset, batch_size=4)))


def test_recorded_chunks_stay_within_their_episode(data: Path) -> None:
    """The last action is repeated at an episode's end; the first entry counts the steps."""
    counted = read_chunks(data, "action", 3)[..., 0].tolist()
    assert counted[:5] == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4], [4, 4, 4]]
    assert counted[5] == [0, 1, 2]


def test_longer_instructions_get_a_longer_prompt(data: Path, tmp_path: Path) -> None:
    """A data set from elsewhere says more than ours; nobody has to set a length."""
    words = "then " * 20 + "stop"
    root = shutil.copytree(data, tmp_path / "long", ignore=shutil.ignore_patterns(".cache"))
    meta = metadata(root)
    meta.tasks.index = [words, *meta.tasks.index[1:]]
    policy = make_policy(LeRobotVLAConfig(device="cpu"), ds_meta=meta)
    prompts = policy.policy.processor.prompts
    assert prompts.texts([words])["input_ids"].shape[1] > prompts.length


def test_data_without_statistics_are_refused(data: Path, tmp_path: Path) -> None:
    """LeRobot would train on unscaled numbers."""
    root = shutil.copytree(data, tmp_path / "bare", ignore=shutil.ignore_patterns(".cache"))
    meta = metadata(root)
    assert meta.stats is not None
    del meta.stats["action"]["q01"]
    with pytest.raises(ValueError, match=r"statistics \['q01'\] of 'action'"):
        make_policy(LeRobotVLAConfig(device="cpu"), ds_meta=meta)


def test_settings_are_checked(ours: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unknown heads, and a chunk length that a checkpoint cannot have."""
    with pytest.raises(ValueError, match="valid: gaussian"):
        LeRobotVLAConfig(device="cpu", head="magic")
    # LeRobot's parser says of any error that the class could not be made; the log says why.
    assert "no action head 'magic'; valid: gaussian" in caplog.text
    with pytest.raises(ValueError, match="'frozen' or 'trained'"):
        LeRobotVLAConfig(device="cpu", perception="maybe")
    with pytest.raises(ValueError, match="chunk_length must be at least 1"):
        LeRobotVLAConfig(device="cpu", chunk_length=0)
    with pytest.raises(ValueError, match="has chunk_length 3"):
        LeRobotVLAPolicy.from_pretrained(
            ours, config=LeRobotVLAConfig(device="cpu", chunk_length=4)
        )
    other = LeRobotVLAConfig(device="cpu", chunk_length=3, head="flow")
    with pytest.raises(ValueError, match="head=flow cannot change"):
        LeRobotVLAPolicy.from_pretrained(ours, config=other)
    with pytest.raises(ValueError, match="learns its robot's contract"):
        LeRobotVLAPolicy(LeRobotVLAConfig(device="cpu"))


def test_a_hub_id_is_fetched_whole(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract and tokenizer too, which LeRobot itself would not ask for."""
    asked = []

    def fetch(name: str, revision: str | None) -> str:
        asked.append((name, revision))
        return str(ours)

    monkeypatch.setattr(modeling_vla, "snapshot_download", fetch)
    policy = LeRobotVLAPolicy.from_pretrained("somebody/policy", revision="v2")
    assert asked == [("somebody/policy", "v2")]
    assert policy.policy.spec == load_policy(ours).spec


def test_damage_is_refused(ours: Path, tmp_path: Path) -> None:
    """A changed byte, a missing weight file, and a processor that names a class."""
    for name in ("model.safetensors", "processor.json"):
        folder = shutil.copytree(ours, tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=f"{name}.*SHA-256"):
            LeRobotVLAPolicy.from_pretrained(folder)
    folder = shutil.copytree(ours, tmp_path / "class")
    path = folder / "policy_preprocessor.json"
    pipeline = json.loads(path.read_text())
    pipeline["steps"].append({"class": "evil.Step", "config": {}})
    path.write_text(json.dumps(pipeline))
    with pytest.raises(UnsafeFileError, match=r"evil\.Step"):
        LeRobotVLAPolicy.from_pretrained(folder)


def test_data_of_another_robot_are_refused(ours: Path, data: Path, tmp_path: Path) -> None:
    """Names and rate; limits may differ between data sets of one robot."""
    root = shutil.copytree(data, tmp_path / "other", ignore=shutil.ignore_patterns(".cache"))
    contract = root / "meta" / "contract.json"
    told = json.loads(contract.read_text())
    told["action"]["low"] = [-2.0] * 4
    contract.write_text(json.dumps(told))
    config = LeRobotVLAConfig(device="cpu", chunk_length=3)
    LeRobotVLAPolicy.from_pretrained(ours, config=config, dataset_meta=metadata(root))
    told["action"]["names"][0] = "joint"
    told["control_rate_hz"] = 10.0
    contract.write_text(json.dumps(told))
    with pytest.raises(ContractMismatchError, match=r"action:.*joint[\s\S]*control_rate_hz"):
        LeRobotVLAPolicy.from_pretrained(ours, config=config, dataset_meta=metadata(root))


def test_another_environment_is_refused(ours: Path) -> None:
    """Before anything moves: another number of actions, or a camera that is not there."""
    config = PreTrainedConfig.from_pretrained(ours)
    config.pretrained_path, config.device = ours, "cpu"
    other = VlaSimEnv(task="FetchReach")
    action = other.features["action"]
    other.features["action"] = type(action)(action.type, (7,))
    with pytest.raises(ContractMismatchError, match="commands 4 numbers"):
        make_policy(config, env_cfg=other)
    with pytest.raises(ContractMismatchError, match=r"needs \['observation.images.front'"):
        observation_of({"observation.state": torch.zeros(1, 5)}, load_policy(ours).spec)
