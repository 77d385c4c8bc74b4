"""The methods of `vla refine` by name. A new method is one file and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.reinforcement.a2c import A2C, A2CConfig
from policies.reinforcement.grpo import GRPO, GRPOConfig
from policies.reinforcement.ppo import PPO, PPOConfig
from policies.reinforcement.reinforce import Reinforce, ReinforceConfig
from policies.reinforcement.rloo import RLOO, RLOOConfig
from policies.reinforcement.trpo import TRPO, TRPOConfig


@dataclass(frozen=True)
class Algorithm:
    """A method and its settings.

    Attributes:
        config: the dataclass of its settings, all of which have defaults.
        update: a `PolicyUpdate`, made of an actor and such settings.
    """

    config: type[Any]
    update: type[Any]

    @property
    def needs_critic(self) -> bool:
        """See `PolicyUpdate`."""
        return self.update.needs_critic


ALGORITHMS: dict[str, Algorithm] = {}


def register(name: str, config: type[Any], update: type[Any]) -> None:
    """Make a method known under a name.

    Raises:
        ValueError: the name is taken.
    """
    # Silently replacing one would change what a command of a finished run means.
    if name in ALGORITHMS:
        raise ValueError(f"the algorithm {name!r} is registered already: choose another name")
    ALGORITHMS[name] = Algorithm(config, update)


register("ppo", PPOConfig, PPO)
register("a2c", A2CConfig, A2C)
register("reinforce", ReinforceConfig, Reinforce)
register("trpo", TRPOConfig, TRPO)
register("grpo", GRPOConfig, GRPO)
register("rloo", RLOOConfig, RLOO)


def algorithm_of(config: Any) -> str:
    """The name of the method whose settings these are.

    Raises:
        ValueError: of none; lists the valid names.
    """
    for name, algorithm in ALGORITHMS.items():
        # The exact type: a subclass may belong to a method of its own.
        if type(config) is algorithm.config:
            return name
    raise ValueError(
        f"{type(config).__name__} belongs to no algorithm; valid: {', '.join(ALGORITHMS)}"
    )
