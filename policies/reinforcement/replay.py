"""A replay buffer of whole episodes, with demonstrations beside it that are never overwritten.

Everything lies in tensors that are allocated once, on the policy's device; a batch is gathered in a
few operations whatever its size. Episodes are kept as they were played, so that n-step returns and
hindsight goals of the same episode can be formed while sampling.

Source: n-step returns, Sutton 1988, uncorrected as in Hessel et al. 2018 (Rainbow,
arXiv:1710.02298), equation in section 3; half of every batch from demonstrations, Ball et al. 2023
(RLPD, arXiv:2302.02948), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies.reinforcement.collect import flatten
from policies.reinforcement.hindsight import Hindsight
from vla.model.features import Features

_SEEN = ("readout", "points", "proprio", "dim_mask")
"""What is kept of features; the prompt would be gigabytes, and an actor that is trained off-policy
does not attend to it."""


@dataclass(frozen=True)
class Transitions:
    """`m` steps of n macro-steps each, in any order.

    Attributes:
        features: what the actor saw.
        next_features: what it saw n macro-steps later, or at the episode's end.
        critic_obs: what a critic saw, float32 [m, d].
        next_critic_obs: the same at the moment of `next_features`.
        action: the normalised chunk that was executed, float32 [m, k, a].
        reward: discounted sum on the way, float32 [m].
        discount: of the value at `next_features`, float32 [m]; 0 after a termination, but not after
            a time limit.
    """

    features: Features
    next_features: Features
    critic_obs: Float[Tensor, "m d"]
    next_critic_obs: Float[Tensor, "m d"]
    action: Float[Tensor, "m k a"]
    reward: Float[Tensor, " m"]
    discount: Float[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.reward)

    def select(self, rows: slice | Tensor) -> Transitions:
        """These steps."""
        features, next_features = self.features.select(rows), self.next_features.select(rows)
        rest = [getattr(self, field.name)[rows] for field in fields(self)[2:]]
        return Transitions(features, next_features, *rest)


@dataclass(frozen=True)
class ReplayDims:
    """Sizes of a buffer.

    Attributes:
        episodes: of the policy's own; the oldest are overwritten.
        demonstrations: episodes beside them that stay.
        length: macro-steps of the longest episode.
        chunk_length: control steps a macro-step.
        action: dimensions of a normalised action.
    """

    episodes: int
    demonstrations: int
    length: int
    chunk_length: int
    action: int


class Replay:
    """Episodes of macro-steps, [episode, step, ...].

    Slots 0 to `dims.demonstrations - 1` hold demonstrations, those after them the policy's own
    episodes in a ring.

    Args:
        dims: sizes.
        features: an example with one row, which gives widths and types.
        critic_obs: an example [1, d]; None where the critic reads the features.
        n_step: macro-steps of a return.
        hindsight: relabels goals in the `proprio` of features that are simulator states, and then
            critics read the features; None relabels nothing.
    """

    def __init__(
        self,
        dims: ReplayDims,
        features: Features,
        critic_obs: Tensor | None,
        n_step: int,
        hindsight: Hindsight | None = None,
    ):
        self.dims, self._n_step, self._hindsight = dims, n_step, hindsight
        slots, device = dims.demonstrations + dims.episodes, features.device
        examples = {name: getattr(features, name) for name in _SEEN}
        if critic_obs is not None:
            examples["critic_obs"] = critic_obs
        # One observation more than steps: the last one has only been seen.
        rows = slots * (dims.length + 1)
        self._observed = {name: e.new_zeros(rows, *e.shape[1:]) for name, e in examples.items()}
        steps = slots * dims.length
        self._steps = {
            "action": torch.zeros(steps, dims.chunk_length, dims.action, device=device),
            "reward": torch.zeros(steps, device=device),
            "discount": torch.zeros(steps, device=device),
        }
        # Steps of each episode whose following observation is known: those that can be sampled.
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self._begun = 0  # the policy's own episodes since the beginning, also overwritten ones
        self._recorded = 0  # demonstrations

    def begin(self, count: int) -> Int[Tensor, " count"]:
        """Slots for new episodes of the policy, which take those of the oldest."""
        dims = self.dims
        places = (self._begun + torch.arange(count)) % dims.episodes
        self._begun += count
        return self._emptied(dims.demonstrations + places)

    def begin_demonstrations(self, count: int) -> Int[Tensor, " count"]:
        """Slots for demonstrations."""
        slots = self._recorded + torch.arange(count)
        self._recorded += count
        if self._recorded > self.dims.demonstrations:
            raise ValueError(f"room for {self.dims.demonstrations} demonstrations only")
        return self._emptied(slots)

    def _emptied(self, slots: Tensor) -> Tensor:
        slots = slots.to(self.lengths.device)
        self.lengths[slots] = 0
        return slots

    def observe(
        self,
        slots: Int[Tensor, " m"],
        at: Int[Tensor, " m"],
        features: Features,
        critic_obs: Tensor | None,
    ) -> None:
        """Store what was seen before step `at` of these episodes, or after their last one."""
        rows = slots * (self.dims.length + 1) + at
        for name in _SEEN:
            self._observed[name][rows] = getattr(features, name)
        if critic_obs is not None:
            self._observed["critic_obs"][rows] = critic_obs
        # The step before it is complete now.
        self.lengths[slots] = at

    def step(
        self,
        slots: Int[Tensor, " m"],
        at: Int[Tensor, " m"],
        action: Float[Tensor, "m k a"],
        reward: Float[Tensor, " m"],
        discount: Float[Tensor, " m"],
    ) -> None:
        """Store step `at`: the chunk, its discounted reward, and the discount of what follows."""
        rows = slots * self.dims.length + at
        self._steps["action"][rows] = action
        self._steps["reward"][rows] = reward
        self._steps["discount"][rows] = discount

    def __len__(self) -> int:
        """Steps that can be sampled, without demonstrations."""
        return int(self.lengths[self.dims.demonstrations :].sum())

    def sample(self, count: int, size: int, generator: torch.Generator) -> list[Transitions]:
        """`count` batches of `size` steps; with demonstrations half of each are theirs."""
        first = self.dims.demonstrations
        demonstrated = size // 2 if self._recorded else 0
        own = self._draw(first, len(self.lengths), count * (size - demonstrated), generator)
        # [count, size] each, so that every batch has its half of demonstrations.
        episode, at = (part.view(count, -1) for part in own)
        if demonstrated:
            theirs = self._draw(0, first, count * demonstrated, generator)
            episode = torch.cat([episode, theirs[0].view(count, -1)], 1)
            at = torch.cat([at, theirs[1].view(count, -1)], 1)
        # Gathered for all batches at once: many small gathers cost more than the gradient steps.
        drawn = self.read(episode.flatten(), at.flatten(), self._n_step, generator)
        return [drawn.select(slice(i * size, (i + 1) * size)) for i in range(count)]

    def _draw(
        self, first: int, last: int, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Episodes and steps, each step of the slots from `first` to `last - 1` equally often."""
        lengths = self.lengths[first:last]
        ends = lengths.cumsum(0)
        # float64: float32 misses some of millions of steps.
        u = torch.rand(count, generator=generator, device=ends.device, dtype=torch.float64)
        position = (u * ends[-1]).long()
        episode = torch.searchsorted(ends, position, right=True)
        return first + episode, position - (ends - lengths)[episode]

    def read(
        self,
        episode: Int[Tensor, " m"],
        at: Int[Tensor, " m"],
        n_step: int,
        relabel: torch.Generator | None = None,
    ) -> Transitions:
        """The n-step returns from these steps; a generator draws hindsight goals for some."""
        length = self.lengths[episode]  # [m]
        offsets = torch.arange(n_step, device=at.device)
        steps = at[:, None] + offsets  # [m, n]
        inside = steps < length[:, None]  # a return ends with its episode
        rows = episode[:, None] * self.dims.length + steps.clamp_max(self.dims.length - 1)
        reward = self._steps["reward"][rows]  # [m, n]
        discount = self._steps["discount"][rows].where(inside, 1.0)
        here = episode * (self.dims.length + 1)  # [m], each episode's first observation
        seen = self._gather(here + at)
        following = self._gather(here + torch.minimum(at + n_step, length))
        if self._hindsight is not None and relabel is not None:
            goal, is_new = self._new_goals(seen["proprio"], here, at, length, relabel)
            after = here[:, None] + steps.clamp_max(self.dims.length - 1) + 1  # [m, n]
            achieved = self._hindsight.achieved(self._observed["proprio"][after])  # [m, n, g]
            reward = self._hindsight.reward(achieved, goal[:, None]).where(is_new[:, None], reward)
            for part in (seen, following):
                self._hindsight.relabel(part["proprio"], goal)
        # Product of the discounts before each step: 1, d_0, d_0 d_1, ... [m, n]
        before = discount.cumprod(1).roll(1, 1)
        before[:, 0] = 1.0
        return Transitions(
            _features(seen),
            _features(following),
            _critic_obs(seen),
            _critic_obs(following),
            self._steps["action"][episode * self.dims.length + at],
            (reward * before * inside).sum(1),
            discount.prod(1),
        )

    def _gather(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: column.index_select(0, rows) for name, column in self._observed.items()}

    def _new_goals(
        self, state: Tensor, first: Tensor, at: Tensor, length: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Of each step a goal [m, g], and whether it is another one than was played, bool [m]."""
        assert self._hindsight is not None
        # The strategy "future": any observation of the episode after this one.
        u, chance = torch.rand(2, len(at), generator=generator, device=at.device)
        # Rounding may bring u * count to count, hence the bound.
        future = torch.minimum(at + 1 + (u * (length - at)).long(), length)
        achieved = self._hindsight.achieved(self._observed["proprio"][first + future])
        is_new = chance < self._hindsight.share
        return achieved.where(is_new[:, None], self._hindsight.goal(state)), is_new

    def newest(self, count: int) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Episodes and steps of all that was stored of the policy's last `count` episodes."""
        dims = self.dims
        slots = dims.demonstrations + (self._begun - 1 - torch.arange(count)) % dims.episodes
        return self._every_step(slots.to(self.lengths.device))

    def demonstrations(self) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Episodes and steps of all demonstrations."""
        return self._every_step(torch.arange(self._recorded, device=self.lengths.device))

    def _every_step(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(self.dims.length, device=slots.device)
        row, at = (at < self.lengths[slots][:, None]).nonzero(as_tuple=True)  # [m] each
        return slots[row], at

    def state_dict(self) -> dict[str, Any]:
        """All that was stored, without the empty rest."""
        used = self.dims.demonstrations + min(self._begun, self.dims.episodes)
        length = self.dims.length
        return {
            "observed": {n: c[: used * (length + 1)].clone() for n, c in self._observed.items()},
            "steps": {n: c[: used * length].clone() for n, c in self._steps.items()},
            "lengths": self.lengths[:used].clone(),
            "begun": self._begun,
            "recorded": self._recorded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, of a buffer of the same sizes."""
        for columns, stored in ((self._observed, "observed"), (self._steps, "steps")):
            for name, column in state[stored].items():
                columns[name][: len(column)] = column
        self.lengths[: len(state["lengths"])] = state["lengths"]
        self._begun, self._recorded = state["begun"], state["recorded"]


def _features(columns: dict[str, Tensor]) -> Features:
    points = columns["points"]
    nothing = points.new_zeros(len(points), 0)
    return Features(
        readout=columns["readout"],
        points=points,
        localisation_std=torch.zeros_like(points[..., 0]),
        proprio=columns["proprio"],
        dim_mask=columns["dim_mask"],
        prompt=nothing[..., None],
        prompt_mask=nothing.bool(),
    )


def _critic_obs(columns: dict[str, Tensor]) -> Tensor:
    return columns["critic_obs"] if "critic_obs" in columns else flatten(_features(columns))
