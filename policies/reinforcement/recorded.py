"""Demonstrations for a replay buffer: recorded episodes as macro-steps of a policy.

A chunk may begin at every recorded frame, so an episode gives one sequence of macro-steps for each
frame that its first chunk can begin with. Needs what `vla collect` records beside a LeRobotDataset:
the executed actions, success, and the simulator's state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.imitation.frame_cache import Frames, open_frames
from policies.reinforcement.state_policy import StatePolicy
from policies.reinforcement.stochastic_policy import StochasticPolicy
from vla.contract import ObservationBatch, VecEnv
from vla.data.dataset_contract import read_contract
from vla.data.dataset_info import vector_names
from vla.data.recorded_frames import read_frames
from vla.model.features import Features

_SEQUENCES = 256  # that are read at once


@dataclass(frozen=True)
class RecordedStep:
    """The same macro-step of some sequences, or what was seen after their last one.

    Attributes:
        rows: int64 [m], which sequences.
        at: number of the macro-step.
        features: what the policy sees.
        privileged: float32 [m, d].
        chunk: float32 [m, k, action.dim], executed, in the contract's units.
        success: float32 [m, k], after each control step.
        is_last: bool [m], only seen: `chunk` and `success` mean nothing.
    """

    rows: Tensor
    at: int
    features: Features
    privileged: Tensor
    chunk: Tensor
    success: Tensor
    is_last: Tensor


class RecordedEpisodes:
    """The sequences of macro-steps of a data set.

    Args:
        root: folder of the data set.
        policy: whose contract the data set has to follow.
        env: whose state has to be recorded.
        chunk_length: control steps a macro-step.

    Raises:
        ContractMismatchError: the data set is of another robot.
        FileNotFoundError: no data set there.
        ValueError: it lacks what is needed, or its state is another task's; names what.
    """

    def __init__(self, root: Path, policy: StochasticPolicy[Any], env: VecEnv, chunk_length: int):
        self._policy, self._chunk_length = policy, chunk_length
        cameras = [camera.name for camera in policy.spec.cameras]
        spec = read_contract(root, cameras)
        # A policy that reads no images fits a data set that has some.
        used = replace(spec, cameras=spec.cameras if cameras else ())
        policy.spec.require_match(used, "the policy", f"demonstrations {root}")
        frames = read_frames(root)
        columns = ("executed.action", "privileged.state", "next.success")
        features = frames.info["features"]
        if missing := [name for name in columns if name not in features]:
            raise ValueError(
                f"demonstrations {root} have no {', '.join(missing)}, which a replay buffer needs "
                "to know what was done, where, and whether it succeeded; `vla collect` records them"
            )
        state = features["privileged.state"]
        names = vector_names(state.get("names"), int(np.prod(state["shape"])))
        if tuple(names) != env.privileged_names:
            raise ValueError(
                f"demonstrations {root} hold the state {', '.join(names)}, the environment has "
                f"{', '.join(env.privileged_names)}: record demonstrations of this task"
            )
        self._executed, self._privileged = (
            torch.from_numpy(frames.vectors(name)).float() for name in columns[:2]
        )
        self._success = torch.from_numpy(frames.scalars(columns[2])).float()
        self._images = None if isinstance(policy, StatePolicy) else open_frames(root, cameras)
        self.steps = len(frames)
        self.episodes = 0
        # Of each sequence its first frame, and the macro-steps that fit in its episode.
        begins, counts = [], []
        for _, rows in frames.episodes():
            self.episodes += 1
            # The observation behind the last action was not recorded, hence - 1.
            starts = np.arange(rows.start, rows.stop - chunk_length)[:chunk_length]
            begins.append(starts)
            counts.append((rows.stop - 1 - starts) // chunk_length)
        self._begins = torch.from_numpy(np.concatenate(begins))
        self._counts = torch.from_numpy(np.concatenate(counts))
        if not len(self._begins):
            raise ValueError(
                f"demonstrations {root}: no episode is longer than a chunk of {chunk_length} steps"
            )

    def __len__(self) -> int:
        """Sequences."""
        return len(self._begins)

    @property
    def longest(self) -> int:
        """Macro-steps of the longest sequence."""
        return int(self._counts.max())

    def fingerprint(self) -> str:
        """SHA-256 of what was done, where, and whether it succeeded: equal ones are equal."""
        found = hashlib.sha256()
        for column in (self._executed, self._privileged, self._success, self._begins):
            found.update(f"{tuple(column.shape)}".encode() + column.numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def read(self) -> Iterator[RecordedStep]:
        """All macro-steps, those of a sequence in order of time."""
        for rows in torch.arange(len(self)).split(_SEQUENCES):
            # One memory for these sequences: they advance together, ended ones stand still.
            state = self._policy.initial_state(len(rows))
            counts = self._counts[rows]
            for at in range(int(counts.max()) + 1):
                frame = self._begins[rows] + self._chunk_length * torch.minimum(
                    counts, torch.tensor(at)
                )
                features, state = self._features(frame, state)
                alive = at <= counts
                mine = alive.nonzero()[:, 0]
                window = frame[mine, None] + torch.arange(self._chunk_length)  # [m, k]
                window = window.clamp_max(self.steps - 1)  # behind the last frame of all
                yield RecordedStep(
                    rows[mine],
                    at,
                    features.select(mine),
                    self._privileged[frame[mine]],
                    self._executed[window],
                    self._success[window],
                    counts[mine] == at,
                )

    def _features(self, frame: Tensor, state: Any) -> tuple[Features, Any]:
        if isinstance(self._policy, StatePolicy):
            return self._policy.read(self._privileged[frame]), state
        assert self._images is not None
        return self._policy.features(_observation(self._images, frame.numpy()), state)


def _observation(frames: Frames, rows: np.ndarray) -> ObservationBatch:
    return ObservationBatch(
        images={name: torch.from_numpy(image[rows]) for name, image in frames.images.items()},
        proprio=torch.from_numpy(frames.proprio[rows]),
        instructions=[frames.instructions[row] for row in rows],
        time_s=torch.from_numpy(frames.frame[rows] / frames.spec.control_rate_hz).float(),
    )
