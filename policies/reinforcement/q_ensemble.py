"""An ensemble of action-value critics, computed together.

Source: layer normalisation and an ensemble, Ball et al. 2023 (RLPD, arXiv:2302.02948), sections 4.2
and 4.3. Departure: the normalisation has no gain or offset of its own, since a linear layer follows
it.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from policies.reinforcement.standardised import Standardised


class QEnsemble(Standardised):
    """`e` MLPs of two hidden layers from what a critic sees and an action to a value.

    Args:
        inputs: numbers that a critic sees.
        action: numbers of an action.
        members: critics.
        hidden: width of the hidden layers.
        layer_norm: normalise the hidden layers, which bounds values of actions never seen.
    """

    def __init__(self, inputs: int, action: int, members: int, hidden: int, layer_norm: bool):
        super().__init__(inputs)
        self.layer_norm = layer_norm
        widths = (inputs + action, hidden, hidden, 1)
        sizes = list(pairwise(widths))
        # [e, in, out] and [e, 1, out]: one batched product a layer for all members.
        self.weights = nn.ParameterList(_uniform(i, members, i, o) for i, o in sizes)
        self.biases = nn.ParameterList(_uniform(i, members, 1, o) for i, o in sizes)

    def forward(
        self,
        critic_obs: Float[Tensor, "m inputs"],
        action: Float[Tensor, "m k a"],
        members: list[int] | None = None,
        frozen: bool = False,
    ) -> Float[Tensor, "e m"]:
        """Values of actions, one row a member.

        Args:
            critic_obs: what the critics see.
            action: chunks.
            members: which critics; None for all.
            frozen: the weights get no gradient, only the action does.
        """
        x = torch.cat([self.standardise(critic_obs), action.flatten(1)], dim=1)  # [m, in]
        layers = list(zip(self.weights, self.biases, strict=True))
        if members is not None:
            layers = [(weight[members], bias[members]) for weight, bias in layers]
        if frozen:
            layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
        x = x.expand(len(layers[0][0]), -1, -1)  # [e, m, in]
        for weight, bias in layers[:-1]:
            x = torch.baddbmm(bias, x, weight)  # [e, m, hidden]
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return torch.baddbmm(layers[-1][1], x, layers[-1][0]).squeeze(-1)


def _uniform(inputs: int, *shape: int) -> nn.Parameter:
    """As `nn.Linear` begins, for each member by itself."""
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(inputs))
