"""A served policy as a LeRobot policy: `lerobot-rollout` drives any LeRobot robot with it.

What goes over the network are arrays and strings (`vla_runtime.server.messages`), never pickles.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor
from vla_runtime.client import RemotePolicy
from vla_runtime.server.authentication import read_token

from vla.contract import ContractMismatchError, Observation, RobotSpec
from vla.lerobot_plugin.configuration_vla_remote import NOT_TRAINED_HERE, LeRobotVLARemoteConfig
from vla.lerobot_plugin.observations import observation_of

logger = logging.getLogger(__name__)


class LeRobotVLARemotePolicy(PreTrainedPolicy):
    """Asks a server for chunks and hands them out one command at a time.

    LeRobot joins commands to motors by their order, so the robot must list its motors in the order
    of the server's contract, which is logged on connecting.

    Args:
        config: settings; its features are set to those of the server's contract.

    Raises:
        ConnectionError: no server there, or it refuses the token.
        ContractMismatchError: what answers states no contract.
    """

    config_class = LeRobotVLARemoteConfig
    name = "vla_remote"
    config: LeRobotVLARemoteConfig

    def __init__(self, config: LeRobotVLARemoteConfig, **_: Any):
        super().__init__(config)
        token = read_token(config.token_file)
        self._remote = RemotePolicy(config.server, token, config.timeout_s)
        spec = self._remote.spec
        config.input_features, config.output_features = _features(spec)
        logger.info(
            "%s commands robot %r at %g Hz: state %s, action %s, cameras %s",
            config.server,
            spec.robot,
            spec.control_rate_hz,
            spec.proprio.names,
            spec.action.names,
            [camera.name for camera in spec.cameras],
        )
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path | None,
        *,
        config: LeRobotVLARemoteConfig | None = None,
        **_: Any,
    ) -> Self:
        """Connect; there are no weights to load, so LeRobot's path stays unused.

        Raises:
            ValueError: without settings there is no address.
        """
        if config is None:
            raise ValueError("a served policy is named by --policy.server=ws://HOST:PORT")
        return cls(config).eval()

    def reset(self) -> None:
        """A new episode begins: the rest of the last chunk is dropped."""
        self._state = self._remote.initial_state()
        self._waiting: deque[Tensor] = deque()

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The server's next chunk in physical units, float32 [1, chunk_length, action.dim].

        Raises:
            ConnectionError: the server is gone or too slow.
            ContractMismatchError: a field of the contract is missing or has another size, or there
                are several robots in the batch.
        """
        spec = self._remote.spec
        seen = observation_of(batch, spec)
        if len(seen) != 1:
            raise ContractMismatchError(f"a connection serves one robot, got {len(seen)}")
        observation = Observation(
            {name: image[0].numpy(force=True) for name, image in seen.images.items()},
            seen.proprio[0].float().numpy(force=True),
            seen.instructions[0],
        )
        chunk, self._state = self._remote.decide(observation, self._state)
        return torch.from_numpy(chunk.actions).to(seen.proprio.device)[None]

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next command [1, action.dim]; asks the server when the last chunk is used up."""
        if not self._waiting:
            self._waiting.extend(self.predict_action_chunk(batch).unbind(1))
        return self._waiting.popleft()

    def forward(self, batch: dict[str, Any]) -> NoReturn:
        """Refuse: there is nothing to train.

        Raises:
            ValueError: always.
        """
        raise ValueError(NOT_TRAINED_HERE)

    def get_optim_params(self) -> NoReturn:
        """Refuse: there is nothing to train.

        Raises:
            ValueError: always.
        """
        raise ValueError(NOT_TRAINED_HERE)


def _features(spec: RobotSpec) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    names = spec.features
    inputs = {names.proprio: PolicyFeature(FeatureType.STATE, (spec.proprio.dim,))}
    for camera in spec.cameras:
        # Channels first, as LeRobot passes images.
        shape = (3, camera.height, camera.width)
        inputs[names.camera(camera.name)] = PolicyFeature(FeatureType.VISUAL, shape)
    return inputs, {names.action: PolicyFeature(FeatureType.ACTION, (spec.action.dim,))}
