"""DAgger: the learner plays, the teacher says what it would have done, and both are cloned.

Source: Ross, Gordon and Bagnell 2011, A reduction of imitation learning and structured prediction
to no-regret online learning (arXiv:1011.0686), algorithm 3.1. In round i the mixture
`beta_i teacher + (1 - beta_i) learner` plays, every state it visits is labelled by the teacher, and
the next learner is cloned from all rounds together, the demonstrations first. Departures:

- The mixture is drawn once a chunk, not once a control step: the learner decides in chunks.
- A chunk's labels are the teacher's actions at the states that the mixture went through, not the
  teacher's own continuation from the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from policies.rollout import Transition, rollout
from vla.contract import ObservationBatch, Policy, RobotSpec, VecEnv


class Mixture:
    """Teacher and learner, one control step at a time, with the teacher's label of every step.

    Args:
        learner: a learner at the beginning of its first episode; weights may be shared.
        teacher: of all environments; its first action labels the present state.
        spec: of both.
        beta: probability that a chunk is the teacher's.
        seed: of the draws.

    Attributes:
        labels: float32 [n, action.dim], the teacher's actions where it was last asked.
    """

    def __init__(
        self,
        learner: Callable[[], Policy],
        teacher: Policy,
        spec: RobotSpec,
        beta: float,
        seed: int,
    ):
        self.spec, self.labels = spec, torch.empty(0)
        self._make, self._teacher, self._beta, self._seed = learner, teacher, beta, seed
        self._low, self._high = torch.tensor(spec.action.low), torch.tensor(spec.action.high)
        self._resets = 0
        # By row: a learner that decides for this robot alone, what is left of its chunk, and
        # whether the teacher acts in its place.
        self._learners: dict[int, Policy] = {}
        self._chunks: dict[int, list[Tensor]] = {}
        self._teaches: dict[int, bool] = {}
        self._draws: dict[int, np.random.Generator] = {}

    def reset(self, indices: Sequence[int]) -> None:
        """New episodes begin in these rows."""
        self._teacher.reset(indices)
        for row in indices:
            self._learners.setdefault(row, self._make()).reset([0])
            self._chunks[row] = []
            # A stream an episode, whichever row plays it.
            self._draws[row] = np.random.default_rng([self._seed, self._resets])
            self._resets += 1

    def act(self, observation: ObservationBatch) -> Tensor:
        """One control step, float32 [n, 1, action.dim]."""
        self.labels = self._teacher.act(observation)[:, 0].clamp(self._low, self._high)
        chosen = self.labels.clone()  # rows that play no episode follow the teacher
        for row, learner in self._learners.items():
            if not self._chunks[row]:
                self._chunks[row] = list(learner.act(observation.select([row]))[0])
                self._teaches[row] = self._draws[row].random() < self._beta
            action = self._chunks[row].pop(0)
            if not self._teaches[row]:
                chosen[row] = action
        return chosen[:, None]


def play_labelled(
    env: VecEnv, mixture: Mixture, seeds: Sequence[int]
) -> list[dict[str, np.ndarray]]:
    """Play one episode per seed; one row per control step, as the recorder of demonstrations.

    Args:
        env: what it was playing is dropped.
        mixture: plays, and is asked for its labels.
        seeds: one per episode.

    Returns:
        Of each episode `image.<camera>` uint8 [t, h, w, 3], `proprio`, `action` (the teacher's),
        `executed` and `privileged` float32 [t, ...], `success` bool [t], and `instruction`.
    """
    rows: list[dict[str, list[np.ndarray]]] = [{} for _ in seeds]
    texts = [""] * len(seeds)

    def keep(transition: Transition) -> None:
        seen, step = transition.observation, transition.step
        columns = {f"image.{camera}": images for camera, images in seen.images.items()} | {
            "proprio": seen.proprio,
            "privileged": transition.privileged,
            "action": mixture.labels,
            "executed": transition.chunks[:, 0],
            "success": step.success[:, 0],
        }
        arrays = {name: column.cpu().numpy() for name, column in columns.items()}
        for row in np.flatnonzero(transition.episodes >= 0):
            episode = int(transition.episodes[row])
            texts[episode] = seen.instructions[row]
            for name, array in arrays.items():
                # Copies: an environment may reuse its buffers.
                rows[episode].setdefault(name, []).append(array[row].copy())

    rollout(env, mixture, seeds, keep)
    return [
        {name: np.stack(column) for name, column in episode.items()}
        | {"instruction": np.array(text)}
        for episode, text in zip(rows, texts, strict=True)
    ]
