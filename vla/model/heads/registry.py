"""The action heads by name. A new head is one file and one line here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from vla.model.heads.base import (
    ActionHead,
    HeadConfig,
    HeadDims,
    LikelihoodHead,
    ReparameterisedHead,
)
from vla.model.heads.expert import ExpertConfig
from vla.model.heads.fast import FastHead, FastHeadConfig
from vla.model.heads.flow import FlowHead, FlowHeadConfig
from vla.model.heads.gaussian import GaussianHead, GaussianHeadConfig
from vla.model.heads.l1 import L1Head, L1HeadConfig
from vla.model.heads.token import TokenHead, TokenHeadConfig


class NoLikelihoodError(TypeError):
    """An algorithm asked a head for a likelihood that it does not have."""


class NotReparameterisedError(TypeError):
    """An algorithm needs the gradient of actions that a head does not have."""


class HeadKind(NamedTuple):
    """A head and its settings."""

    head: type[ActionHead]
    config: type[HeadConfig]


# The names are saved in checkpoints, so a head that is renamed needs `vla.checkpoint.upgrade`.
HEADS: dict[str, HeadKind] = {
    "gaussian": HeadKind(GaussianHead, GaussianHeadConfig),
    "token": HeadKind(TokenHead, TokenHeadConfig),
    "fast": HeadKind(FastHead, FastHeadConfig),
    "l1": HeadKind(L1Head, L1HeadConfig),
    "flow": HeadKind(FlowHead, FlowHeadConfig),
}


def head_name(config: HeadConfig) -> str:
    """The name under which the head of these settings is known."""
    # Settings stand for their head, so every head needs a class of settings of its own.
    return next(name for name, kind in HEADS.items() if kind.config is type(config))


def make_head(dims: HeadDims, config: HeadConfig) -> ActionHead:
    """An untrained head."""
    return HEADS[head_name(config)].head(dims, config)


def head_to_dict(config: HeadConfig) -> dict[str, Any]:
    """Plain data for JSON, with the head's name under "type"."""
    return {"type": head_name(config), **asdict(config)}


def head_from_dict(data: dict[str, Any]) -> HeadConfig:
    """Rebuild what `head_to_dict` described.

    Raises:
        ValueError: a head of that name does not exist; lists those that do.
    """
    fields = dict(data)
    if (name := fields.pop("type")) not in HEADS:
        raise ValueError(f"no action head {name!r}; valid: {', '.join(HEADS)}")
    # `asdict` made plain data of nested settings too; the expert's are the only ones.
    if "expert" in fields:
        fields["expert"] = ExpertConfig(**fields["expert"])
    return HEADS[name].config(**fields)


def require_likelihood(head: ActionHead, algorithm: str) -> LikelihoodHead:
    """The head itself, for an algorithm that needs a likelihood.

    Raises:
        NoLikelihoodError: it has none; the message names heads that have one.
    """
    if isinstance(head, LikelihoodHead):
        return head
    able = [name for name, kind in HEADS.items() if issubclass(kind.head, LikelihoodHead)]
    raise NoLikelihoodError(
        f"{algorithm} needs the likelihood of sampled actions, which {type(head).__name__} does "
        f"not have; clone with one of the heads {', '.join(able)}"
    )


def require_reparameterised(head: ActionHead, algorithm: str) -> ReparameterisedHead:
    """The head itself, for an algorithm that differentiates through its random actions.

    Raises:
        NotReparameterisedError: it has none; the message names heads that have.
    """
    if isinstance(head, ReparameterisedHead):
        return head
    able = [name for name, kind in HEADS.items() if issubclass(kind.head, ReparameterisedHead)]
    raise NotReparameterisedError(
        f"{algorithm} needs random actions with a gradient, which {type(head).__name__} does not "
        f"have; clone with the head {' or '.join(able)}"
    )
