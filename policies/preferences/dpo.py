"""Direct preference optimisation of a policy that decides in chunks.

Source: Rafailov et al. 2023 (arXiv:2305.18290), equation 7:
`-log sigmoid(beta ((log p(w) - log p_ref(w)) - (log p(l) - log p_ref(l))))` of a preferred w and a
rejected l. For trajectories the log-probability is the sum over their decisions: the states'
probabilities cancel (Zhang et al. 2024, GRAPE, arXiv:2411.19309, equation 4). Departures:

- `level="chunk"` compares the two chunks at each place of the episodes by themselves, with the
  trajectories' label: every chunk keeps its gradient where the sum would saturate the sigmoid.
- Executed control steps alone count, and the exploration stays that of the collection: lowering it
  would raise the likelihood of every sample.
- Only the actor is trained, on the features that were stored; ties teach nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from policies.preferences.comparisons import Comparison, ComparisonError, Pair, require_told
from policies.preferences.trajectories import Trajectory
from policies.reinforcement.reference import Reference
from policies.reinforcement.stochastic_policy import StochasticActor, in_parts
from vla.model.features import Features
from vla.model.heads.base import Likelihood
from vla.settings import require_numbers


@dataclass(frozen=True)
class DPOConfig:
    """Hyperparameters, and how long to train; sources in the module's docstring.

    Attributes:
        epochs: passes over the pairs.
        beta: weight of the log-ratios: the larger, the closer the policy stays to the reference.
        level: "trajectory" sums the log-ratios of an episode, "chunk" compares each chunk.
        minibatch_size: pairs a gradient step, roughly.
        learning_rate: of Adam; small, since nothing but it and beta bounds how far the policy
            moves from the pairs that were collected.
        log_std_learning_rate: of the exploration; 0 leaves it as it was in the collection.
        max_grad_norm: gradients are clipped to this norm.
        heldout_fraction: share of the initial states whose pairs only measure.
        evaluate_every: epochs between greedy evaluations and checkpoints.
        seed: of everything random.
    """

    epochs: int = 6
    beta: float = 0.1
    level: Literal["trajectory", "chunk"] = "trajectory"
    minibatch_size: int = 32
    learning_rate: float = 2e-5
    log_std_learning_rate: float = 0.0
    max_grad_norm: float = 0.5
    heldout_fraction: float = 0.1
    evaluate_every: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(
            self,
            at_least_1=("epochs", "minibatch_size", "evaluate_every"),
            above_0=("beta", "max_grad_norm", "heldout_fraction"),
            at_most={"heldout_fraction": 0.9},
        )


@dataclass(frozen=True)
class PairBatch:
    """`n` pairs of trajectories, preferred and rejected, of `r` decisions together.

    Attributes:
        features: of r observations.
        sample: what the actor drew, [r, ...].
        valid: bool [r, k], the executed control steps.
        rows: int64 [n, 2, m], the decisions of the preferred and of the rejected trajectory; where
            one is shorter than m, any.
        played: bool [n, 2, m], False there.
        reference: float32 [r], the log-probability of each decision under the frozen policy.
    """

    features: Features
    sample: Shaped[Tensor, "r ..."]
    valid: Bool[Tensor, "r k"]
    rows: Int64[Tensor, "n 2 m"]
    played: Bool[Tensor, "n 2 m"]
    reference: Float[Tensor, " r"]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, pairs: Tensor) -> PairBatch:
        """These pairs, with their decisions alone."""
        used, rows = torch.unique(self.rows[pairs], return_inverse=True)
        return PairBatch(
            self.features.select(used),
            self.sample[used],
            self.valid[used],
            rows,
            self.played[pairs],
            self.reference[used],
        )


def stack_pairs(
    comparisons: Sequence[Comparison],
    trajectories: Mapping[str, Trajectory],
    reference: Reference,
    device: torch.device,
) -> PairBatch:
    """Pairs of whole trajectories of which one is better, on the device of the reference.

    Raises:
        ComparisonError: there are none, or segments were compared that do not begin in the same
            state.
    """
    told = [
        c.pair if c.label else Pair(c.pair.second, c.pair.first) for c in require_told(comparisons)
    ]
    names = list(dict.fromkeys(s.trajectory for pair in told for s in (pair.first, pair.second)))
    parts = [trajectories[name] for name in names]
    lengths = [len(part) for part in parts]
    first_rows = dict(zip(names, itertools.accumulate(lengths, initial=0), strict=False))
    rows = torch.zeros(len(told), 2, max(lengths), dtype=torch.int64)
    played = torch.zeros(rows.shape, dtype=torch.bool)
    for index, pair in enumerate(told):
        for side, segment in enumerate((pair.first, pair.second)):
            length = len(trajectories[segment.trajectory])
            if (segment.start, segment.stop) != (0, length):
                raise ComparisonError(
                    "DPO compares what was done in one state, and these are segments from inside "
                    "of episodes: record whole ones (`vla compare` without --segment-chunks), or "
                    "fit a reward model"
                )
            rows[index, side, :length] = first_rows[segment.trajectory] + torch.arange(length)
            played[index, side, :length] = True
    features = Features.concatenate([part.features for part in parts]).to(device)
    sample = torch.cat([part.sample for part in parts]).to(device)
    valid = torch.cat([part.valid for part in parts]).to(device)
    # Once: the reference never changes.
    both = zip(in_parts(features, sample), in_parts(features, valid), strict=True)
    frozen = torch.cat(
        [chunk_log_probs(reference.likelihood(f, drawn), v) for (f, drawn), (_, v) in both]
    )
    return PairBatch(features, sample, valid, rows.to(device), played.to(device), frozen)


def chunk_log_probs(likelihood: Likelihood, valid: Bool[Tensor, "r k"]) -> Float[Tensor, " r"]:
    """Of each decision, summed over its executed control steps."""
    return (likelihood.log_prob() * likelihood.weight(valid)).sum(1)


def margins(
    log_ratio: Float[Tensor, " r"], pairs: PairBatch, config: DPOConfig
) -> tuple[Float[Tensor, "n places"], Bool[Tensor, "n places"]]:
    """Times beta: how much more the preferred one has gained, and which entries count.

    Args:
        log_ratio: of each decision, policy over reference.
        pairs: which decisions belong together.
        config: beta and level.

    Returns:
        [n, 1] for whole trajectories, [n, m] for chunks.
    """
    gained = config.beta * log_ratio[pairs.rows] * pairs.played  # [n, 2, m]
    if config.level == "trajectory":
        whole = gained.sum(2, keepdim=True)  # [n, 2, 1]
        return whole[:, 0] - whole[:, 1], pairs.played.any(2).all(1)[:, None]
    # A place that one of the two did not reach has nothing to be compared with.
    return gained[:, 0] - gained[:, 1], pairs.played.all(1)


def dpo_loss(
    actor: StochasticActor, pairs: PairBatch, config: DPOConfig
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Equation 7, a mean over pairs, or over their chunks; and what was measured."""
    likelihood = actor.likelihood(pairs.features, pairs.sample)
    log_ratio = chunk_log_probs(likelihood, pairs.valid) - pairs.reference
    margin, counts = margins(log_ratio, pairs, config)
    loss = -(nn.functional.logsigmoid(margin) * counts).sum() / counts.sum()
    # By the sum over the trajectory at both levels, so that figures can be compared.
    gained = (log_ratio.detach()[pairs.rows] * pairs.played).sum(2)  # [n, 2]
    return loss, {
        "dpo/loss": float(loss.detach()),
        "dpo/accuracy": float((gained[:, 0] > gained[:, 1]).float().mean()),
        "dpo/preferred_log_ratio": float(gained[:, 0].mean()),
        "dpo/rejected_log_ratio": float(gained[:, 1].mean()),
    }
