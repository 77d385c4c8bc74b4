"""Settings of a served policy in LeRobot's commands: `--policy.type=vla_remote`.

LeRobot derives the names of the classes and of the modules beside this one from the names here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from lerobot.configs import NormalizationMode, PreTrainedConfig

from vla.settings import refusals_logged

NOT_TRAINED_HERE = "a served policy is trained where its checkpoint is, not through its server"


def _unscaled() -> dict[str, NormalizationMode]:
    # The server takes and gives physical units.
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass("vla_remote")
@dataclass
class LeRobotVLARemoteConfig(PreTrainedConfig):
    """Which server decides.

    Attributes:
        push_to_hub: off, since there are no weights here.
        normalization_mapping: LeRobot's normalisers do nothing around this policy.
        server: address of `vla serve`, `ws://HOST:PORT`.
        token_file: file with the server's token; without it the environment variable VLA_TOKEN.
        timeout_s: for the connection and for each decision; then the rollout ends with an error.
    """

    push_to_hub: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_unscaled)
    server: str = ""
    token_file: Path | None = None
    timeout_s: float = 10.0

    @refusals_logged()
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"--policy.timeout_s has to be positive, got {self.timeout_s}")
        if not self.server.startswith(("ws://", "wss://")):
            raise ValueError(f"--policy.server has to be ws://HOST:PORT, got {self.server!r}")

    @property
    def observation_delta_indices(self) -> None:
        """The present observation only."""

    @property
    def action_delta_indices(self) -> None:
        """It is not trained here."""

    @property
    def reward_delta_indices(self) -> None:
        """It is not trained here."""

    def get_optimizer_preset(self) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(NOT_TRAINED_HERE)

    def get_scheduler_preset(self) -> None:
        """It is not trained here."""

    def validate_features(self) -> None:
        """Nothing here: the server's contract is what counts."""
