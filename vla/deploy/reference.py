"""What an export is compared with: the same policy in torch, one robot at a time."""

from __future__ import annotations

import numpy as np
import torch

from vla.contract import ActionChunk, Observation
from vla.model.features import Features
from vla.model.heads.autoregressive import AutoregressiveHead
from vla.model.heads.base import InpaintingHead
from vla.model.point_filter import PolicyState
from vla.policy import VLAPolicy
from vla.processing.processor import collate


class Reference:
    """An `InpaintingPolicy` that computes in torch.

    Args:
        policy: it decides with a batch of one.
    """

    def __init__(self, policy: VLAPolicy):
        self.policy, self.spec, self.chunk_length = policy, policy.spec, policy.chunk_length
        self.can_inpaint = isinstance(policy.actor.head, InpaintingHead)

    def initial_state(self) -> PolicyState:
        """The memory where an episode begins."""
        return self.policy.initial_state(1)

    def decide(self, observation: Observation, state: object) -> tuple[ActionChunk, PolicyState]:
        """See `RobotPolicy.decide`."""
        assert isinstance(state, PolicyState)
        chunk, state = self.policy.forward(collate([observation], self.spec), state)
        return ActionChunk(chunk[0].numpy()), state

    @torch.no_grad()
    def inpaint(
        self, observation: Observation, state: object, target: np.ndarray, weight: np.ndarray
    ) -> tuple[ActionChunk, PolicyState]:
        """See `InpaintingPolicy.inpaint`."""
        features, state = self._features(observation, state)
        wanted, share = torch.from_numpy(target)[None], torch.from_numpy(weight)[None]
        encoded = self.policy.processor.encode_actions(wanted)
        made = self.policy.decode(self.policy.actor.inpaint(features, encoded, share))
        kept = self.policy.processor.limits(wanted)
        return ActionChunk(torch.where((share == 1)[..., None], kept, made)[0].numpy()), state

    @torch.no_grad()
    def tokens(self, observation: Observation, state: object) -> np.ndarray | None:
        """The action tokens of a decision; None for a head without."""
        head, actor = self.policy.actor.head, self.policy.actor
        if not isinstance(head, AutoregressiveHead):
            return None
        inputs = actor.head_inputs(self._features(observation, state)[0])
        return head.generate(inputs, lambda tokens: head.next_token(inputs, tokens))[0].numpy()

    def _features(self, observation: Observation, state: object) -> tuple[Features, PolicyState]:
        assert isinstance(state, PolicyState)
        return self.policy.features(collate([observation], self.spec), state)
