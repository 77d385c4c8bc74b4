"""Our policy as a LeRobot policy: `lerobot-train`, `lerobot-eval` and `lerobot-rollout` run it.

The folder that LeRobot saves is a checkpoint of ours, and a checkpoint of ours is one that LeRobot
loads. Scaling happens in our processor, inside the policy: LeRobot's normalisers, which let values
pass in silence where statistics are missing, have nothing to do.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, Self

import draccus
import torch
from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from vla.checkpoint.folder import require_current
from vla.checkpoint.initialisation import GROUNDED, load_start, same_inputs, start_policy
from vla.checkpoint.lerobot_files import POLICY_TYPE
from vla.contract import ContractMismatchError, RobotSpec
from vla.data.dataset_contract import read_contract, require_statistics
from vla.data.paraphrases import Paraphrases
from vla.data.recorded_actions import read_chunks
from vla.data.video_integrity import require_intact_videos
from vla.lerobot_plugin.configuration_vla import LeRobotVLAConfig
from vla.lerobot_plugin.observations import observation_of
from vla.lerobot_plugin.safe_files import require_safe_pipelines
from vla.model.cloning_loss import cloning_loss
from vla.model.heads.registry import HEADS, head_name
from vla.policy import VLAPolicy, load_policy
from vla.processing.embodiments import Embodiment
from vla.processing.normalisation import Statistics, VectorStatistics

_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


class DivergedError(ArithmeticError):
    """A training computed NaN or infinity."""


class LeRobotVLAPolicy(PreTrainedPolicy):
    """A vision-language-action policy for LeRobot.

    Args:
        config: settings.
        dataset_meta: of the data that a new policy is to be trained on.
        policy: a loaded one; None starts a new one from `config.start`.

    Raises:
        ValueError: neither a policy nor data that define the robot, or data without
            statistics, camera, state or action.
    """

    config_class = LeRobotVLAConfig
    name = POLICY_TYPE
    config: LeRobotVLAConfig

    def __init__(
        self,
        config: LeRobotVLAConfig,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        policy: VLAPolicy | None = None,
        **_: Any,
    ):
        super().__init__(config)
        if policy is None:
            if dataset_meta is None:
                raise ValueError(
                    "a new policy learns its robot's contract and statistics from a data set: "
                    "train it with lerobot-train, or load one with --policy.path"
                )
            policy = _start(config, dataset_meta)
        # Still None where a checkpoint does not say: then the actor alone trains.
        config.perception = config.perception or "frozen"
        self.policy, self.model = policy, policy.model
        perception = [
            part for part in (self.model.backbone, self.model.pointer) if part is not None
        ]
        # Kept apart, since `train` has to keep their dropout off as well.
        self._frozen = perception if config.perception == "frozen" else []
        for part in self._frozen:
            part.requires_grad_(False)
        self._paraphrases = Paraphrases()
        # Only for training: without data there are no recorded instructions to replace.
        if config.paraphrases is not None and dataset_meta is not None:
            recorded = [str(task) for task in dataset_meta.tasks.index]
            self._paraphrases = Paraphrases.read(config.paraphrases, recorded)
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: LeRobotVLAConfig | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> Self:
        """Load a checkpoint, strictly: every byte as its manifest says, no weight more or less.

        Raises:
            CheckpointError: missing, incomplete or damaged.
            ContractMismatchError: the data set or environment has other actions or another rate.
            ValueError: it controls several robots; neither `config.embodiment` nor the data set
                says which is meant.
            RuntimeError: a weight is missing or surplus.
            UnsafeFileError: a processor file names a class.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision))
        # Before anything in the folder is read by LeRobot.
        require_safe_pipelines(folder)
        require_current(folder)
        config = config or LeRobotVLAConfig.from_pretrained(folder)
        offered = None
        if dataset_meta is not None:
            # Damage is found now and not when a frame is drawn after hours of training.
            require_intact_videos(Path(dataset_meta.root))
            offered = read_contract(Path(dataset_meta.root), config.cameras)
        policy = load_policy(folder, config.device or "cpu", config.embodiment or offered)
        where = f"checkpoint {folder}"
        # The weights have one head and one chunk length: a setting cannot change them afterwards.
        built = policy.model.config
        config.head = config.head or head_name(built.head)
        if (config.chunk_length, config.head) != (built.chunk_length, head_name(built.head)):
            raise ValueError(
                f"{where} has chunk_length {built.chunk_length} and head {head_name(built.head)}, "
                f"which --policy.chunk_length={config.chunk_length} and "
                f"--policy.head={config.head} cannot change"
            )
        if dataset_meta is not None and offered is not None:
            _require_same_commands(policy.spec, offered, where, f"data set {dataset_meta.root}")
        _require_same_size(policy.spec, config, where)
        loaded = cls(config, dataset_meta, policy)
        loaded.eval()
        return loaded

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write a checkpoint of ours; LeRobot adds its pipelines to the folder afterwards."""
        described = draccus.encode(self.config, PreTrainedConfig)
        # LeRobot gathers the state of a distributed training; its names begin with `model.` here.
        weights = state_dict and {k.removeprefix("model."): w for k, w in state_dict.items()}
        self.policy.save(save_directory, lerobot_config=described, weights=weights)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """The actor, and perception at its own rate where it is trained."""
        groups: list[dict[str, Any]] = [{"params": [*self.model.actor.parameters()]}]
        if others := self.model.perception_parameters():
            groups.append({"params": others, "lr": self.config.perception_learning_rate})
        return groups

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def reset(self) -> None:
        """A new episode begins: the memory and the rest of the last chunk are dropped."""
        # Rows follow with the first observation.
        self._state = self.policy.initial_state(0)
        self._waiting: deque[Tensor] = deque()

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Cloning loss of a batch, the same as that of `vla pretrain`.

        Raises:
            DivergedError: it is not finite.
        """
        processor, names = self.policy.processor, self.policy.spec.features
        observation = observation_of(batch, self.policy.spec)
        noise_std = dropout = 0.0
        # LeRobot computes its validation loss with this function too: noise, dropout and
        # paraphrases belong to training alone.
        if self.training:
            noise_std, dropout = self.config.feature_noise, self.config.proprio_dropout
            observation.instructions = self._paraphrases.draw(observation.instructions)
        inputs = processor.encode_observation(observation).to(self.policy.device)
        # No averages over the episode: samples are single frames in random order.
        features = self.policy.network.features(inputs)
        actions = processor.encode_actions(batch[names.action])  # [n, chunk, action]
        is_pad = batch[f"{names.action}_is_pad"]
        loss = cloning_loss(
            self.model.actor, features, actions, is_pad, noise_std, proprio_dropout=dropout
        )
        if not loss.isfinite():  # LeRobot would go on, and save weights of NaN
            raise DivergedError(
                f"the loss is {loss.item()}: training diverged. Checkpoints that were saved before "
                "are good; try a smaller --policy.learning_rate in another folder"
            )
        return loss, {}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The chunk to execute in physical units, float32 [n, chunk_length, action.dim]."""
        observation = observation_of(batch, self.policy.spec)
        if len(self._state) != len(observation):  # LeRobot resets between batches of episodes
            self._state = self.policy.initial_state(len(observation))
        chunk, self._state = self.policy.forward(observation, self._state)
        return chunk

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next command [n, action.dim]; makes a new decision when the last chunk is used up."""
        if not self._waiting:
            # [n, chunk, action.dim] to one [n, action.dim] a control step.
            self._waiting.extend(self.predict_action_chunk(batch).unbind(1))
        return self._waiting.popleft()


def _start(config: LeRobotVLAConfig, meta: LeRobotDatasetMetadata) -> VLAPolicy:
    root = Path(meta.root)
    spec = read_contract(root, config.cameras)
    require_intact_videos(root)
    measured = [
        require_statistics(meta.stats or {}, feature, _STATISTICS, root)
        for feature in (spec.features.action, spec.features.proprio)
    ]
    start = load_start(config.start or GROUNDED, config.device or "cpu")
    # Frozen perception needs cameras and proprioception for which the start was trained.
    known = any(same_inputs(p.spec, spec) for p in start.embodiments.processors.values())
    config.perception = config.perception or ("frozen" if known else "trained")
    statistics = Statistics(*(VectorStatistics.from_dict(numbers) for numbers in measured))
    name = config.embodiment or spec.robot
    policy = start_policy(
        start,
        {name: Embodiment(spec, statistics)},
        {name: read_chunks(root, spec.features.action, config.chunk_length)},
        None if config.head is None else HEADS[config.head].config(),
    )
    config.head = head_name(policy.model.config.head)
    # Trained perception learns from single frames, so it must act from single frames too.
    policy.model.average_static_points(
        config.static_points if config.perception == "frozen" else ()
    )
    return policy


def _require_same_commands(ours: RobotSpec, theirs: RobotSpec, one: str, other: str) -> None:
    """Limits may differ between data sets of one robot; names, order and rate may not."""
    lines = [
        f"{what}: {a} != {b}"
        for what, a, b in (
            ("action", ours.action.names, theirs.action.names),
            ("proprio", ours.proprio.names, theirs.proprio.names),
            ("control_rate_hz", ours.control_rate_hz, theirs.control_rate_hz),
        )
        if a != b
    ]
    if lines:
        raise ContractMismatchError(f"{one} does not fit {other}:\n  " + "\n  ".join(lines))


def _require_same_size(spec: RobotSpec, config: LeRobotVLAConfig, where: str) -> None:
    """LeRobot has put the environment's or the data set's actions into the configuration."""
    offered = (config.output_features or {}).get(spec.features.action)
    if offered is not None and tuple(offered.shape) != (spec.action.dim,):
        raise ContractMismatchError(
            f"{where} commands {spec.action.dim} numbers {list(spec.action.names)}, "
            f"here are {offered.shape}"
        )
