"""What policy.json says of a LeRobot policy: the queues and the loop around its graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Denoising:
    """From noise to a chunk: one call of the graph `denoise` for every row of the tables.

    Attributes:
        times: what the network is told of the time, a step.
        coefficients: constants of each step's update; see `vla.deploy.lerobot_denoising`.
        shape: of the sample, without rows.
        fresh_noise: noise is added in every step, not only drawn at first.
    """

    times: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]
    shape: tuple[int, ...]
    fresh_noise: bool


@dataclass(frozen=True)
class LeRobotSettings:
    """What LeRobot does around a policy's network.

    Attributes:
        observation_steps: latest observations that a chunk is computed from, one a control step.
        action_steps: control steps of a chunk that are executed before the next is computed.
        ensemble: coefficient of ACT's temporal ensemble; None without.
        denoising: how a sample is drawn; None for a policy that does not draw.
    """

    observation_steps: int
    action_steps: int
    ensemble: float | None = None
    denoising: Denoising | None = None

    @property
    def chunk_length(self) -> int:
        """Control steps a decision: 1 where the policy has to see every control step."""
        seen = self.observation_steps > 1 or self.ensemble is not None
        return 1 if seen else self.action_steps

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LeRobotSettings:
        """Rebuild from `dataclasses.asdict`, also after JSON."""
        fields = dict(data)
        if (loop := fields["denoising"]) is not None:
            rows = tuple(tuple(row) for row in loop["coefficients"])
            lists = {name: tuple(loop[name]) for name in ("times", "shape")}
            fields["denoising"] = Denoising(**{**loop, **lists, "coefficients": rows})
        return cls(**fields)
