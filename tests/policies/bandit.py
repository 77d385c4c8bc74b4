"""A bandit: one state, one token a chunk, and a policy whose weights are the tokens' logits.

Everything that a method computes of it can be computed by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.reinforcement.experience import Batch
from vla.model.features import Features
from vla.model.heads.autoregressive import TokenLikelihood


class Bandit(nn.Module):
    """An actor that reads nothing.

    Args:
        logits: of the tokens.
    """

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def likelihood(self, features: Features, samples: Tensor) -> TokenLikelihood:
        """Of tokens int64 [n, 1]."""
        logits = self.logits.expand(*samples.shape, -1)
        return TokenLikelihood(logits, samples, torch.ones(*samples.shape, 1))

    def log_std_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []


def pulls(actor: Bandit, tokens: list[int], advantage: list[float]) -> Batch:
    """What the actor drew, and what came of it."""
    column = torch.tensor(tokens)[:, None]
    features = Features.of_vector(torch.zeros(len(column), 1), 1)
    return Batch(
        features=features,
        sample=column,
        log_prob=actor.likelihood(features, column).log_prob().detach(),
        weight=torch.ones(len(column), 1),
        valid=torch.ones(len(column), 1, dtype=torch.bool),
        advantage=torch.tensor(advantage),
    )
