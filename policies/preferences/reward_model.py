"""A reward learned from which of two segments is better.

Source: Christiano et al. 2017, Deep reinforcement learning from human preferences
(arXiv:1706.03741): equation 1 is the Bradley-Terry probability of a preference from the sums of
rewards, its cross-entropy the loss; an ensemble is averaged, and a judge is taken to err now and
then (section 2.2). Departures:

- Rewards are scaled and clipped to 0 to 1, not standardised: comparisons do not say where 0 is, and
  with negative rewards it would pay to end an episode early.
- A chunk has one reward, a function of what it led to, and not of an observation and an action.
- Members see the same comparisons in other orders and differ in their first weights; there is no
  bootstrap. Weight decay is fixed, not adapted to the held-out loss.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from vla_runtime.atomic_folder import sync

from policies.optimisation import cosine, optimizer_step
from policies.preferences.comparisons import ComparisonError
from policies.preferences.preference_batch import Inputs, PreferenceBatch
from policies.reinforcement.critic import Critic
from policies.reinforcement.experience import shuffled
from vla.settings import require_numbers


@dataclass(frozen=True)
class RewardModelConfig:
    """What the reward sees, and how it is fitted.

    Attributes:
        inputs: "privileged" simulator state, or the policy's "features".
        members: networks whose mean is the reward.
        hidden: width of their two hidden layers.
        epochs: passes over the comparisons.
        minibatch_size: comparisons a gradient step, roughly.
        learning_rate: of AdamW; falls to 0 along a cosine.
        weight_decay: of AdamW.
        error_rate: how often the judge is taken to answer at random.
        max_grad_norm: gradients are clipped to this norm.
        heldout_fraction: share of the initial states whose comparisons only measure.
        seed: of everything random.
    """

    inputs: Inputs = "privileged"
    members: int = 3
    hidden: int = 256
    epochs: int = 30
    minibatch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.3
    error_rate: float = 0.1
    max_grad_norm: float = 1.0
    heldout_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("members", "hidden", "epochs", "minibatch_size"),
            above_0=("max_grad_norm", "heldout_fraction"),
            at_most={"error_rate": 0.99, "heldout_fraction": 0.9},
        )


class RewardModel(nn.Module):
    """The mean of an ensemble; a reward is one number for what a chunk led to.

    Args:
        width: numbers that it reads.
        config: sizes.
    """

    low: Tensor
    high: Tensor

    def __init__(self, width: int, config: RewardModelConfig):
        super().__init__()
        self.width, self.config = width, config
        # A network from a vector to a number that standardises its input, as a critic is.
        self.members = nn.ModuleList(Critic(width, config.hidden) for _ in range(config.members))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def raw(self, vectors: Float[Tensor, "*rows d"]) -> Float[Tensor, "members ..."]:
        """Rewards of each member, in the unit in which preferences are log-odds."""
        return torch.stack([member(vectors) for member in self.members])

    def forward(self, vectors: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """Rewards between 0 and 1, the lowest and the highest of what was compared."""
        # Clipped: what lies beyond was never compared. Not negative: an end would pay.
        return ((self.raw(vectors).mean(0) - self.low) / (self.high - self.low)).clamp(0, 1)

    def log_odds(self, batch: PreferenceBatch) -> Float[Tensor, "members n"]:
        """Difference of the two segments' returns, for each member."""
        returns = (self.raw(batch.reached) * batch.weight).sum(-1)  # [members, n, 2]
        return returns[..., 0] - returns[..., 1]

    @torch.no_grad()
    def probability(self, batch: PreferenceBatch) -> Float[Tensor, " n"]:
        """That the first segment is preferred: the mean over the members."""
        return preference_probability(self.log_odds(batch), self.config.error_rate).mean(0)

    @torch.no_grad()
    def scale(self, batch: PreferenceBatch) -> None:
        """Measure the range of the rewards of these comparisons, but for the outermost percent."""
        rewards = self.raw(batch.reached[batch.weight > 0]).mean(0)
        self.low.copy_(rewards.quantile(0.01))
        self.high.copy_(torch.maximum(rewards.quantile(0.99), self.low + 1e-6))

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write weights and `reward.json` into an existing folder."""
        description = {"width": self.width, "config": asdict(self.config), **about}
        (folder / "reward.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        own = {
            name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()
        }
        save_file(own, folder / "model.safetensors")
        sync(folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> tuple[Self, dict[str, Any]]:
        """A model, and what `save` was told about it.

        Raises:
            ComparisonError: there is none, it is damaged, or a weight is not finite.
        """
        try:
            about = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
            model = cls(about.pop("width"), RewardModelConfig(**about.pop("config")))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except FileNotFoundError as error:
            raise ComparisonError(
                f"there is no reward model in {folder}: fit one with `vla reward --out "
                f"{shlex.quote(str(folder))}`"
            ) from error
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ComparisonError(f"the reward model in {folder} is damaged: {error}") from error
        if bad := [n for n, weight in model.state_dict().items() if not weight.isfinite().all()]:
            raise ComparisonError(f"the reward model in {folder} is not finite in {bad[0]}")
        return model.eval(), about


def preference_probability(log_odds: Tensor, error_rate: float) -> Tensor:
    """Bradley and Terry's probability, of a judge that sometimes answers at random.

    `(1 - error_rate) sigmoid(log_odds) + error_rate / 2`: equation 1, with section 2.2.3.
    """
    return (1 - error_rate) * log_odds.sigmoid() + error_rate / 2


def preference_loss(
    log_odds: Float[Tensor, "*members n"], label: Float[Tensor, " n"], error_rate: float
) -> Float[Tensor, "*members"]:
    """Mean cross-entropy of labels [n], 1 where the first is better, 0.5 for a tie; in nats."""
    if error_rate == 0:
        # In this form nothing underflows, however sure the model is.
        losses = nn.functional.softplus(-log_odds) + (1 - label) * log_odds
    else:
        probability = preference_probability(log_odds, error_rate)
        losses = -(label * probability.log() + (1 - label) * (1 - probability).log())
    return losses.mean(-1)


def fit_epoch(
    model: RewardModel,
    optimizer: torch.optim.Optimizer,
    batch: PreferenceBatch,
    generator: torch.Generator,
) -> float:
    """One pass over all comparisons; the mean loss of a member.

    Raises:
        NotFiniteError: the loss or a gradient is not finite.
    """
    config, losses = model.config, []
    for rows in shuffled(len(batch), config.minibatch_size, generator):
        part = batch.select(rows)
        # The members share no weight, so their sum trains each by its own loss.
        loss = preference_loss(model.log_odds(part), part.label, config.error_rate).sum()
        optimizer_step(optimizer, loss, config.max_grad_norm)
        losses.append(float(loss.detach()) / config.members)
    return sum(losses) / len(losses)


def fit(
    train: PreferenceBatch,
    config: RewardModelConfig,
    progress: Callable[[int, RewardModel, float], None] = lambda epoch, model, loss: None,
) -> RewardModel:
    """A model of these comparisons.

    Args:
        train: comparisons.
        config: how it is fitted.
        progress: called after each epoch, counted from 1, with its mean loss.

    Raises:
        NotFiniteError: the loss or a gradient is not finite.
    """
    # Members differ in their first weights.
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = RewardModel(train.reached.shape[-1], config)
    for member in cast(list[Critic], [*model.members]):
        member.update_statistics(train.reached[train.weight > 0])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(epoch, config.epochs)
        progress(epoch + 1, model, fit_epoch(model, optimizer, train, generator))
    model.scale(train)
    return model
